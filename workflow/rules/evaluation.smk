# Saliency maps of every method, their scores, and the deletion curves.
rule maps:
    """Saliency maps of one method, or of all single-pass methods, on one variant, for one shard of the test images."""
    input:
        unpack(statistics_of),
        index=INDEX,
        root=DATA,
        weights=f"{RESULTS}/{{model}}/{{variant}}.pt",
    output:
        f"{RESULTS}/{{model}}/maps/{{variant}}/{{group}}/{{shard}}.parquet",
    log:
        f"{RESULTS}/logs/{{model}}/maps/{{variant}}/{{group}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/maps/{{variant}}/{{group}}/{{shard}}.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(12000),
        runtime=doubling(480),
        batch_size=CONFIG.batch_size,
    params:
        root=data_root,
        settings=settings("maps"),
        options=lambda wildcards, input: (
            [f"--statistics={input.statistics}"] if statistics_of(wildcards) else []
        ),
        code=code("maps"),
    shell:
        "ibsgl maps --index {input.index:q} --root {params.root:q} --weights {input.weights:q} {params.options:q}"
        " --settings {params.settings:q} --shard {wildcards.shard}"
        " --gpu {resources.gpu} --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"


rule scores:
    """Every metric of every map of one shard on one variant."""
    input:
        index=INDEX,
        root=DATA,
        weights=f"{RESULTS}/{{model}}/{{variant}}.pt",
        maps=maps_of,
    output:
        f"{RESULTS}/{{model}}/scores/{{variant}}/{{shard}}.parquet",
    log:
        f"{RESULTS}/logs/{{model}}/scores/{{variant}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/scores/{{variant}}/{{shard}}.tsv"
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
        settings=settings("scores"),
        maps=lambda wildcards, input: [f"--maps={path}" for path in input.maps],
        code=code("scores"),
    shell:
        "ibsgl scores --model {wildcards.model} --variant {wildcards.variant} --index {input.index:q}"
        " --root {params.root:q} --weights {input.weights:q} {params.maps:q} --settings {params.settings:q}"
        " --gpu {resources.gpu} --batch-size {resources.batch_size} --shard {wildcards.shard} --out {output:q} 2> {log:q}"


rule evaluation:
    """One variant's scores: those of its shards together."""
    input:
        scores=expand(
            f"{RESULTS}/{{{{model}}}}/scores/{{{{variant}}}}/{{shard}}.parquet",
            shard=SHARDS,
        ),
    output:
        f"{RESULTS}/{{model}}/scores/{{variant}}.parquet",
    log:
        f"{RESULTS}/logs/{{model}}/scores/{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/scores/{{variant}}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        records=RECORDS,
        code=code("evaluation"),
        scores=lambda wildcards, input: [f"--scores={path}" for path in input.scores],
    shell:
        "ibsgl evaluation {params.scores:q} --records {params.records:q} --out {output:q} 2> {log:q}"


rule deletion:
    """Deletion curves of every variant's own Eq. 3 maps, for one shard of the test images (Figure 4)."""
    input:
        index=INDEX,
        root=DATA,
        weights=expand(f"{RESULTS}/{{{{model}}}}/{{variant}}.pt", variant=VARIANTS),
        maps=eq3_maps_of,
    output:
        f"{RESULTS}/{{model}}/deletion/{{shard}}.parquet",
    log:
        f"{RESULTS}/logs/{{model}}/deletion/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/deletion/{{shard}}.tsv"
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
        settings=settings("deletion"),
        weights=lambda wildcards, input: [f"--weights={path}" for path in input.weights],
        maps=lambda wildcards, input: [f"--maps={path}" for path in input.maps],
        code=code("deletion"),
    shell:
        "ibsgl deletion --index {input.index:q} --root {params.root:q} {params.weights:q} {params.maps:q}"
        " --settings {params.settings:q} --shard {wildcards.shard} --gpu {resources.gpu} --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"
