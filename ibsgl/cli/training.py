"""Commands of workflow/rules/training.smk: the networks, and whether guidance did what it optimises."""

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
    StatisticsFile,
    Weights,
    WeightsFiles,
    dataset,
    device_of,
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
    from ibsgl import provenance
    from ibsgl.config.steps import Classifier
    from ibsgl.files import save_tensors
    from ibsgl.networks.weights import digest_state
    from ibsgl.training.classifier import starting_network, train_classifier
    from ibsgl.training.scores import classification_scores

    started, step, device = time.time(), parse(Classifier, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    network = starting_network(
        step.network, images.index.class_names, model=model, seed=step.seed, epochs=step.training.epochs
    ).to(device)
    start = step.network.weights_file
    checkpoint = out.with_suffix(".checkpoint")
    history = train_classifier(
        network,
        images,
        step.training,
        name=f"{model} classifier",
        seed=step.seed,
        device=device,
        checkpoint=checkpoint,
        digest=step.digest(images.index.digest, device.type, *([provenance.digest_file(start)] if start else [])),
    )
    scores = classification_scores(network, images, "test", step.training.batch_size, device)
    save_tensors(out, network.state_dict())
    write_record(
        records,
        f"{model}/classifier",
        "training",
        step.to_dict(),
        started=started,
        metrics={f"test_{key}": value for key, value in scores.items()},
        history=history,
        tags=provenance.collect(
            str(device), data_digest=images.index.digest, weights_digest=digest_state(network.state_dict())
        ),
    )
    checkpoint.unlink(missing_ok=True)
    key, value = next(iter(scores.items()))
    typer.echo(f"{model}: test {key} {value:.4f}")


@app.command()
def statistics(
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    settings: Settings,
    out: Out,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Mean and standard deviation of the feature map over the training images (Section 3.2)."""
    from ibsgl.config.steps import Statistics
    from ibsgl.files import save_tensors
    from ibsgl.precompute import feature_statistics

    step, device = parse(Statistics, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    network = step.network.build(len(images.index.class_names), weights).to(device)
    save_tensors(out, feature_statistics(network, images, batch_size, device).state_dict())


@app.command()
def bottleneck(
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    statistics_file: Annotated[Path, typer.Option("--statistics", help="Feature statistics of the network.")],
    settings: Settings,
    out: Out,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """L^ib of every training and held-out pair, for the guidance (equations 4–9)."""
    from ibsgl.config.steps import BottleneckMaps
    from ibsgl.files import save_tensors
    from ibsgl.precompute import bottleneck_maps

    step, device = parse(BottleneckMaps, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    network = step.network.build(len(images.index.class_names), weights).to(device)
    known = load_statistics(statistics_file, device)
    maps = {
        split: bottleneck_maps(
            network,
            images,
            images.pairs(split),
            step.bottleneck,
            known,
            seed=step.seed,
            batch_size=batch_size,
            device=device,
        )
        for split in ("train", "held_out")
    }
    save_tensors(out, maps)


@app.command()
def guide(
    model: ModelName,
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    settings: Settings,
    out: Out,
    bottleneck_file: Annotated[Path | None, typer.Option("--bottleneck", help="L^ib of the training pairs.")] = None,
    statistics_file: StatisticsFile = None,
    gpu: Gpu = 0,
    records: Records = None,
) -> None:
    """Guided training (Algorithm 1), or its control, whose settings have no guidance."""
    import torch

    from ibsgl import provenance
    from ibsgl.config.steps import Guide
    from ibsgl.files import save_tensors
    from ibsgl.networks.weights import digest_state
    from ibsgl.training.guided import train_guided
    from ibsgl.training.scores import classification_scores

    started, step, device = time.time(), parse(Guide, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    network = step.network.build(len(images.index.class_names), weights).to(device)
    before = classification_scores(network, images, "test", step.training.batch_size, device)
    checkpoint = out.with_suffix(".checkpoint")
    # A file that the settings have no use for must not change the result.
    bottleneck_file = bottleneck_file if step.guidance and not step.current_bottleneck else None
    statistics_file = statistics_file if step.current_bottleneck else None
    inputs = [file for file in (weights, bottleneck_file, statistics_file) if file]
    history = train_guided(
        network,
        images,
        step.training,
        guidance=step.guidance,
        suppression=step.suppression,
        l_ib=torch.load(bottleneck_file, weights_only=True)["train"] if bottleneck_file else None,
        bottleneck=step.bottleneck,
        statistics=load_statistics(statistics_file, device) if statistics_file else None,
        name=f"{model} {step.variant}",
        seed=step.seed,
        device=device,
        checkpoint=checkpoint,
        digest=step.digest(images.index.digest, device.type, *map(provenance.digest_file, inputs)),
    )
    after = classification_scores(network, images, "test", step.training.batch_size, device)
    save_tensors(out, network.state_dict())
    key = next(iter(before))
    write_record(
        records,
        f"{model}/{step.variant}",
        "training",
        step.to_dict(),
        started=started,
        metrics={f"test_{key}_before": before[key]} | {f"test_{name}": value for name, value in after.items()},
        history=history,
        tags=provenance.collect(
            str(device), data_digest=images.index.digest, weights_digest=digest_state(network.state_dict())
        ),
    )
    checkpoint.unlink(missing_ok=True)
    typer.echo(f"{model} {step.variant}: test {key} {before[key]:.4f} before, {after[key]:.4f} after")


@app.command()
def effect(
    model: ModelName,
    index_file: IndexFile,
    root: Root,
    weights: WeightsFiles,
    bottleneck_file: Annotated[Path, typer.Option("--bottleneck", help="L^ib of the held-out pairs.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="Losses of each image (Parquet).")],
    predictions_out: Annotated[Path, typer.Option("--predictions", help="Test logits and labels (Parquet).")],
    table_out: Annotated[Path, typer.Option("--table", help="The comparison as CSV; .md goes beside it.")],
    classes_out: Annotated[
        Path, typer.Option("--classes", help="Each variant's classification, class by class (CSV).")
    ],
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
    records: Records = None,
) -> None:
    """Did guidance do what it optimises? L_CE, L_SS and accuracy of every variant, and guided against control."""
    import torch

    from ibsgl import provenance
    from ibsgl.config.steps import Effect
    from ibsgl.evaluation.effect import guidance_effect
    from ibsgl.files import written
    from ibsgl.reporting.effect import classification_table, guidance_table
    from ibsgl.reporting.formats import write_csv, write_guidance_markdown

    started, step, device = time.time(), parse(Effect, settings), device_of(gpu)
    images = dataset(index_file, root, step.network.image_size)
    names = images.index.class_names
    losses, predictions = guidance_effect(
        ((file.stem, step.network.build(len(names), file).to(device)) for file in weights),
        images,
        torch.load(bottleneck_file, weights_only=True)["held_out"],
        r=step.r,
        cross_entropy=step.cross_entropy,
        batch_size=batch_size,
        device=device,
    )
    multilabel = step.network.multilabel
    table = guidance_table(losses, predictions, multilabel=multilabel, seed=step.seed, resamples=step.resamples)
    for frame, path in ((losses, out), (predictions, predictions_out)):
        with written(path) as temporary:
            frame.to_parquet(temporary)
    write_csv(table, table_out)
    markdown = table_out.with_suffix(".md")
    write_guidance_markdown(table, markdown, model=model)
    difficult = images.difficult("test").numpy()
    write_csv(classification_table(predictions, names, difficult, multilabel=multilabel), classes_out)
    write_record(
        records,
        f"{model}/effect",
        "table",
        step.to_dict(),
        started=started,
        metrics={f"{row.variant}.{row.metric}": float(row.value) for row in table.itertuples()},
        tags=provenance.collect(str(device), data_digest=images.index.digest),
        artifacts=[table_out, markdown, classes_out],
    )
