# The data set: generated or fetched where the config asks for it, then read and checked once.
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


if CONFIG.data.download:

    rule data:
        """Download, verify and unpack the data set; a folder that is there is taken as it is."""
        output:
            STAMP,
        log:
            f"{RESULTS}/logs/data.log",
        benchmark:
            f"{RESULTS}/benchmarks/data.tsv"
        localrule: True
        conda:
            "../../environment.yml"
        params:
            root=ROOT,
            settings=settings("fetch"),
            # As functions of a job's files they are not compared: the checksums in the settings say what comes of them.
            mirrors=lambda wildcards, output: [
                f"--mirror={mirror}" for mirror in CONFIG.data.download.mirrors
            ],
            folder=lambda wildcards, output: CONFIG.data.download.folder,
        shell:
            "ibsgl fetch --root {params.root:q} {params.mirrors:q} --folder {params.folder:q}"
            " --settings {params.settings:q} --out {output:q} 2> {log:q}"


rule index:
    """Read the data set's folder once: check it, list its (image, class) pairs, take its digest."""
    input:
        STAMP if CONFIG.data.download else ROOT,
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
        root=data_root,
        settings=settings("index"),
        # ImageNet's million files are not looked at.
        files=data_files if CONFIG.data.source == "voc" else [],
        code=source_digest("ibsgl.data.voc", "ibsgl.data.imagenet", "ibsgl.randomness"),
    shell:
        "ibsgl index --root {params.root:q} --settings {params.settings:q} --out {output:q} 2> {log:q}"
