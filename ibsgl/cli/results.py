"""Commands of workflow/rules/results.smk: the paper's tables and figures, and the verdicts on its claims."""

from __future__ import annotations

import time
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ibsgl.cli.app import app
from ibsgl.cli.options import (
    Evaluations,
    Gpu,
    IndexFile,
    ModelName,
    Records,
    Root,
    Settings,
    dataset,
    device_of,
    parse,
    reads,
    write_record,
)

if TYPE_CHECKING:
    from ibsgl.reporting.measurements import Measurements

Published = Annotated[Path, typer.Option("--published", help="The paper's values and claims.")]


def read_models(evaluations: list[Path]) -> dict[str, Measurements]:
    """The measurements in the folders …/<model>/<replicate>/evaluation/<shard>, by model."""
    from ibsgl.reporting.measurements import read_measurements

    folders: dict[str, list[Path]] = {}
    for folder in evaluations:
        if len(folder.parts) < 4:
            raise typer.BadParameter(
                f"{folder} is not …/<model>/<replicate>/evaluation/<shard>", param_hint="--evaluation"
            )
        folders.setdefault(folder.parts[-4], []).append(folder)
    return {model: read_measurements(of_model) for model, of_model in folders.items()}


def write_evaluation_records(records: Path, measurements: Measurements, methods: Container[str] | None = None) -> None:
    """A record for each replicate, variant and method (only ``methods``, if given): the means of what was measured."""
    rows = measurements.scores
    own = rows[rows["scored_on"] == rows["variant"]]
    if methods is not None:
        own = own[[method in methods for method in own["method"]]]
    measured = [column for column in own.columns if own[column].dtype.kind == "f"]
    settings = measurements.metadata["settings"]
    for (replicate, variant, method), of_method in own.groupby(["replicate", "variant", "method"], sort=False):
        facts = measurements.metadata["replicates"][replicate]
        write_record(
            records,
            f"{measurements.model}/{replicate}/{variant}/{method}",
            "evaluation",
            settings[f"{variant}/{method}"],
            started=facts["started"],
            seconds=facts["seconds"],
            metrics=of_method[measured].mean().to_dict(),
            tags={key: facts[key] for key in facts if key not in _OWN_FACTS},
        )


# Facts of an evaluation that are not tags of its records.
_OWN_FACTS = {"settings", "labels", "started", "seconds", "seed", "model", "replicate"}


@app.command()
def tables(
    model: ModelName,
    index_file: IndexFile,
    evaluations: Evaluations,
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The folder of the tables.")],
    published: Published = Path("results/published"),
    records: Records = None,
) -> None:
    """Two of Tables 1–4 beside the published values, the comparisons of the variants, and the tables that explain them."""
    import pandas as pd

    from ibsgl import provenance
    from ibsgl.config.steps import Tables
    from ibsgl.reporting.classification import classification_table
    from ibsgl.reporting.comparisons import comparison_table, cross_scoring_table, diagnostics_table
    from ibsgl.reporting.formats import write_comparisons_markdown, write_csv, write_table
    from ibsgl.reporting.measurements import read_measurements
    from ibsgl.reporting.notes import method_notes, pass_notes, variant_notes
    from ibsgl.reporting.tables import NOT_RUN, table_of_run

    started, step = time.time(), parse(Tables, settings)
    config, measurements = step.resolved(), read_measurements(evaluations)
    average, variants = config.tables.average, config.variant_names
    tags = provenance.collect("cpu", data_digest=measurements.metadata["data_digest"])
    place = list(config.models).index(model)
    for number in (place + 1, place + 3):
        built = table_of_run(measurements, number, config, model, published)
        csv = out / f"table{number}.csv"
        write_table(built, csv, notes=[*method_notes(config, model), *pass_notes(measurements)])
        write_record(
            records,
            f"table{number}",
            "table",
            step.to_dict(),
            started=started,
            metrics={
                f"{row.variant}.{row.method}.{row.metric}": float(row.value)
                for row in built[built["value"] != NOT_RUN].itertuples()
            },
            tags=tags,
            artifacts=[csv, csv.with_suffix(".md"), csv.with_suffix(".tex")],
        )
    compared = comparison_table(measurements, variants, multilabel=config.data.multilabel, average=average)
    csv = out / f"comparisons_{model}.csv"
    write_csv(compared, csv)
    notes = [*variant_notes(config, model), *pass_notes(measurements)]
    write_comparisons_markdown(compared, csv.with_suffix(".md"), model=model, notes=notes)
    # Only what the index says about the images is read here, no image.
    images = dataset(index_file, Path(), 1)
    difficult = pd.DataFrame(images.difficult("test").numpy(), index=pd.Index(images.ids("test"), name="image_id"))
    others = {
        "classification": classification_table(measurements, difficult, multilabel=config.data.multilabel),
        "cross_scoring": cross_scoring_table(measurements, variants, average=average),
        "diagnostics": diagnostics_table(measurements),
    }
    for name, table in others.items():
        write_csv(table, out / f"{name}_{model}.csv")
    diagnosed = others["diagnostics"].dropna(subset="value")
    write_record(
        records,
        f"comparisons_{model}",
        "table",
        step.to_dict(),
        started=started,
        metrics={f"{row.comparison}.{row.metric}": float(row.value) for row in compared.itertuples()}
        | {f"diagnostics.{row.quantity}": float(row.value) for row in diagnosed.itertuples()},
        tags=tags,
        artifacts=[csv, csv.with_suffix(".md"), *(out / f"{name}_{model}.csv" for name in others)],
    )
    if records is not None:
        write_evaluation_records(records, measurements)


