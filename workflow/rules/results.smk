# The answer, the paper's tables and its figures.
for model, numbers in NUMBERS.items():

    rule:
        name:
            f"tables_{model}"
        # Two of the paper's tables beside the published values, the comparisons of the variants, and what explains them.
        input:
            index=f"{RESULTS}/index.parquet",
            evaluations=evaluations_of(CONFIG.name, model),
            published="results/published",
        output:
            tables=[
                report(
                    f"{RESULTS}/tables/table{number}.csv",
                    caption="../report/table.rst",
                    category="Tables",
                    labels={"table": f"Table {number}", "network": model},
                )
                for number in numbers
            ],
            texts=[
                f"{RESULTS}/tables/table{number}.{kind}"
                for number in numbers
                for kind in ("md", "tex")
            ],
            comparisons=report(
                f"{RESULTS}/tables/comparisons_{model}.csv",
                caption="../report/comparisons.rst",
                category="Tables",
                labels={"table": "what guidance does", "network": model},
            ),
            comparisons_text=f"{RESULTS}/tables/comparisons_{model}.md",
            others=[
                f"{RESULTS}/tables/{name}_{model}.csv"
                for name in ("classification", "cross_scoring", "diagnostics")
            ],
        log:
            f"{RESULTS}/logs/tables_{model}.log",
        benchmark:
            f"{RESULTS}/benchmarks/tables_{model}.tsv"
        localrule: True
        conda:
            "../../environment.yml"
        params:
            model=model,
            out=lambda wildcards, output: Path(output.tables[0]).parent.as_posix(),
            records=RECORDS,
            settings=step_of(CONFIG, "tables", model=model).to_json(),
            evaluations=lambda wildcards, input: each("evaluation", input.evaluations),
            code=step_of(CONFIG, "tables", model=model).code(),
        shell:
            "ibsgl tables --model {params.model} --index {input.index:q} {params.evaluations:q} --published {input.published:q}"
            " --settings {params.settings:q} --records {params.records:q} --out {params.out:q} 2> {log:q}"


if 1 in NUMBERS[MODELS[0]]:

    rule table1:
        """Table 1: EBPG, mIoU and Bbox on the first network (ResNet-50 in the paper)."""
        input:
            f"{RESULTS}/tables/table1.csv",

    rule table3:
        """Table 3: Average Drop and Average Increase on the first network."""
        input:
            f"{RESULTS}/tables/table3.csv",


if len(MODELS) > 1:

    rule table2:
        """Table 2: EBPG, mIoU and Bbox on the second network (VGG-16 in the paper)."""
        input:
            f"{RESULTS}/tables/table2.csv",

    rule table4:
        """Table 4: Average Drop and Average Increase on the second network."""
        input:
            f"{RESULTS}/tables/table4.csv",


if FURTHER:

    rule metrics:
        """The further metrics: a table of each network, and how far the metrics' rankings agree."""
        input:
            METRICS,
            AGREEMENT,

    for model in MODELS:

        rule:
            name:
                f"metrics_{model}"
            # The further metrics of a network with ranks, and Kendall's tau between the metrics' rankings.
            input:
                metrics=metrics_of(model),
                evaluations=evaluations_of(CONFIG.name, model),
                published="results/published",
            output:
                csv=report(
                    f"{RESULTS}/tables/metrics_{model}.csv",
                    caption="../report/metrics.rst",
                    category="Tables",
                    labels={"table": "further metrics", "network": model},
                ),
                text=f"{RESULTS}/tables/metrics_{model}.md",
                png=report(
                    f"{RESULTS}/figures/metric_agreement_{model}.png",
                    caption="../report/metric_agreement.rst",
                    category="Figures",
                    labels={"figure": "metrics' agreement", "network": model},
                ),
                others=[
                    f"{RESULTS}/figures/metric_agreement_{model}.{kind}"
                    for kind in ("pdf", "csv")
                ],
            log:
                f"{RESULTS}/logs/metrics_{model}.log",
            benchmark:
                f"{RESULTS}/benchmarks/metrics_{model}.tsv"
            localrule: True
            conda:
                "../../environment.yml"
            params:
                model=model,
                records=RECORDS,
                settings=step_of(CONFIG, "metrics", model=model).to_json(),
                metrics=lambda wildcards, input: each("metric", input.metrics),
                evaluations=lambda wildcards, input: each(
                    "evaluation", input.evaluations
                ),
                code=step_of(CONFIG, "metrics", model=model).code(),
            shell:
                "ibsgl metrics --model {params.model} {params.metrics:q} {params.evaluations:q} --published {input.published:q}"
                " --settings {params.settings:q} --records {params.records:q} --out {output.csv:q} --plot {output.png:q}"
                " 2> {log:q}"


