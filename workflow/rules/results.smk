# The paper's tables and figures.
if 1 in NUMBERS:

    rule table1:
        """Table 1: EBPG, mIoU and Bbox on the first network (ResNet-50 in the paper)."""
        input:
            f"{RESULTS}/tables/table1.csv",


if 2 in NUMBERS:

    rule table2:
        """Table 2: EBPG, mIoU and Bbox on the second network (VGG-16 in the paper)."""
        input:
            f"{RESULTS}/tables/table2.csv",


if 3 in NUMBERS:

    rule table3:
        """Table 3: Average Drop and Average Increase on the first network."""
        input:
            f"{RESULTS}/tables/table3.csv",


if 4 in NUMBERS:

    rule table4:
        """Table 4: Average Drop and Average Increase on the second network."""
        input:
            f"{RESULTS}/tables/table4.csv",


rule table:
    """One of Tables 1–4 beside the published values: CSV, Markdown and LaTeX."""
    input:
        scores=scores_of,
        published="results/published",
    output:
        csv=f"{RESULTS}/tables/table{{number}}.csv",
        markdown=f"{RESULTS}/tables/table{{number}}.md",
        latex=f"{RESULTS}/tables/table{{number}}.tex",
    log:
        f"{RESULTS}/logs/table{{number}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/table{{number}}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        records=RECORDS,
        settings=settings("table"),
        scores=lambda wildcards, input: [f"--scores={path}" for path in input.scores],
        code=code("table"),
    shell:
        "ibsgl table {params.scores:q} --published {input.published:q} --settings {params.settings:q}"
        " --records {params.records:q} --out {output.csv:q} 2> {log:q}"


rule figures:
    """Figures 2, 3 and 4."""
    input:
        FIGURES,


rule figure:
    """Figure 2 (suppression) or 3 (before and after guidance): PNG and PDF."""
    input:
        index=INDEX,
        root=DATA,
        weights=expand(
            f"{RESULTS}/{{model}}/{{variant}}.pt",
            model=MODELS,
            variant=("pretrained", "guided"),
        ),
    output:
        png=f"{RESULTS}/figures/figure{{number}}.png",
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
        weights=lambda wildcards, input: [f"--weights={path}" for path in input.weights],
        code=code("figure"),
    shell:
        "ibsgl figure --index {input.index:q} --root {params.root:q} {params.weights:q}"
        " --settings {params.settings:q} --gpu {resources.gpu} --records {params.records:q} --out {output.png:q} 2> {log:q}"


rule figure4:
    """Figure 4: the target's probability as the important region is deleted, before and after guidance."""
    input:
        curves=expand(
            f"{RESULTS}/{{model}}/deletion/{{shard}}.parquet",
            model=MODELS,
            shard=SHARDS,
        ),
    output:
        png=f"{RESULTS}/figures/figure4.png",
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
        curves=lambda wildcards, input: [f"--curves={path}" for path in input.curves],
        code=code("figure4"),
    shell:
        "ibsgl figure4 {params.curves:q} --settings {params.settings:q} --records {params.records:q} --out {output.png:q} 2> {log:q}"
