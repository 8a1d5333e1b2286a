"""Commands of workflow/rules/evaluation.smk: maps of many passes, and everything that is measured on the variants."""

from __future__ import annotations

import time
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from ibsgl.cli.app import app
from ibsgl.cli.options import (
    BatchSize,
    Gpu,
    IndexFile,
    MapsFiles,
    ModelName,
    Out,
    Replicate,
    Root,
    Settings,
    Shard,
    StatisticsFile,
    Variant,
    Weights,
    WeightsFiles,
    dataset,
    device_of,
    load_bottleneck,
    load_statistics,
    parse,
    reads,
)

if TYPE_CHECKING:
    import torch


class _Options(TypedDict):
    """What every measurement needs besides its data."""

    batch_size: int
    device: torch.device


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
    """Saliency maps of one method of many passes, or of all methods of one pass, on one variant, for one shard's test pairs."""
    from ibsgl import attribution
    from ibsgl.attribution.storage import write_maps
    from ibsgl.config.steps import Maps
    from ibsgl.data.index import shard
    from ibsgl.maps import batch_to_compile, compute_maps
    from ibsgl.networks import fast_passes
    from ibsgl.seals import sealed

    step, device = parse(Maps, settings), device_of(gpu)
    methods = {name: attribution.row(name, chosen, step.precision) for name, chosen in step.methods.items()}
    images = dataset(index_file, root, step.network.image_size)
    network = step.network.build(len(images.index.class_names), weights).to(device)
    test = images.pairs("test")
    pairs = shard(test, shard_number, step.shards)
    fold, batch = step.compile == "auto", 0
    if fold:
        # A method of many passes is alone in its job. All shards are alike, so that their number changes no result.
        (row,) = methods.values()
        batch = batch_to_compile(network, row.method, images.size, test)
    shape = (batch or 1, 3, images.size, images.size)
    with (
        fast_passes(network, shape, step.precision, fold=fold, compile=bool(batch)) as passes,
        sealed(out) as temporary,
    ):
        batches = compute_maps(
            network,
            images,
            pairs,
            methods,
            seed=step.seed,
            batch_size=batch_size,
            device=device,
            statistics=load_statistics(statistics_file, device) if statistics_file else None,
            coarse=True,
        )
        write_maps(temporary, batches, methods, images.size, step.to_dict() | {"passes": passes.facts()})


