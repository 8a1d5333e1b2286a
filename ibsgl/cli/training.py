"""Commands of workflow/rules/training.smk: the networks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ibsgl.cli.app import app
from ibsgl.cli.options import (
    BatchSize,
    BottleneckFile,
    Gpu,
    IndexFile,
    ModelName,
    Out,
    Records,
    Root,
    Settings,
    StatisticsFile,
    Variant,
    Weights,
    dataset,
    device_of,
    load_bottleneck,
    load_statistics,
    parse,
    write_record,
)


@app.command()
def classifier(
    model: ModelName,
    index_file: IndexFile,
    root: Root,
    settings: Settings,
    out: Out,
    gpu: Gpu = 0,
    records: Records = None,
) -> None:
    """Train the network to be explained (equation 2), or with no epochs keep it as it is."""
    from ibsgl import provenance, seals
    from ibsgl.config.steps import Classifier
    from ibsgl.networks.weights import digest_state
    from ibsgl.training.classifier import starting_network, train_classifier
    from ibsgl.training.scores import classification_scores

    started, step, device = time.time(), parse(Classifier, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    network = starting_network(
        step.network, images.index.class_names, model=model, seed=step.training_seed, epochs=step.training.epochs
    ).to(device)
    start = step.network.weights_file
    checkpoint = out.with_suffix(".checkpoint")
    history = train_classifier(
        network,
        images,
        step.training,
        name=f"{model} classifier {step.replicate}",
        seed=step.training_seed,
        device=device,
        checkpoint=checkpoint,
        digest=step.digest(images.index.digest, device.type, *([provenance.digest_file(start)] if start else [])),
    )
    scores = classification_scores(network, images, "test", step.training.batch_size, device)
    seals.save_tensors(out, network.state_dict())
    write_record(
        records,
        f"{model}/{step.replicate}/pretrained",
        "training",
        step.to_dict(),
        started=started,
        metrics={f"test_{key}": value for key, value in scores.items()},
        history=history,
        tags=provenance.collect(
            str(device), data_digest=images.index.digest, weights_digest=digest_state(network.state_dict())
        ),
    )
    seals.remove(checkpoint)
    key, value = next(iter(scores.items()))
    typer.echo(f"{model} classifier {step.replicate}: test {key} {value:.4f}")


@app.command()
def bottleneck(
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    settings: Settings,
    statistics_out: Annotated[Path, typer.Option("--statistics", help="The feature statistics of the network.")],
    out: Out,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Feature statistics (Section 3.2), and L^ib of every training and held-out pair (equations 4-9)."""
    from ibsgl.config.steps import BottleneckMaps
    from ibsgl.precompute import bottleneck_maps, feature_statistics, other_targets
    from ibsgl.seals import save_tensors

    step, device = parse(BottleneckMaps, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    network = step.network.build(len(images.index.class_names), weights).to(device)
    statistics = feature_statistics(network, images, batch_size, device)
    held_out = images.pairs("held_out")
    # L^ib of the likeliest other class shows whether the bottleneck depends on the class at all.
    other = held_out.assign(target=other_targets(network, images, held_out, batch_size, device).numpy())
    maps = {
        name: bottleneck_maps(
            network,
            images,
            pairs,
            step.bottleneck,
            statistics.to(device),
            seed=step.seed,
            batch_size=batch_size,
            device=device,
        )
        for name, pairs in (("train", images.pairs("train")), ("held_out", held_out), ("held_out_other", other))
    }
    save_tensors(statistics_out, statistics.to("cpu").state_dict())
    save_tensors(out, maps)


@app.command()
def guide(
    model: ModelName,
    variant: Variant,
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    settings: Settings,
    out: Out,
    bottleneck_file: BottleneckFile = None,
    statistics_file: StatisticsFile = None,
    gpu: Gpu = 0,
    records: Records = None,
) -> None:
    """Train a variant: with guidance, or as the control, whose settings have no guidance."""

    from ibsgl import provenance, seals
    from ibsgl.config.steps import Guide
    from ibsgl.networks.weights import digest_state
    from ibsgl.training.guided import collapsed, train_guided
    from ibsgl.training.scores import classification_scores

    started, step, device = time.time(), parse(Guide, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    network = step.network.build(len(images.index.class_names), weights).to(device)
    before = classification_scores(network, images, "test", step.training.batch_size, device)
    checkpoint = out.with_suffix(".checkpoint")
    # A file that the settings have no use for must not change the result.
    bottleneck_file = bottleneck_file if step.bottleneck_of == "pretrained" else None
    statistics_file = statistics_file if step.bottleneck_of == "current" else None
    inputs = [file for file in (weights, bottleneck_file, statistics_file) if file]
    history = train_guided(
        network,
        images,
        step.training,
        guidance=step.guidance,
        suppression=step.suppression,
        l_ib=load_bottleneck(bottleneck_file, "train")[0] if bottleneck_file else None,
        bottleneck=step.bottleneck,
        statistics=load_statistics(statistics_file, device) if statistics_file else None,
        name=f"{model} {variant} {step.replicate}",
        seed=step.training_seed,
        noise_seed=step.seed,
        device=device,
        checkpoint=checkpoint,
        digest=step.digest(images.index.digest, device.type, *map(provenance.digest_file, inputs)),
    )
    after = classification_scores(network, images, "test", step.training.batch_size, device)
    seals.save_tensors(out, network.state_dict())
    key = next(iter(before))
    write_record(
        records,
        f"{model}/{step.replicate}/{variant}",
        "training",
        step.to_dict(),
        started=started,
        metrics={f"test_{key}_before": before[key], "collapsed": float(collapsed(history))}
        | {f"test_{name}": value for name, value in after.items()},
        history=history,
        tags=provenance.collect(
            str(device), data_digest=images.index.digest, weights_digest=digest_state(network.state_dict())
        ),
    )
    seals.remove(checkpoint)
    typer.echo(f"{model} {variant} {step.replicate}: test {key} {before[key]:.4f} before, {after[key]:.4f} after")