rule claims:
    """The paper's claims with their verdicts: effect, interval, every replicate's value, one sentence each."""
    input:
        evaluations=[
            path for model in MODELS for path in evaluations_of(CONFIG.name, model)
        ],
        published="results/published",
    output:
        csv=report(
            CLAIMS,
            caption="../report/claims.rst",
            category="Claims",
            labels={"table": "verdicts"},
        ),
        markdown=Path(CLAIMS).with_suffix(".md").as_posix(),
    log:
        f"{RESULTS}/logs/claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/claims.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        records=RECORDS,
        settings=settings("claims"),
        evaluations=lambda wildcards, input: each("evaluation", input.evaluations),
        code=code("claims"),
    shell:
        "ibsgl claims {params.evaluations:q} --published {input.published:q} --settings {params.settings:q}"
        " --records {params.records:q} --out {output.csv:q} 2> {log:q}"


rule figures:
    """Figures 2, 3 and 4."""
    input:
        FIGURES,


rule figure:
    """Figure 2 (suppression) or 3 (before and after guidance) of the first replicate: PNG and PDF."""
    input:
        index=f"{RESULTS}/index.parquet",
        root=DATA,
        weights=expand(
            f"{RESULTS}/{{model}}/0/{{variant}}/network.pt",
            model=MODELS,
            variant=("pretrained", "guided"),
        ),
    output:
        png=report(
            f"{RESULTS}/figures/figure{{number}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "Figure {number}"},
        ),
        pdf=f"{RESULTS}/figures/figure{{number}}.pdf",
    log:
        f"{RESULTS}/logs/figure{{number}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure{{number}}.tsv"
    wildcard_constraints:
        number="2|3",
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(12000),
        runtime=doubling(60),
    params:
        root=data_root,
        records=RECORDS,
        settings=settings("figure"),
        weights=lambda wildcards, input: each("weights", input.weights),
        code=code("figure"),
    shell:
        "ibsgl figure --index {input.index:q} --root {params.root:q} {params.weights:q}"
        " --settings {params.settings:q} --gpu {resources.gpu} --records {params.records:q} --out {output.png:q} 2> {log:q}"


rule figure4:
    """Figure 4: the target's probability as the important region is deleted, before and after guidance."""
    input:
        evaluations=[
            path for model in MODELS for path in evaluations_of(CONFIG.name, model)
        ],
    output:
        png=report(
            f"{RESULTS}/figures/figure4.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "Figure 4"},
        ),
        pdf=f"{RESULTS}/figures/figure4.pdf",
        csv=f"{RESULTS}/figures/figure4.csv",
    log:
        f"{RESULTS}/logs/figure4.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure4.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        records=RECORDS,
        settings=settings("figure4"),
        evaluations=lambda wildcards, input: each("evaluation", input.evaluations),
        code=code("figure4"),
    shell:
        "ibsgl figure4 {params.evaluations:q} --settings {params.settings:q} --records {params.records:q}"
        " --out {output.png:q} 2> {log:q}"


rule study:
    """Everything, and the answer as a page of the documentation. Without a config file it is that of config/study.yaml."""
    input:
        TABLES,
        FIGURES,
        CLAIMS,
        REPORT,
        PAGES["claims"],


for name, table in (("claims", CLAIMS), ("sensitivity", SENSITIVITY)):
    if name == "claims" or CONFIG.alternatives:

        rule:
            name:
                f"measured_{name}"
            # A table and its text as a page of the documentation: with the config's digest, and versions.
            input:
                table,
            output:
                page=PAGES[name],
                csv=Path(PAGES[name]).with_suffix(".csv").as_posix(),
            log:
                f"{RESULTS}/logs/measured_{name}.log",
            localrule: True
            conda:
                "../../environment.yml"
            params:
                settings=settings(name),
                code=code(name),
            shell:
                "ibsgl measured --table {input:q} --settings {params.settings:q} --out {output.page:q} 2> {log:q}"


if CONFIG.alternatives:

    rule sensitivity:
        """How much each alternative of the config changes the effect behind each claim: a table and tornado plots."""
        input:
            SENSITIVITY,
            PAGES["sensitivity"],

    rule alternatives:
        """The effect behind each claim with each alternative, beside that of the config itself."""
        input:
            base=[
                path for model in MODELS for path in evaluations_of(CONFIG.name, model)
            ],
            alternatives=[
                path
                for run in CONFIGS
                for model in MODELS
                for path in evaluations_of(run, model)
                if not path.startswith(f"{RESULTS}/{model}/")
            ],
            published="results/published",
        output:
            csv=SENSITIVITY,
            markdown=Path(SENSITIVITY).with_suffix(".md").as_posix(),
            png=report(
                TORNADO[0],
                caption="../report/sensitivity.rst",
                category="Claims",
                labels={"figure": "sensitivity"},
            ),
        log:
            f"{RESULTS}/logs/sensitivity.log",
        benchmark:
            f"{RESULTS}/benchmarks/sensitivity.tsv"
        localrule: True
        conda:
            "../../environment.yml"
        params:
            records=RECORDS,
            settings=settings("sensitivity"),
            base=lambda wildcards, input: each("evaluation", input.base),
            alternatives=lambda wildcards, input: each(
                "alternative", input.alternatives
            ),
            code=code("sensitivity"),
        shell:
            "ibsgl sensitivity {params.base:q} {params.alternatives:q} --published {input.published:q}"
            " --settings {params.settings:q} --records {params.records:q} --out {output.csv:q} 2> {log:q}"
