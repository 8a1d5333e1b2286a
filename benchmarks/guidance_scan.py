"""The measurements behind docs/guidance-scan.md and the default strength of guidance.

The paper states neither the inner step of Algorithm 1 nor the optimiser. For each combination of settings this script trains
the guided network and its control from the same classifier. It prints the paired differences guided − control of what guidance
optimises, L_CE(L^c, L^ib) and L_SS on held-out training images, and the change of accuracy on the test images.

    python benchmarks/guidance_scan.py --config config/shapes.yaml --out results/guidance_scan.csv
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from tqdm import tqdm

from ibsgl import config
from ibsgl.config import Config
from ibsgl.data.loading import ImageDataset
from ibsgl.errors import TrainingError
from ibsgl.evaluation.effect import guidance_effect
from ibsgl.files import written
from ibsgl.guidance import DivergenceSettings, GuidanceSettings
from ibsgl.inference import predict
from ibsgl.metrics.classification import accuracy
from ibsgl.networks import SplitNetwork
from ibsgl.precompute import bottleneck_maps, feature_statistics
from ibsgl.reporting.statistics import paired_interval
from ibsgl.training.classifier import starting_network, train_classifier
from ibsgl.training.guided import train_guided
from ibsgl.training.settings import TrainingSettings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

CPU = torch.device("cpu")
BATCH = 64


@dataclass(frozen=True)
class Start:
    """What the trainings of one network start from: the classifier, and its L^ib (N,h,w) of each split's pairs."""

    network: SplitNetwork
    state: Mapping[str, torch.Tensor]
    l_ib: Mapping[str, torch.Tensor]


def train_start(settings: Config, model: str, data: ImageDataset) -> Start:
    """The trained classifier of the network ``model``, and its L^ib of the training and the held-out pairs."""
    network = starting_network(
        settings.network(model),
        data.index.class_names,
        model=model,
        seed=settings.seed,
        epochs=settings.classifier.epochs,
    )
    with tempfile.TemporaryDirectory() as folder:
        train_classifier(
            network,
            data,
            settings.classifier,
            name=f"{model} classifier",
            seed=settings.seed,
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
    return Start(network, {key: value.clone() for key, value in network.state_dict().items()}, l_ib)


@dataclass(frozen=True)
class Outcome:
    """What one training led to: held-out losses and test predictions (:func:`guidance_effect`), and held-out accuracy."""

    losses: pd.DataFrame
    predictions: pd.DataFrame
    held_out: float


def train(
    settings: Config,
    model: str,
    data: ImageDataset,
    start: Start,
    training: TrainingSettings,
    guidance: GuidanceSettings | None,
) -> Outcome:
    """Train the network ``model`` from ``start``, guided or, without ``guidance``, as the control."""
    network = start.network
    network.load_state_dict(start.state)
    with tempfile.TemporaryDirectory() as folder:
        train_guided(
            network,
            data,
            training,
            guidance=guidance,
            suppression=settings.suppression,
            l_ib=start.l_ib["train"],
            name=model,
            seed=settings.seed,
            device=CPU,
            checkpoint=Path(folder) / "checkpoint",
            digest="",
        )
    losses, predictions = guidance_effect(
        [("control" if guidance is None else "guided", network)],
        data,
        start.l_ib["held_out"],
        r=settings.suppression.r,
        cross_entropy=settings.guidance.cross_entropy,
        batch_size=BATCH,
        device=CPU,
    )
    held_out = accuracy(predict(network, data, "held_out", BATCH, CPU), data.labels("held_out")).mean().item()
    return Outcome(losses, predictions, held_out)


def compare(guided: Outcome, control: Outcome) -> dict[str, float]:
    """The columns of one row of the table: means, 95 % intervals of guided − control, and accuracies."""
    row: dict[str, float] = {}
    for key in ("l_ce", "l_ss"):
        low, high = paired_interval(
            guided.losses[key].to_numpy(), control.losses[key].to_numpy(), guided.losses["image_id"].to_numpy(), seed=0
        )
        row |= {
            f"{key}_control": control.losses[key].mean(),
            f"{key}_guided": guided.losses[key].mean(),
            f"{key}_low": low,
            f"{key}_high": high,
        }
    return row | {
        "accuracy_control": control.predictions["correct"].mean(),
        "accuracy_guided": guided.predictions["correct"].mean(),
        "held_out_control": control.held_out,
        "held_out_guided": guided.held_out,
    }


@app.command()
def main(
    configfiles: Annotated[
        list[Path], typer.Option("--config", help="The config file. A further file changes some keys. Repeatable.")
    ] = [Path("config/shapes.yaml")],  # noqa: B006
    out: Annotated[Path, typer.Option(help="The table as CSV.")] = Path("results/guidance_scan.csv"),
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Network of the config. Repeatable; default: all.")
    ] = None,
    reductions: Annotated[
        list[str], typer.Option("--reduction", help="guidance.divergence.reduction: sum or mean. Repeatable.")
    ] = ["sum", "mean"],  # noqa: B006
    step_sizes: Annotated[list[float], typer.Option("--step-size", help="guidance.step_size. Repeatable.")] = [  # noqa: B006
        0.02,
        0.05,
        0.1,
        0.2,
    ],
    steps: Annotated[list[int], typer.Option("--steps", help="guidance.steps. Repeatable.")] = [1, 3],  # noqa: B006
    rates: Annotated[list[float], typer.Option("--lr", help="guidance.training.lr. Repeatable.")] = [1e-3, 3e-3],  # noqa: B006
    epochs: Annotated[int | None, typer.Option(min=1, help="guidance.training.epochs; default: the config's.")] = None,
) -> None:
    """Train and compare every combination of the options on the config's generated data, and print the table."""
    settings = config.read(configfiles)
    if not settings.data.generated:
        raise typer.BadParameter(f"data.source: {settings.data.source} does not generate images", param_hint="--config")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC2007"
        settings.data.generate(root, settings.seed)
        index = settings.data.build_index(root, settings.seed)
        for model in models or settings.models:
            data = ImageDataset(index, root, settings.models[model].image_size)
            start = train_start(settings, model, data)
            for rate in rates:
                changes = {"lr": rate, "epochs": epochs or settings.guidance.training.epochs}
                training = settings.guidance.training.model_copy(update=changes)
                control = train(settings, model, data, start, training, None)
                combinations = list(itertools.product(reductions, step_sizes, steps))
                for reduction, step_size, number in tqdm(combinations, desc=f"{model}, lr {rate:g}"):
                    divergence = DivergenceSettings(normalise="softmax", reduction=reduction)
                    guidance = settings.guidance.model_copy(
                        update={"step_size": step_size, "steps": number, "divergence": divergence}
                    )
                    row = {"model": model, "lr": rate, "reduction": reduction, "step_size": step_size, "steps": number}
                    try:
                        guided = train(settings, model, data, start, training, guidance)
                    except TrainingError as error:
                        rows.append(row | {"verdict": str(error).split(":")[1][:40]})
                        continue
                    rows.append(row | compare(guided, control))
                    print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
    with written(out) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


if __name__ == "__main__":
    app()
