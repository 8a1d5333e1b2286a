"""Commands of workflow/rules/evaluation.smk: maps, their scores, and deletion curves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ibsgl.cli.app import app
from ibsgl.cli.options import (
    BatchSize,
    Gpu,
    IndexFile,
    ModelName,
    Out,
    Records,
    Root,
    Settings,
    Shard,
    StatisticsFile,
    Variant,
    Weights,
    WeightsFiles,
    dataset,
    device_of,
    load_statistics,
    parse,
    write_record,
)


@app.command()
def maps(
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    settings: Settings,
    out: Out,
    shard_number: Shard = 0,
    statistics_file: StatisticsFile = None,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Saliency maps of one or several methods on one variant for the test pairs of one shard."""
    from ibsgl import attribution
    from ibsgl.attribution.storage import write_maps
    from ibsgl.config.steps import Maps
    from ibsgl.data.index import shard
    from ibsgl.files import written
    from ibsgl.maps import compute_maps

    step, device = parse(Maps, settings), device_of(gpu)
    methods = {name: attribution.get(name, **chosen) for name, chosen in step.methods.items()}
    images = dataset(index_file, root, step.network.image_size)
    batches = compute_maps(
        step.network.build(len(images.index.class_names), weights).to(device),
        images,
        shard(images.pairs("test"), shard_number, step.shards),
        methods,
        seed=step.seed,
        batch_size=batch_size,
        device=device,
        statistics=load_statistics(statistics_file, device) if statistics_file else None,
    )
    with written(out) as temporary:
        write_maps(temporary, batches, methods, images.size, step.to_dict())


@app.command()
def scores(
    model: ModelName,
    variant: Variant,
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    maps_files: Annotated[list[Path], typer.Option("--maps", help="Maps: …/<group>/<shard>.parquet. Repeatable.")],
    settings: Settings,
    out: Out,
    shard_number: Shard = 0,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Every metric of the maps of one shard: one row per (method, image, class)."""
    from ibsgl import provenance
    from ibsgl.attribution.storage import Maps
    from ibsgl.config.steps import Scores
    from ibsgl.data.index import shard
    from ibsgl.evaluation.scoring import score_maps
    from ibsgl.networks.weights import digest_state
    from ibsgl.reporting.score_files import write_scores

    started, step, device = time.time(), parse(Scores, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    network = step.network.build(len(images.index.class_names), weights).to(device)
    stored = Maps(maps_files, shard(images.pairs("test"), shard_number, step.shards))
    write_scores(
        out,
        score_maps(network, images, stored, step.metrics, batch_size=batch_size, device=device),
        model=model,
        variant=variant,
        arch=step.network.arch,
        labels=stored.labels,
        made_with=stored.settings,
        scored_with=step.to_dict(),
        tags=provenance.collect(
            str(device),
            data_digest=images.index.digest,
            weights_digest=digest_state(network.state_dict()),
            class_names=list(images.index.class_names),
        ),
        started=started,
    )


@app.command()
def evaluation(
    scores_files: Annotated[list[Path], typer.Option("--scores", help="Scores of every shard. Repeatable.")],
    out: Out,
    records: Records = None,
) -> None:
    """One variant's scores: those of the shards in one file, and a record for each method."""
    from ibsgl.reporting.scores import combine_scores

    combined = combine_scores(scores_files)
    combined.write(out)
    for method, means in combined.means.items():
        write_record(
            records,
            f"{combined.model}/{combined.variant}/{method}",
            "evaluation",
            combined.settings[method],
            started=combined.started,
            seconds=combined.seconds,
            metrics=means,
            tags=combined.tags,
            artifacts=[out],
        )


@app.command()
def deletion(
    index_file: IndexFile,
    root: Root,
    weights: WeightsFiles,
    maps_files: Annotated[list[Path], typer.Option("--maps", help="Eq. 3 maps, a file for each of --weights.")],
    settings: Settings,
    out: Out,
    shard_number: Shard = 0,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Deletion curves of every variant's own gradient maps, for the test pairs of one shard (Figure 4)."""
    import pandas as pd

    from ibsgl.attribution.storage import Maps
    from ibsgl.config.steps import Deletion
    from ibsgl.data.index import shard
    from ibsgl.evaluation.deletion import deletion_curves
    from ibsgl.files import written

    step, device = parse(Deletion, settings), device_of(gpu)
    if len(weights) != len(maps_files):
        raise typer.BadParameter(f"{len(weights)} state dicts and {len(maps_files)} files of maps", param_hint="--maps")
    images = dataset(index_file, root, step.network.image_size)
    pairs = shard(images.pairs("test"), shard_number, step.shards)
    curves = [
        deletion_curves(
            step.network.build(len(images.index.class_names), file).to(device),
            images,
            Maps([maps_file], pairs, ["gradient"]),
            step.deletion,
            r=step.r,
            seed=step.seed,
            batch_size=batch_size,
            device=device,
        ).assign(variant=file.stem)
        for file, maps_file in zip(weights, maps_files, strict=True)
    ]
    with written(out) as temporary:
        pd.concat(curves, ignore_index=True).to_parquet(temporary)
