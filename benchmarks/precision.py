"""What ``precision`` changes: the maps, and the metrics of Tables 1–4, of trained networks on held-out images.

The script takes the pretrained networks of a run's trainings, its held-out images and its methods of many passes. It makes each
method's maps in float32 and in bf16, and scores both with the network in float32::

    uv run snakemake results/shapes/resnet/0/pretrained/network.pt
    uv run python benchmarks/precision.py

Each metric is the mean over the pairs and the trainings in percent. The bound is 0.2 points; for Average Increase one pair, if
that is more. The test images are not used, because ``precision: auto`` follows from the result.
"""

import sys
import time
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, get_args

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from tqdm import tqdm

from ibsgl import attribution, config
from ibsgl.config.steps import step_of
from ibsgl.data.index import Index
from ibsgl.data.loading import ImageDataset
from ibsgl.evaluation.scoring import image_logits, score_maps, target_probabilities
from ibsgl.files import write_json
from ibsgl.maps import compute_maps
from ibsgl.metrics import METRICS
from ibsgl.networks import Precision, SplitNetwork, evaluating, fast_passes
from ibsgl.reporting.statistics import Estimate, crossed_estimate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

# Points of percent that a metric's mean may change.
BOUND = 0.2


def scored(
    network: SplitNetwork, data: ImageDataset, pairs: pd.DataFrame, maps: torch.Tensor, metrics: Any, batch_size: int
) -> pd.DataFrame:
    """The scores of ``maps`` (N,H,W) of all ``pairs``, by the network in float32."""
    parts = []
    with evaluating(network), torch.no_grad():
        for start in range(0, len(pairs), batch_size):
            rows = pairs.iloc[start : start + batch_size]
            images = data.images(rows["image_id"].tolist())
            targets = torch.tensor(rows["target"].to_numpy())
            full = target_probabilities(network, image_logits(network, images), targets)
            of_batch = {"own": {"maps": maps[start : start + batch_size]}}
            region = data.regions(rows, metrics.region)
            parts.append(
                score_maps(
                    {"own": network}, rows, images, targets, region, {"own": full}, of_batch, metrics, reference="own"
                )
            )
    return pd.concat(parts, ignore_index=True)


def compared(
    settings: config.Config,
    model: str,
    weights: Path,
    name: str,
    keys: dict[str, Any],
    data: ImageDataset,
    pairs: pd.DataFrame,
) -> dict[str, Any]:
    """One training's metrics of the row ``name`` in percent, float32 and bf16, and how far the maps agree."""
    step = step_of(settings, "classifier", model=model, replicate=0)
    network = step.network.build(len(data.index.class_names), weights)
    maps, seconds = {}, {}
    for precision in get_args(Precision):
        began, row = time.process_time(), attribution.row(name, keys, precision)
        with fast_passes(network, (1, 3, data.size, data.size), precision):
            batches = compute_maps(
                network, data, pairs, {name: row}, seed=settings.seed, batch_size=16, device=torch.device("cpu")
            )
            maps[precision] = torch.cat([made[name] for _, made in batches])
        seconds[precision] = time.process_time() - began
    scores = {precision: scored(network, data, pairs, made, settings.metrics, 16) for precision, made in maps.items()}
    same_pairs = zip(maps["float32"].flatten(1), maps["bfloat16"].flatten(1), strict=True)
    ranks = [spearmanr(one, other).statistic for one, other in same_pairs]
    return {
        "spearman_median": float(np.nanmedian(ranks)),
        "spearman_least": float(np.nanmin(ranks)),
        "times_as_fast": seconds["float32"] / seconds["bfloat16"],
        "metrics": {
            metric: {precision: 100 * float(of[metric].mean()) for precision, of in scores.items()}
            for metric in METRICS
        },
    }


@app.command()
def main(
    configfiles: Annotated[
        list[Path], typer.Option("--config", help="The config file. A further file changes some keys. Repeatable.")
    ] = [Path("config/shapes.yaml")],  # noqa: B006
    method: Annotated[list[str] | None, typer.Option(help="Row of the config. Repeatable; default: all.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Held-out images, from the first.")] = 10_000,
    out: Annotated[Path, typer.Option(help="The values as JSON.")] = Path("results/benchmarks/precision.json"),
) -> None:
    """Compare the maps and metrics of float32 and bf16."""
    loaded, rows = config.read(configfiles), []
    for model in loaded.models:
        resolved, folder = loaded.for_model(model), Path(f"results/{loaded.name}")
        trained = sorted(folder.glob(f"{model}/*/pretrained/network.pt"))
        if not trained:
            wanted = f"{folder}/{model}/0/pretrained/network.pt"
            raise typer.BadParameter(f"there is no {wanted}; make it with: snakemake {wanted}", param_hint="--config")
        data = ImageDataset(
            Index.load(folder / "index.parquet"), Path(loaded.data_root), resolved.models[model].image_size
        )
        pairs = data.pairs("held_out")
        pairs = pairs[pairs["image_id"].isin(pairs["image_id"].drop_duplicates()[:images])].reset_index(drop=True)
        for name in method or resolved.methods:
            settings = resolved.method_settings(name)
            if not attribution.mixed_cost(name, settings):
                continue
            trainings = [
                compared(resolved, model, weights, name, settings, data, pairs)
                for weights in tqdm(trained, desc=f"{model}: {name}", leave=False)
            ]
            rows.append(
                {
                    "model": model,
                    "arch": resolved.models[model].arch,
                    "size": data.size,
                    "method": attribution.row(name, settings).label,
                    "settings": settings,
                    "pairs": len(pairs),
                    "trainings": trainings,
                }
            )
            # After each method: a run that is stopped leaves what it has measured.
            write_json(out, {"rows": rows})
    show(rows, Console(width=None if sys.stdout.isatty() else 240))


def limit(metric: str, pairs: int) -> float:
    """The most that the mean of ``metric`` over ``pairs`` may change, in points of percent."""
    # Whether a probability rises is yes or no for each pair.
    return max(BOUND, 100 / pairs + 1e-9) if metric == "average_increase" else BOUND


def changes(row: dict[str, Any]) -> dict[str, Estimate]:
    """By metric, what bf16 changes in points: the mean over the trainings, and its interval for other trainings."""
    return {
        metric: crossed_estimate(
            [[each["metrics"][metric]["bfloat16"] - each["metrics"][metric]["float32"]] for each in row["trainings"]]
        )
        for metric in METRICS
    }


def _range(change: Estimate) -> str:
    return f" [{change.low:+.2f}, {change.high:+.2f}]" if change.replicates > 1 else ""


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print what bf16 changes. A change beyond the bound has a mark."""
    title = "What bf16 changes, in points: mean over the trainings [95 % interval]; ! is beyond the bound"
    table = Table(title=title, title_justify="left")
    for heading in (
        *("network", "method", "pairs", "trainings", *(m.label for m in METRICS.values())),
        *("Spearman, median", "least", "× as fast"),
    ):
        table.add_column(heading, justify="left" if heading in ("network", "method") else "right")
    for row in rows:
        trainings = row["trainings"]
        table.add_row(
            f"{row['model']}, {row['size']} px",
            *(row["method"], str(row["pairs"]), str(len(trainings))),
            *(
                f"{change.mean:+.2f}{_range(change)}{'' if abs(change.mean) <= limit(metric, row['pairs']) else ' !'}"
                for metric, change in changes(row).items()
            ),
            f"{mean(each['spearman_median'] for each in trainings):.4f}",
            f"{min(each['spearman_least'] for each in trainings):.4f}",
            f"{mean(each['times_as_fast'] for each in trainings):.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    app()
