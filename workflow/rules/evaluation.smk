# Saliency maps of the methods of many passes, and everything that is measured on the networks.
rule maps:
    """Saliency maps of one method of many passes on one variant, for one shard of the test images."""
    input:
        unpack(maps_inputs),
        index=index_of,
        root=DATA,
        weights=network_of,
    output:
        "results/{run}/{model}/{replicate}/{variant}/maps/{method}/{shard}.parquet",
    log:
        "results/{run}/logs/{model}/{replicate}/{variant}/{method}/{shard}.log",
    benchmark:
        "results/{run}/benchmarks/{model}/{replicate}/{variant}/{method}/{shard}.tsv"
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
        statistics=lambda wildcards, input: each(
            "statistics", input.get("statistics", [])
        ),
        code=code("maps"),
    shell:
        "ibsgl maps --index {input.index:q} --root {params.root:q} --weights {input.weights:q}"
        " {params.statistics:q} --settings {params.settings:q} --shard {wildcards.shard}"
        " --gpu {resources.gpu} --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"


rule evaluate:
    """Everything that is measured on the variants of one replicate, for one shard: maps of one pass, scores, losses, curves."""
    input:
        index=index_of,
        root=DATA,
        weights=networks_of,
        maps=heavy_maps_of,
        statistics=statistics_of,
        bottleneck=bottleneck_of,
    output:
        directory("results/{run}/{model}/{replicate}/evaluation/{shard}"),
    log:
        "results/{run}/logs/{model}/{replicate}/evaluation/{shard}.log",
    benchmark:
        "results/{run}/benchmarks/{model}/{replicate}/evaluation/{shard}.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(12000),
        runtime=doubling(240),
        batch_size=CONFIG.batch_size,
    params:
        root=data_root,
        settings=settings("evaluate"),
        weights=lambda wildcards, input: each("weights", input.weights),
        maps=lambda wildcards, input: each("maps", input.maps),
        code=code("evaluate"),
    shell:
        "ibsgl evaluate --model {wildcards.model} --replicate {wildcards.replicate} --index {input.index:q}"
        " --root {params.root:q} {params.weights:q} {params.maps:q} --statistics {input.statistics:q}"
        " --bottleneck {input.bottleneck:q} --settings {params.settings:q} --shard {wildcards.shard}"
        " --gpu {resources.gpu} --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"


if FURTHER:

    rule light_maps:
        """Saliency maps of all methods of one pass on one variant, for one shard. Only further metrics need them stored."""
        input:
            unpack(light_maps_inputs),
            index=index_of,
            root=DATA,
            weights=network_of,
        output:
            "results/{run}/{model}/{replicate}/{variant}/light_maps/{shard}.parquet",
        log:
            "results/{run}/logs/{model}/{replicate}/{variant}/light_maps/{shard}.log",
        benchmark:
            "results/{run}/benchmarks/{model}/{replicate}/{variant}/light_maps/{shard}.tsv"
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
            settings=settings("lightmaps"),
            statistics=lambda wildcards, input: each(
                "statistics", input.get("statistics", [])
            ),
            code=code("lightmaps"),
        shell:
            "ibsgl maps --index {input.index:q} --root {params.root:q} --weights {input.weights:q}"
            " {params.statistics:q} --settings {params.settings:q} --shard {wildcards.shard}"
            " --gpu {resources.gpu} --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"

    rule metric:
        """One further metric of all maps of one variant, for one shard of the test images."""
        input:
            unpack(metric_inputs),
            index=index_of,
            maps=stored_maps_of,
        output:
            "results/{run}/{model}/{replicate}/{variant}/metrics/{metric}/{shard}.parquet",
        log:
            "results/{run}/logs/{model}/{replicate}/{variant}/metrics/{metric}/{shard}.log",
        benchmark:
            "results/{run}/benchmarks/{model}/{replicate}/{variant}/metrics/{metric}/{shard}.tsv"
        conda:
            "../../environment.yml"
        threads: CONFIG.threads
        resources:
            gpu=lambda wildcards: (
                0 if FURTHER[wildcards.metric].requires == "maps" else gpus()
            ),
            mem_mb=doubling(12000),
            runtime=doubling(480),
            batch_size=CONFIG.batch_size,
        params:
            root=data_root,
            settings=settings("metric"),
            maps=lambda wildcards, input: each("maps", input.maps),
            weights=lambda wildcards, input: each("weights", input.get("weights", [])),
            statistics=lambda wildcards, input: each(
                "statistics", input.get("statistics", [])
            ),
            code=code("metric"),
        shell:
            "ibsgl metric --model {wildcards.model} --replicate {wildcards.replicate} --variant {wildcards.variant}"
            " --index {input.index:q} --root {params.root:q} {params.maps:q} {params.weights:q} {params.statistics:q}"
            " --settings {params.settings:q} --shard {wildcards.shard} --gpu {resources.gpu}"
            " --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"
