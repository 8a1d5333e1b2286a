# The benchmark as a graph: data → classifier → statistics → L^ib → guided and control → maps → scores → tables and figures.
# `snakemake --cores all` makes everything; `snakemake table3` one table; `snakemake --list-rules` says what there is.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/shapes.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/results.smk"


rule all:
    default_target: True
    input:
        TABLES,
        FIGURES,
        EFFECTS,