@app.command()
def metrics(
    model: ModelName,
    evaluations: Evaluations,
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The table as CSV; .md goes beside it.")],
    plot: Annotated[Path, typer.Option("--plot", help="The plot (PNG); the PDF and its values (CSV) go beside it.")],
    files: Annotated[
        list[Path],
        typer.Option(
            "--metric",
            callback=reads("metric"),
            help="Values of a further metric: <variant>/metrics/<metric>/<shard>.parquet. Repeatable.",
        ),
    ],
    published: Published = Path("results/published"),
    records: Records = None,
) -> None:
    """The further metrics of one network with ranks, and how far the metrics' rankings of the methods agree."""
    from ibsgl import provenance
    from ibsgl.config.steps import Metrics
    from ibsgl.reporting import figures
    from ibsgl.reporting.formats import write_csv, write_metrics_markdown
    from ibsgl.reporting.measurements import read_measurements
    from ibsgl.reporting.metric_files import read_metrics
    from ibsgl.reporting.metric_table import agreement_table, check_run, metric_notes, metric_table
    from ibsgl.reporting.notes import pass_notes, row_notes
    from ibsgl.reporting.tables import deviations_of_run

    started, step = time.time(), parse(Metrics, settings)
    config, measurements = step.resolved(), read_measurements(evaluations)
    values = read_metrics(files)
    check_run(values, measurements)
    table = metric_table(values, measurements, config, model, published)
    agreement = agreement_table(table, measurements, config)
    write_csv(table, out)
    write_metrics_markdown(
        table,
        out.with_suffix(".md"),
        model=model,
        deviations=deviations_of_run(measurements, config, model, published),
        notes=[*metric_notes(table, config), *row_notes(config), *pass_notes(measurements)],
    )
    write_csv(agreement, plot.with_suffix(".csv"))
    figures.save(figures.agreement_figure(agreement, model=model), plot)
    write_record(
        records,
        f"metrics_{model}",
        "table",
        step.to_dict(),
        started=started,
        metrics={
            f"{row.variant}.{row.method}.{row.metric}": float(row.value)
            for row in table.dropna(subset="value").itertuples()
        },
        tags=provenance.collect("cpu", data_digest=measurements.metadata["data_digest"]),
        artifacts=[out, out.with_suffix(".md"), *(plot.with_suffix(kind) for kind in (".png", ".pdf", ".csv"))],
    )


@app.command()
def claims(
    evaluations: Evaluations,
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The verdicts as CSV; .md goes beside it.")],
    published: Published = Path("results/published"),
    records: Records = None,
) -> None:
    """The verdict on each claim of the paper: effect, interval, every replicate's value, and one sentence."""
    from ibsgl import provenance
    from ibsgl.config.steps import Claims
    from ibsgl.reporting.claim_texts import write_claims
    from ibsgl.reporting.claims import evaluate_claims, read_claims
    from ibsgl.reporting.tables import deviations_of_run

    started, step = time.time(), parse(Claims, settings)
    config, measured = step.resolved(), read_models(evaluations)
    table = evaluate_claims(
        read_claims(published),
        measured,
        config.variant_names,
        data=config.data_name,
        deviations={model: deviations_of_run(of, config, model, published) for model, of in measured.items()},
        multilabel=config.data.multilabel,
        average=config.tables.average,
    )
    write_claims(table, out)
    write_record(
        records,
        "claims",
        "table",
        step.to_dict(),
        started=started,
        metrics={f"{row.model}.{row.claim}": float(row.effect) for row in table.dropna(subset="effect").itertuples()},
        tags=provenance.collect("cpu", data_digest=next(iter(measured.values())).metadata["data_digest"]),
        artifacts=[out, out.with_suffix(".md")],
    )


