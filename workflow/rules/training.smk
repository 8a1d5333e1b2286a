# The networks: the classifier, and from it the guided network and its control.
rule classifier:
    """Train the network to be explained (Eq. 2), or keep it as it is."""
    input:
        index=INDEX,
        root=DATA,
        start=weights_file,
    output:
        f"{RESULTS}/{{model}}/pretrained.pt",
    log:
        f"{RESULTS}/logs/{{model}}/classifier.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/classifier.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(16000),
        runtime=doubling(240),
    params:
        root=data_root,
        records=RECORDS,
        settings=settings("classifier"),
        code=code("classifier"),
    shell:
        "ibsgl classifier --model {wildcards.model} --index {input.index:q} --root {params.root:q}"
        " --settings {params.settings:q} --gpu {resources.gpu} --records {params.records:q} --out {output:q} 2> {log:q}"


rule statistics:
    """Mean and deviation of the feature map over the training images."""
    input:
        index=INDEX,
        root=DATA,
        weights=f"{RESULTS}/{{model}}/{{variant}}.pt",
    output:
        f"{RESULTS}/{{model}}/statistics/{{variant}}.pt",
    log:
        f"{RESULTS}/logs/{{model}}/statistics/{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/statistics/{{variant}}.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(8000),
        runtime=doubling(60),
        batch_size=CONFIG.batch_size,
    params:
        root=data_root,
        settings=settings("statistics"),
        code=code("statistics"),
    shell:
        "ibsgl statistics --index {input.index:q} --root {params.root:q} --weights {input.weights:q}"
        " --settings {params.settings:q} --gpu {resources.gpu} --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"


rule bottleneck:
    """L^ib of every training and held-out pair (Eq. 4–9), made once."""
    input:
        index=INDEX,
        root=DATA,
        weights=f"{RESULTS}/{{model}}/pretrained.pt",
        statistics=f"{RESULTS}/{{model}}/statistics/pretrained.pt",
    output:
        f"{RESULTS}/{{model}}/bottleneck.pt",
    log:
        f"{RESULTS}/logs/{{model}}/bottleneck.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/bottleneck.tsv"
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
        settings=settings("bottleneck"),
        code=code("bottleneck"),
    shell:
        "ibsgl bottleneck --index {input.index:q} --root {params.root:q} --weights {input.weights:q}"
        " --statistics {input.statistics:q} --settings {params.settings:q}"
        " --gpu {resources.gpu} --batch-size {resources.batch_size} --out {output:q} 2> {log:q}"


rule guide:
    """Guided training (Algorithm 1), and the control: as long, without guidance."""
    input:
        unpack(guidance_inputs),
        index=INDEX,
        root=DATA,
        weights=f"{RESULTS}/{{model}}/pretrained.pt",
    output:
        f"{RESULTS}/{{model}}/{{variant}}.pt",
    log:
        f"{RESULTS}/logs/{{model}}/{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/{{variant}}.tsv"
    wildcard_constraints:
        variant="guided|control",
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        gpu=gpus(),
        mem_mb=doubling(16000),
        runtime=doubling(480),
    params:
        root=data_root,
        records=RECORDS,
        settings=settings("guide"),
        options=guidance_options,
        code=code("guide"),
    shell:
        "ibsgl guide --model {wildcards.model} --index {input.index:q} --root {params.root:q}"
        " --weights {input.weights:q} {params.options:q} --settings {params.settings:q}"
        " --gpu {resources.gpu} --records {params.records:q} --out {output:q} 2> {log:q}"


rule effect:
    """L_CE, L_SS and accuracy of the three variants: guided against control."""
    input:
        index=INDEX,
        root=DATA,
        weights=expand(f"{RESULTS}/{{{{model}}}}/{{variant}}.pt", variant=VARIANTS),
        bottleneck=f"{RESULTS}/{{model}}/bottleneck.pt",
    output:
        losses=f"{RESULTS}/{{model}}/effect.parquet",
        predictions=f"{RESULTS}/{{model}}/predictions.parquet",
        table=f"{RESULTS}/tables/guidance_{{model}}.csv",
        markdown=f"{RESULTS}/tables/guidance_{{model}}.md",
        classes=f"{RESULTS}/tables/classification_{{model}}.csv",
    log:
        f"{RESULTS}/logs/{{model}}/effect.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{model}}/effect.tsv"
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
        records=RECORDS,
        settings=settings("effect"),
        weights=lambda wildcards, input: [f"--weights={path}" for path in input.weights],
        code=code("effect"),
    shell:
        "ibsgl effect --model {wildcards.model} --index {input.index:q} --root {params.root:q} {params.weights:q}"
        " --bottleneck {input.bottleneck:q} --settings {params.settings:q}"
        " --gpu {resources.gpu} --batch-size {resources.batch_size} --records {params.records:q}"
        " --out {output.losses:q} --predictions {output.predictions:q} --table {output.table:q} --classes {output.classes:q} 2> {log:q}"
