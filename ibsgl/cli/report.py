"""Commands of workflow/rules/report.smk: the report, and the thumbnails of its map browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ibsgl.cli.app import app
from ibsgl.cli.evaluation import by_variant
from ibsgl.cli.options import (
    BatchSize,
    Evaluations,
    Gpu,
    IndexFile,
    MapsFiles,
    Root,
    Settings,
    StatisticsFile,
    WeightsFiles,
    dataset,
    device_of,
    load_statistics,
    parse,
    reads,
)
from ibsgl.cli.results import Published, read_models


@app.command()
def thumbnails(
    index_file: IndexFile,
    root: Root,
    weights: WeightsFiles,
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The folder of the pictures. It is created.")],
    statistics_file: StatisticsFile = None,
    maps_files: MapsFiles = [],  # noqa: B006
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Pictures of a sample of the test images with all their maps, for the report's map browser."""
    from ibsgl import attribution
    from ibsgl.attribution.storage import Maps
    from ibsgl.config.steps import Thumbnails
    from ibsgl.data.index import shard
    from ibsgl.reporting.page.thumbnails import choose_images, maps_of_sample, write_thumbnails

    step, device = parse(Thumbnails, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    files = {file.parent.name: file for file in weights}
    networks = {
        variant: step.network.build(len(images.index.class_names), file).to(device) for variant, file in files.items()
    }
    methods = {
        variant: {name: attribution.row(name, chosen) for name, chosen in step.methods[variant].items()}
        for variant in networks
    }
    test = images.pairs("test")
    stored = {}
    for variant, of_variant in by_variant(maps_files, networks).items():
        shards: dict[int, list[Path]] = {}
        for file in of_variant:
            shards.setdefault(int(file.stem), []).append(file)
        stored[variant] = [Maps(of_shard, shard(test, number, step.shards)) for number, of_shard in shards.items()]
    labels: dict[str, str] = {}
    for shards_of_variant in stored.values():
        for maps in shards_of_variant:
            labels |= maps.labels
    labels |= step.labels
    labels |= {name: row.label for of_variant in methods.values() for name, row in of_variant.items()}
    batches = maps_of_sample(
        networks,
        images,
        choose_images(test, step.images, step.seed),
        methods,
        stored,
        seed=step.seed,
        batch_size=batch_size,
        device=device,
        statistics=load_statistics(statistics_file, device) if statistics_file else None,
    )
    write_thumbnails(out, batches, labels)


@app.command()
def report(
    evaluations: Evaluations,
    settings: Settings,
    claims_file: Annotated[Path, typer.Option("--claims", callback=reads("claims"), help="claims.csv.")],
    out: Annotated[Path, typer.Option("--out", help="The page: …/index.html. What it loads goes beside it.")],
    table_files: Annotated[
        list[Path],
        typer.Option(
            "--table",
            callback=reads("table", ".md"),
            help="table<number>.csv, comparisons_<model>.csv or metrics_<model>.csv, with .md beside it. Repeatable.",
        ),
    ] = [],  # noqa: B006
    figure_files: Annotated[
        list[Path],
        typer.Option(
            "--figure", callback=reads("figure", ".pdf"), help="A figure (PNG), with PDF beside it. Repeatable."
        ),
    ] = [],  # noqa: B006
    published: Published = Path("results/published"),
    records: Annotated[Path | None, typer.Option("--records", help="The run's records.")] = None,
) -> None:
    """The report of a run: the answer, the tables, the figures and a browser of the maps, as a static page.

    The pictures of the maps are in the folder maps/<model> beside the page; ibsgl thumbnails makes them.
    """
    import yaml

    from ibsgl import provenance, seals
    from ibsgl.config.steps import Report
    from ibsgl.files import written
    from ibsgl.reporting import figures
    from ibsgl.reporting.page import build, content

    step = parse(Report, settings)
    config, measured = step.resolved(), read_models(evaluations)
    found = provenance.read_records(records) if records else []
    drawn = list(figure_files)
    build.copy_figures(drawn, out.parent / "figures")
    curves = content.histories(found)
    if not curves.empty:
        drawn.append(out.parent / "figures" / "training.png")
        figures.save(figures.training_curves(curves), drawn[-1])
    with written(out.parent / "config.yaml") as temporary:
        temporary.write_text(
            yaml.safe_dump(step.config, sort_keys=False, allow_unicode=True), encoding="utf-8", newline="\n"
        )
    for model in measured:
        seals.check(out.parent / "maps" / model, "thumbnails")
    maps = {model: content.browser(out.parent / "maps" / model, of.scores) for model, of in measured.items()}
    context = content.page_context(
        config,
        measured,
        maps,
        claims=claims_file,
        tables=table_files,
        figures=drawn,
        records=found,
        published=published,
    )
    build.write_page(out, context, maps)
