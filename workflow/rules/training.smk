# The networks: the classifier, and the variants that are trained from it, guided and not.
rule classifier:
    """Train the network to be explained (Eq. 2), or keep it as it is."""
    input:
        index=index_of,
        root=DATA,
        start=weights_file,
    output:
        "results/{run}/{model}/{replicate}/pretrained/network.pt",
    log:
        "results/{run}/logs/{model}/{replicate}/classifier.log",
    benchmark:
        "results/{run}/benchmarks/{model}/{replicate}/classifier.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(16000),
        runtime=doubling(240),
    params:
        root=data_root,
        records="results/{run}/records",
        settings=settings("classifier"),
        code=code("classifier"),
    shell:
        "ibsgl classifier --model {wildcards.model} --index {input.index:q} --root {params.root:q}"
        " --settings {params.settings:q} --gpu {resources.gpu} --records {params.records:q} --out {output:q} 2> {log:q}"


rule bottleneck:
    """Feature statistics of the training images, and L^ib of every training and held-out pair (Eq. 4–9), made once."""
    input:
        index=index_of,
        root=DATA,
        weights=pretrained_of,
    output:
        statistics="results/{run}/{model}/{replicate}/pretrained/statistics.pt",
        maps="results/{run}/{model}/{replicate}/pretrained/bottleneck.pt",
    log:
        "results/{run}/logs/{model}/{replicate}/bottleneck.log",
    benchmark:
        "results/{run}/benchmarks/{model}/{replicate}/bottleneck.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(12000),
        runtime=doubling(300),
        batch_size=CONFIG.batch_size,
    params:
        root=data_root,
        settings=settings("bottleneck"),
        code=code("bottleneck"),
    shell:
        "ibsgl bottleneck --index {input.index:q} --root {params.root:q} --weights {input.weights:q}"
        " --settings {params.settings:q} --gpu {resources.gpu} --batch-size {resources.batch_size}"
        " --statistics {output.statistics:q} --out {output.maps:q} 2> {log:q}"


rule guide:
    """Train a variant from the pretrained network: guided (Algorithm 1), with another teacher, or as the control without."""
    input:
        unpack(guidance_inputs),
        index=index_of,
        root=DATA,
        weights=pretrained_of,
    output:
        "results/{run}/{model}/{replicate}/{variant}/network.pt",
    log:
        "results/{run}/logs/{model}/{replicate}/{variant}.log",
    benchmark:
        "results/{run}/benchmarks/{model}/{replicate}/{variant}.tsv"
    wildcard_constraints:
        variant="|".join(
            {name for each in CONFIGS.values() for name in each.trained_variants}
        ),
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(16000),
        runtime=doubling(480),
    params:
        root=data_root,
        records="results/{run}/records",
        settings=settings("guide"),
        options=guidance_options,
        code=code("guide"),
    shell:
        "ibsgl guide --model {wildcards.model} --variant {wildcards.variant} --index {input.index:q} --root {params.root:q}"
        " --weights {input.weights:q} {params.options:q} --settings {params.settings:q}"
        " --gpu {resources.gpu} --records {params.records:q} --out {output:q} 2> {log:q}"