@app.command()
def sensitivity(
    evaluations: Evaluations,
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The changes as CSV; .md and the plots (PNG, PDF) go beside it.")],
    alternatives: Annotated[
        list[Path],
        # Its data and networks may be others.
        typer.Option(
            "--alternative",
            callback=reads(None),
            help="…/<alternative>/<model>/<replicate>/evaluation/<shard>. Repeatable.",
        ),
    ] = [],  # noqa: B006
    published: Published = Path("results/published"),
    records: Records = None,
) -> None:
    """How much every alternative changes the effects behind the claims: a table and tornado plots."""
    from ibsgl import provenance
    from ibsgl.config.steps import Sensitivity
    from ibsgl.reporting import figures
    from ibsgl.reporting.claims import read_claims
    from ibsgl.reporting.sensitivity import sensitivity_table, tornado, write_sensitivity

    started, step = time.time(), parse(Sensitivity, settings)
    config = step.resolved()
    # What an alternative did not measure anew is that of the base.
    folders: dict[str, dict[tuple[str, ...], Path]] = {}
    base = {folder.parts[-4:]: folder for folder in evaluations}
    for folder in alternatives:
        if len(folder.parts) < 5:
            raise typer.BadParameter(f"{folder} is not …/<alternative>/<model>/…", param_hint="--alternative")
        folders.setdefault(folder.parts[-5], dict(base))[folder.parts[-4:]] = folder
    measured = {name: read_models(list(of_alternative.values())) for name, of_alternative in folders.items()}
    table = sensitivity_table(read_claims(published), config, read_models(evaluations), measured)
    write_sensitivity(table, out)
    figures.save(tornado(table), out.with_suffix(".png"))
    write_record(
        records,
        "sensitivity",
        "table",
        step.to_dict(),
        started=started,
        metrics={},
        tags=provenance.collect("cpu"),
        artifacts=[out, *(out.with_suffix(kind) for kind in (".md", ".png", ".pdf"))],
    )
    if records is None:
        return
    for name, model in dict.fromkeys((folder.parts[-5], folder.parts[-4]) for folder in alternatives):
        # Eq. 3 only. All methods of all alternatives would be about a thousand runs, which MLflow needs minutes to log.
        place = records.parent / "alternatives" / name / records.name
        write_evaluation_records(place, measured[name][model], methods={"gradient"})


@app.command()
def measured(
    table: Annotated[
        Path,
        typer.Option(
            "--table", callback=reads("table", ".md"), help="claims.csv or sensitivity.csv, with .md beside it."
        ),
    ],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The page (Markdown); the CSV goes beside it.")],
) -> None:
    """The answer of a run as a page of the documentation, with the config's digest and versions."""
    import shutil

    from ibsgl import provenance
    from ibsgl.config.steps import Claims, Sensitivity
    from ibsgl.files import written

    steps: dict[str, type[Claims | Sensitivity]] = {"claims.csv": Claims, "sensitivity.csv": Sensitivity}
    if table.name not in steps:
        raise typer.BadParameter(f"{table} is not one of {', '.join(steps)}", param_hint="--table")
    step, facts = parse(steps[table.name], settings), provenance.collect("cpu")
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("python", "torch", "ibsgl"))
    title, _, text = table.with_suffix(".md").read_text(encoding="utf-8").partition("\n")
    lines = [
        f"{title}: `{step.config['name']}`",
        "",
        f"From `{table}`. The page was written on {facts['device']}, with {versions}.",
        f"SHA-256 of the config and of the code of the {table.stem}: `{step.digest()}`.",
    ]
    with written(out) as temporary:
        temporary.write_text("\n".join([*lines, text]), encoding="utf-8")
    with written(out.with_suffix(".csv")) as temporary:
        shutil.copyfile(table, temporary)


@app.command()
def figure(
    index_file: IndexFile,
    root: Root,
    weights: Annotated[
        list[Path],
        typer.Option(
            "--weights",
            callback=reads("weights"),
            help="State dicts <model>/<replicate>/<variant>/network.pt. Repeatable.",
        ),
    ],
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
    files = {(file.parents[2].name, file.parent.name): file for file in weights}
    examples, digest = {}, None
    for model in dict.fromkeys(model for model, _ in files):
        network = step.settings_of(model)
        images = dataset(index_file, root, network.image_size)
        digest = images.index.digest
        for variant in ("pretrained", "guided"):
            if (model, variant) not in files:
                raise typer.BadParameter(f"give {variant}/network.pt of {model} too", param_hint="--weights")
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
    evaluations: Evaluations,
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
    curves = figures.read_curves(evaluations)
    for model in curves["model"].unique():
        step.settings_of(model)
    drawn, values = figures.figure4(curves, r=step.r)
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
