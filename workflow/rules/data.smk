# The data set: generated or downloaded if the config says so, then read and checked once.
if CONFIG.data.generated:

    rule data:
        """Generate the images of a data set that has none of its own."""
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
            code=code("data"),
        shell:
            "ibsgl data --settings {params.settings:q} --out {output:q} 2> {log:q}"


if CONFIG.data.archives:

    rule data:
        """Download, verify and unpack the data set; an existing folder is used as it is."""
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
            # As functions of a job's files they are not compared. The checksums in the settings decide what is downloaded.
            mirrors=lambda wildcards, output: [
                f"--mirror={mirror}" for mirror in CONFIG.data.archives.mirrors
            ],
            folder=lambda wildcards, output: CONFIG.data.archives.folder,
        shell:
            "ibsgl fetch --root {params.root:q} {params.mirrors:q} --folder {params.folder:q}"
            " --settings {params.settings:q} --out {output:q} 2> {log:q}"


rule index:
    """Read the data set's folder once: check it, list its (image, class) pairs, take its digest."""
    input:
        STAMP if CONFIG.data.archives else ROOT,
    output:
        "results/{run}/index.parquet",
    log:
        "results/{run}/logs/index.log",
    benchmark:
        "results/{run}/benchmarks/index.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        root=data_root,
        settings=settings("index"),
        files=data_files if CONFIG.data.watched else [],
        code=code("index"),
    shell:
        "ibsgl index --root {params.root:q} --settings {params.settings:q} --out {output:q} 2> {log:q}"
