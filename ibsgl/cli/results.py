"""Commands of workflow/rules/results.smk: the paper's tables and figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ibsgl.cli.app import app
from ibsgl.cli.options import Gpu, IndexFile, Records, Root, Settings, dataset, device_of, parse, write_record


@app.command()
def table(
    scores_files: Annotated[list[Path], typer.Option("--scores", help="Score files. Repeatable.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The CSV; .md and .tex go beside it.")],
    published: Annotated[Path, typer.Option("--published", help="The paper's values.")] = Path("results/published"),
    records: Records = None,
) -> None:
    """One of Tables 1–4 as CSV, Markdown and LaTeX, beside the published values."""
    from ibsgl import provenance
    from ibsgl.config.steps import Table
    from ibsgl.reporting.formats import write_table
    from ibsgl.reporting.notes import method_notes
    from ibsgl.reporting.scores import read_scores
    from ibsgl.reporting.tables import NOT_RUN, table_of_run

    started, step = time.time(), parse(Table, settings)
    config, scores = step.resolved(), read_scores(scores_files)
    built = table_of_run(scores, step.number, config, step.model, published)
    write_table(built, out, notes=method_notes(config, step.model))
    write_record(
        records,
        f"table{step.number}",
        "table",
        step.to_dict(),
        started=started,
        metrics={
            f"{row.variant}.{row.method}.{row.metric}": float(row.value)
            for row in built[built["value"] != NOT_RUN].itertuples()
        },
        tags=provenance.collect("cpu", data_digest=next(iter(scores.attrs["metadata"].values()))["data_digest"]),
        artifacts=[out, out.with_suffix(".md"), out.with_suffix(".tex")],
    )


@app.command()
def figure(
    index_file: IndexFile,
    root: Root,
    weights: Annotated[list[Path], typer.Option("--weights", help="State dicts <model>/<variant>.pt. Repeatable.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The PNG; the PDF goes beside it.")],
    gpu: Gpu = 0,
    records: Records = None,
) -> None:
    """Figure 2 (saliency of c and of p) or 3 (the target's map), before and after guidance."""
    from ibsgl import provenance
    from ibsgl.config.steps import Figure
    from ibsgl.reporting import figures
    from ibsgl.suppression import SuppressionSettings

    started, step, device = time.time(), parse(Figure, settings), device_of(gpu)
    files = {(file.parent.name, file.stem): file for file in weights}
    examples, digest = {}, None
    for model in dict.fromkeys(file.parent.name for file in weights):
        network = step.settings_of(model)
        images = dataset(index_file, root, network.image_size)
        digest = images.index.digest
        for variant in ("pretrained", "guided"):
            if (model, variant) not in files:
                raise typer.BadParameter(f"give {model}/{variant}.pt too", param_hint="--weights")
        before, after = (
            network.build(len(images.index.class_names), files[model, variant]).to(device)
            for variant in ("pretrained", "guided")
        )
        pairs = figures.choose_pairs(images.pairs("test"), step.figures.examples, step.seed)
        r = step.r[model] if step.r else SuppressionSettings().r
        examples[model] = figures.suppression_examples(before, after, images, pairs, device, r=r)
    draw = figures.figure2 if step.number == 2 else figures.figure3
    figures.save(draw(examples, seed=step.seed), out)
    write_record(
        records,
        f"figure{step.number}",
        "figure",
        step.to_dict(),
        started=started,
        metrics={},
        tags=provenance.collect(str(device), data_digest=digest),
        artifacts=[out, out.with_suffix(".pdf")],
    )


@app.command()
def figure4(
    curves_files: Annotated[
        list[Path], typer.Option("--curves", help="…/<model>/deletion/<shard>.parquet. Repeatable.")
    ],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The PNG; the PDF and the plotted values (CSV) go beside it.")],
    records: Records = None,
) -> None:
    """Figure 4: deletion curves before and after guidance, with their areas."""
    from ibsgl import provenance
    from ibsgl.config.steps import Figure4
    from ibsgl.reporting import figures
    from ibsgl.reporting.formats import write_csv

    started, step = time.time(), parse(Figure4, settings)
    curves = figures.read_curves(curves_files)
    for model in curves["model"].unique():
        step.settings_of(model)
    drawn, values = figures.figure4(curves, r=step.r, seed=step.seed, resamples=step.resamples)
    figures.save(drawn, out)
    write_csv(values, out.with_suffix(".csv"))
    areas = values.drop_duplicates(["model", "variant"])
    write_record(
        records,
        "figure4",
        "figure",
        step.to_dict(),
        started=started,
        metrics={f"{row.model}.{row.variant}.area": float(row.area) for row in areas.itertuples()},
        tags=provenance.collect("cpu"),
        artifacts=[out, out.with_suffix(".pdf"), out.with_suffix(".csv")],
    )
