# The data set: generated where the config asks for the built-in one, then read and checked once.
if CONFIG.data.source == "shapes":

    rule data:
        """Generate the built-in data set in VOC layout."""
        output:
            directory(ROOT),
        log:
            f"{RESULTS}/logs/data.log",
        benchmark:
            f"{RESULTS}/benchmarks/data.tsv"
        localrule: True
        conda:
            "../../environment.yml"
        params:
            settings=settings("data"),
            code=source_digest("ibsgl.data.shapes", "ibsgl.randomness"),
        shell:
            "ibsgl shapes --settings {params.settings:q} --out {output:q} 2> {log:q}"


rule index:
    """Read the VOC-layout folder once: check it, list its (image, class) pairs, take its digest."""
    input:
        root=ROOT,
    output:
        INDEX,
    log:
        f"{RESULTS}/logs/index.log",
    benchmark:
        f"{RESULTS}/benchmarks/index.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=settings("index"),
        # Snakemake sees a folder's own date, not what changes inside it.
        files=[] if CONFIG.data.source == "shapes" else folder_digest(ROOT),
        code=source_digest("ibsgl.data.voc", "ibsgl.randomness"),
    shell:
        "ibsgl index --root {input.root:q} --settings {params.settings:q} --out {output:q} 2> {log:q}"
