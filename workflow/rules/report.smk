# The report: a static page that needs no server and no network.
rule thumbnails:
    """Pictures of a sample of the test images with all their maps, of the first replicate of one network."""
    input:
        index=f"{RESULTS}/index.parquet",
        root=DATA,
        weights=lambda wildcards: networks_of(first_replicate(wildcards)),
        maps=lambda wildcards: [
            path
            for shard in range(CONFIG.shards)
            for path in heavy_maps_of(first_replicate(wildcards, shard))
        ],
        statistics=lambda wildcards: statistics_of(first_replicate(wildcards)),
    output:
        directory(f"{RESULTS}/report/maps/{{model}}"),
    log:
        f"{RESULTS}/logs/{{model}}/thumbnails.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/thumbnails.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(12000),
        runtime=doubling(120),
        batch_size=CONFIG.batch_size,
    params:
        root=data_root,
        settings=settings("thumbnails"),
        weights=lambda wildcards, input: each("weights", input.weights),
        maps=lambda wildcards, input: each("maps", input.maps),
        code=code("thumbnails"),
    shell:
        "ibsgl thumbnails --index {input.index:q} --root {params.root:q} {params.weights:q} {params.maps:q}"
        " --statistics {input.statistics:q} --settings {params.settings:q} --gpu {resources.gpu}"
        " --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"


rule report:
    """The answer, the tables, the figures and every map of a sample of the test images, as one page: open report/index.html."""
    input:
        claims=CLAIMS,
        tables=TABLES,
        comparisons=expand(f"{RESULTS}/tables/comparisons_{{model}}.csv", model=MODELS),
        further=METRICS,
        figures=FIGURES + TORNADO + AGREEMENT,
        thumbnails=expand(f"{RESULTS}/report/maps/{{model}}", model=MODELS),
        evaluations=[
            f"{RESULTS}/{model}/0/evaluation/{shard}"
            for model in MODELS
            for shard in range(CONFIG.shards)
        ],
        published="results/published",
    output:
        report(
            REPORT,
            caption="../report/page.rst",
            category="Report",
            labels={"page": "report/index.html"},
        ),
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        records=RECORDS,
        settings=settings("report"),
        tables=lambda wildcards, input: each(
            "table", [*input.tables, *input.comparisons, *input.further]
        ),
        figures=lambda wildcards, input: each("figure", input.figures),
        evaluations=lambda wildcards, input: each("evaluation", input.evaluations),
        code=code("report"),
    shell:
        "ibsgl report {params.evaluations:q} --claims {input.claims:q} {params.tables:q} {params.figures:q}"
        " --published {input.published:q} --settings {params.settings:q} --records {params.records:q} --out {output:q} 2> {log:q}"