@app.command()
def evaluate(
    model: ModelName,
    index_file: IndexFile,
    root: Root,
    weights: WeightsFiles,
    statistics_file: Annotated[
        Path,
        typer.Option(
            "--statistics", callback=reads("statistics"), help="Feature statistics of the pretrained network."
        ),
    ],
    bottleneck_file: Annotated[
        Path, typer.Option("--bottleneck", callback=reads("bottleneck"), help="L^ib of the held-out pairs.")
    ],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The folder of the five files. It is created.")],
    replicate: Replicate = 0,
    maps_files: MapsFiles = [],  # noqa: B006
    shard_number: Shard = 0,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Everything that is measured on all variants of one replicate, for one shard of the images.

    It makes the maps of few passes, and reads the others. It writes scores, predictions and curves of the test images, and
    losses and diagnostics of the held-out images.
    """
    import pandas as pd

    from ibsgl import attribution, provenance
    from ibsgl.attribution.storage import Maps
    from ibsgl.config.steps import Evaluate
    from ibsgl.data.index import shard
    from ibsgl.evaluation.classification import predict_variants, predictions
    from ibsgl.evaluation.held_out import diagnostics, held_out_losses
    from ibsgl.evaluation.variants import measure_variants
    from ibsgl.networks.weights import digest_state
    from ibsgl.reporting.score_files import method_settings, write_evaluation
    from ibsgl.training.variants import PRETRAINED

    started, step, device = time.time(), parse(Evaluate, settings), device_of(gpu)
    files = {file.parent.name: file for file in weights}
    if len(files) != len(weights) or files.keys() != step.methods.keys():
        raise typer.BadParameter(
            f"give one file for each of {', '.join(step.methods)}, not for {', '.join(file.parent.name for file in weights)}",
            param_hint="--weights",
        )
    images = dataset(index_file, root, step.network.image_size)
    classes = images.index.class_names
    networks = {variant: step.network.build(len(classes), file).to(device) for variant, file in files.items()}
    test, held_out, further = (
        shard(images.pairs(split), shard_number, step.shards) for split in ("test", "held_out", "further")
    )
    methods = {
        variant: {name: attribution.row(name, chosen) for name, chosen in step.methods[variant].items()}
        for variant in files
    }
    stored = {variant: Maps(of_variant, test) for variant, of_variant in by_variant(maps_files, files).items()}
    options: _Options = {"batch_size": batch_size, "device": device}
    measured = measure_variants(
        networks,
        images,
        test,
        methods,
        stored,
        step.metrics,
        step.deletion,
        r=step.r,
        seed=step.seed,
        reference=PRETRAINED,
        statistics=load_statistics(statistics_file, device),
        **options,
    )
    of_split = [measured.predictions]
    if further_ids := further["image_id"].drop_duplicates().tolist():
        logits = predict_variants(networks, images, further_ids, **options)
        of_split.append(predictions(images, "further", further_ids, logits))
    # The file has the maps of the whole split. A shard's index is that of the split.
    own, other = (
        l_ib[held_out.index.tolist()] for l_ib in load_bottleneck(bottleneck_file, "held_out", "held_out_other")
    )
    labels = {name: label for maps in stored.values() for name, label in maps.labels.items()} | step.labels
    labels |= {name: row.label for of_variant in methods.values() for name, row in of_variant.items()}
    write_evaluation(
        out,
        scores=measured.scores,
        losses=held_out_losses(networks, images, held_out, own, r=step.r, cross_entropy=step.cross_entropy, **options),
        predictions=pd.concat(of_split, ignore_index=True),
        curves=measured.curves,
        diagnostics=diagnostics(networks[PRETRAINED], images, held_out, own, other, **options),
        model=model,
        replicate=replicate,
        arch=step.network.arch,
        labels=labels,
        settings=method_settings(step.to_dict(), {variant: maps.settings for variant, maps in stored.items()}),
        seed=step.seed,
        tags=provenance.collect(
            str(device),
            data_digest=images.index.digest,
            weights_digest={variant: digest_state(network.state_dict()) for variant, network in networks.items()},
            class_names=list(classes),
        ),
        started=started,
    )


@app.command()
def metric(
    model: ModelName,
    variant: Variant,
    index_file: IndexFile,
    root: Root,
    settings: Settings,
    out: Out,
    maps_files: MapsFiles,
    replicate: Replicate = 0,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", callback=reads("weights"), help="State dict, if the metric requires the network."),
    ] = None,
    statistics_file: StatisticsFile = None,
    shard_number: Shard = 0,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """One further metric of all stored maps of one variant, for the test pairs of one shard."""
    from ibsgl import attribution, provenance
    from ibsgl.attribution.storage import Maps
    from ibsgl.config.steps import Metric
    from ibsgl.data.index import shard
    from ibsgl.evaluation.further import measure_further
    from ibsgl.metrics import further
    from ibsgl.networks.weights import digest_state
    from ibsgl.reporting.metric_files import write_metric

    started, step, device = time.time(), parse(Metric, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    stored = Maps(maps_files, shard(images.pairs("test"), shard_number, step.shards))
    network = step.network.build(len(images.index.class_names), weights).to(device) if weights else None
    chosen = step.methods or {}
    table, reasons = measure_further(
        further.get(step.metric, **step.settings),
        step.metric,
        images,
        stored,
        seed=step.seed,
        batch_size=batch_size,
        device=device,
        network=network,
        methods={name: attribution.row(name, of_method, step.precisions[name]) for name, of_method in chosen.items()},
        statistics=load_statistics(statistics_file, device) if statistics_file else None,
    )
    facts = {
        "model": model,
        "replicate": replicate,
        "variant": variant,
        "reasons": reasons,
        "settings": step.to_dict(),
        "started": started,
        "seconds": time.time() - started,
    }
    digests: dict[str, Any] = {"data_digest": images.index.digest, "class_names": list(images.index.class_names)}
    if network is not None:
        digests["weights_digest"] = digest_state(network.state_dict())
    write_metric(out, table, provenance.collect(str(device), **digests) | facts)


def by_variant(maps_files: list[Path], variants: Container[str]) -> dict[str, list[Path]]:
    """The files …/<variant>/maps/<method>/<shard>.parquet, by variant."""
    found: dict[str, list[Path]] = {}
    for file in maps_files:
        names = file.parts[-4:]
        if len(names) < 4 or names[1] != "maps" or names[0] not in variants:
            raise typer.BadParameter(f"{file} is not …/<variant>/maps/<method>/<shard>.parquet", param_hint="--maps")
        found.setdefault(names[0], []).append(file)
    return found
