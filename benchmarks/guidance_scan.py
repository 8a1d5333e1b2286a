"""How the defaults of guidance were chosen: docs/guidance-scan.md explains the rule and shows the result.

The paper states neither the learning rate of guided training nor the inner step of Algorithm 1. This script trains each network
of the config several times, on data that no study uses, and looks at held-out training images only. First the control decides
the learning rate. Then the loss of Eq. 10 decides the step.

    python benchmarks/guidance_scan.py --config config/shapes.yaml --out docs/measured/guidance-scan.csv
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from ibsgl import config
from ibsgl.config import Config
from ibsgl.data.loading import ImageDataset
from ibsgl.errors import TrainingError
from ibsgl.evaluation.held_out import held_out_losses
from ibsgl.files import written
from ibsgl.guidance import GuidanceSettings
from ibsgl.networks import SplitNetwork
from ibsgl.precompute import bottleneck_maps, feature_statistics
from ibsgl.randomness import derive_seed
from ibsgl.training.classifier import starting_network, train_classifier
from ibsgl.training.epochs import held_out_score
from ibsgl.training.guided import train_guided

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

CPU = torch.device("cpu")
BATCH = 64
# A control is stable if its held-out accuracy never falls by more than this, in any epoch of any training.
STABLE = 0.02
# Guidance may cost this much of the control's held-out accuracy.
KEPT = 0.01


@dataclass(frozen=True)
class Start:
    """What the trainings of one network start from: the classifier, its held-out accuracy, and L^ib (N,h,w) by split."""

    network: SplitNetwork
    state: Mapping[str, torch.Tensor]
    accuracy: float
    l_ib: Mapping[str, torch.Tensor]


def train_start(settings: Config, model: str, data: ImageDataset, seed: int) -> Start:
    """The classifier of the training seed ``seed``, and its L^ib of the training and the held-out pairs."""
    network = starting_network(
        settings.network(model), data.index.class_names, model=model, seed=seed, epochs=settings.classifier.epochs
    )
    with tempfile.TemporaryDirectory() as folder:
        train_classifier(
            network,
            data,
            settings.classifier,
            name=f"{model} classifier",
            seed=seed,
            device=CPU,
            checkpoint=Path(folder) / "checkpoint",
            digest="",
        )
    statistics = feature_statistics(network, data, BATCH, CPU)
    l_ib = {
        split: bottleneck_maps(
            network,
            data,
            data.pairs(split),
            settings.bottleneck,
            statistics,
            seed=settings.seed,
            batch_size=BATCH,
            device=CPU,
        )
        for split in ("train", "held_out")
    }
    _, score = held_out_score(network, data, BATCH, CPU)
    return Start(network, {key: value.clone() for key, value in network.state_dict().items()}, score, l_ib)


def train(
    settings: Config,
    model: str,
    data: ImageDataset,
    start: Start,
    seed: int,
    rate: float,
    guidance: GuidanceSettings | None,
) -> dict[str, float]:
    """Train from ``start``, guided or, without ``guidance``, as the control; the held-out losses and accuracies."""
    network = start.network
    network.load_state_dict(start.state)
    with tempfile.TemporaryDirectory() as folder:
        try:
            history = train_guided(
                network,
                data,
                settings.guidance.training.model_copy(update={"lr": rate}),
                guidance=guidance,
                suppression=settings.suppression if guidance else None,
                l_ib=start.l_ib["train"] if guidance else None,
                name=model,
                seed=seed,
                device=CPU,
                checkpoint=Path(folder) / "checkpoint",
                digest="",
            )
        except TrainingError:
            return {"start": start.accuracy, "lowest": 0.0, "accuracy": 0.0}
    losses = held_out_losses(
        {"": network},
        data,
        data.pairs("held_out"),
        start.l_ib["held_out"],
        r=settings.suppression.r,
        cross_entropy=settings.guidance.cross_entropy,
        batch_size=BATCH,
        device=CPU,
    )
    score = "held_out_map" if network.multilabel else "held_out_accuracy"
    accuracies = [row[score] for row in history]
    l_ce, l_ss = losses["l_ce"].mean(), losses["l_ss"].mean()
    return {
        "start": start.accuracy,
        "lowest": min(accuracies),
        "accuracy": accuracies[-1],
        "l_ce": l_ce,
        "l_ss": l_ss,
        "loss": l_ce + settings.suppression.beta * l_ss,
    }


def scan(
    settings: Config,
    model: str,
    data: ImageDataset,
    replicates: int,
    rates: list[float],
    step_sizes: list[float],
) -> Iterator[dict[str, object]]:
    """One row for each training of the network ``model``: the controls, then the guided trainings at stable rates."""
    seeds = [derive_seed(settings.seed, "scan", number) for number in range(replicates)]
    starts = [train_start(settings, model, data, seed) for seed in seeds]
    for rate in rates:
        stable = True
        for number, (seed, start) in enumerate(zip(seeds, starts, strict=True)):
            row = train(settings, model, data, start, seed, rate, None)
            stable &= row["lowest"] >= row["start"] - STABLE
            yield {"model": model, "lr": rate, "step_size": 0.0, "replicate": number} | row
        if not stable:
            continue
        for step_size in step_sizes:
            guidance = settings.guidance.model_copy(update={"step_size": step_size})
            for number, (seed, start) in enumerate(zip(seeds, starts, strict=True)):
                row = train(settings, model, data, start, seed, rate, guidance)
                yield {"model": model, "lr": rate, "step_size": step_size, "replicate": number} | row


def summary(trainings: pd.DataFrame) -> pd.DataFrame:
    """One row for each rate and step over all networks: is the control stable, is the accuracy kept, the mean loss of Eq. 10.

    Args:
        trainings: the rows of :func:`scan`. A ``step_size`` of 0 is the control.

    Returns:
        ``lr``, ``step_size``, ``stable`` and ``kept`` (on every network), ``loss`` (guided − control, the mean over networks
        and replicates; NaN for the control).
    """
    controls = trainings[trainings["step_size"] == 0]
    rows = []
    for (rate, step_size), group in trainings.groupby(["lr", "step_size"], sort=False):
        pairs = group.merge(controls, on=["model", "lr", "replicate"], suffixes=("", "_control"))
        lost = (pairs["accuracy_control"] - pairs["accuracy"]).groupby(pairs["model"]).mean()
        stable = (pairs["lowest_control"] >= pairs["start_control"] - STABLE).all()
        complete = group["model"].nunique() == trainings["model"].nunique()
        rows.append(
            {
                "lr": rate,
                "step_size": step_size,
                "stable": bool(stable and complete),
                "kept": bool((lost <= KEPT).all() and complete),
                # A training that diverged has no loss, and its setting none either.
                "loss": (pairs["loss"] - pairs["loss_control"]).mean(skipna=False) if step_size else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def choose(summary: pd.DataFrame) -> tuple[float, float]:
    """The chosen rate and step: the highest rate with a stable control, then the lowest loss that keeps the accuracy.

    Raises:
        ValueError: no rate is stable, or no step keeps the accuracy.
    """
    stable = summary[summary["stable"] & (summary["step_size"] > 0)]
    if stable.empty:
        raise ValueError("at no learning rate is the control of every network stable; try lower ones with --lr")
    rate = stable["lr"].max()
    kept = stable[stable["kept"] & (stable["lr"] == rate)]
    if kept.empty:
        raise ValueError(f"at the rate {rate:g} every step costs accuracy; try smaller ones with --step-size")
    return rate, kept.loc[kept["loss"].idxmin(), "step_size"]


@app.command()
def main(
    configfiles: Annotated[
        list[Path], typer.Option("--config", help="The config file. A further file changes some keys. Repeatable.")
    ] = [Path("config/shapes.yaml")],  # noqa: B006
    out: Annotated[Path, typer.Option(help="The trainings as CSV.")] = Path("results/guidance-scan.csv"),
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Network of the config. Repeatable; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the generated data and of the trainings.")] = 1000,
    replicates: Annotated[int, typer.Option(min=1, help="Trainings of every setting.")] = 5,
    step_sizes: Annotated[list[float], typer.Option("--step-size", help="guidance.step_size. Repeatable.")] = [  # noqa: B006
        0.02,
        0.05,
        0.1,
        0.2,
    ],
    rates: Annotated[list[float], typer.Option("--lr", help="guidance.training.lr. Repeatable.")] = [1e-3, 3e-4, 1e-4],  # noqa: B006
) -> None:
    """Train every combination of the options on generated data, write the trainings, and print the choice."""
    settings = config.read(configfiles)
    if not settings.data.generated:
        raise typer.BadParameter(f"data.source: {settings.data.source} does not generate images", param_hint="--config")
    if settings.guidance.bottleneck_network == "current":
        raise typer.BadParameter("guidance.bottleneck_network: the scan needs pretrained", param_hint="--config")
    settings = settings.model_copy(update={"seed": seed})
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC2007"
        settings.data.generate(root, seed)
        index = settings.data.build_index(root, seed)
        for model in models or settings.models:
            data = ImageDataset(index, root, settings.models[model].image_size)
            for row in scan(settings.for_model(model), model, data, replicates, rates, step_sizes):
                rows.append(row)
                # Rewritten after each training, so that an interruption loses one.
                with written(out) as temporary:
                    pd.DataFrame(rows).to_csv(temporary, index=False)
    table = summary(pd.DataFrame(rows))
    typer.echo(table.to_string(index=False))
    rate, step_size = choose(table)
    typer.echo(f"guidance.training.lr: {rate:g}, guidance.step_size: {step_size:g}")


if __name__ == "__main__":
    app()
