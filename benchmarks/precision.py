"""What ``precision`` changes: the maps, and the metrics of Tables 1–4, of a trained network on its test images.

The script takes the pretrained network of a run, its images and its methods of many passes. It makes each method's maps in
float32 and in bf16, and scores both with the network in float32::

    uv run snakemake results/shapes/resnet/0/pretrained/network.pt
    uv run python benchmarks/precision.py

Each metric is the mean over the test pairs in percent. The bound is 0.2 points; for Average Increase one pair, if that is more.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from ibsgl import attribution, config
from ibsgl.config.steps import step_of
from ibsgl.data.index import Index
from ibsgl.data.loading import ImageDataset
from ibsgl.evaluation.scoring import image_logits, score_maps, target_probabilities
from ibsgl.files import write_json
from ibsgl.maps import compute_maps
from ibsgl.metrics import METRICS
from ibsgl.networks import SplitNetwork, evaluating, fast_passes

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


@app.command()
def main(
    configfiles: Annotated[
        list[Path], typer.Option("--config", help="The config file. A further file changes some keys. Repeatable.")
    ] = [Path("config/shapes.yaml")],  # noqa: B006
    method: Annotated[list[str] | None, typer.Option(help="Row of the config. Repeatable; default: all.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images, from the first.")] = 10_000,
    out: Annotated[Path, typer.Option(help="The values as JSON.")] = Path("results/benchmarks/precision.json"),
) -> None:
    """Compare the maps and metrics of float32 and bf16."""
    loaded, rows = config.read(configfiles), []
    for model in loaded.models:
        resolved = loaded.for_model(model)
        folder = Path(f"results/{loaded.name}")
        weights = folder / model / "0/pretrained/network.pt"
        if not weights.is_file():
            raise typer.BadParameter(f"there is no {weights}; make it with: snakemake {weights}", param_hint="--config")
        data = ImageDataset(
            Index.load(folder / "index.parquet"), Path(loaded.data_root), loaded.models[model].image_size
        )
        network = step_of(loaded, "classifier", model=model, replicate=0).network.build(
            len(data.index.class_names), weights
        )
        pairs = data.pairs("test")
        pairs = pairs[pairs["image_id"].isin(pairs["image_id"].drop_duplicates()[:images])].reset_index(drop=True)
        for name in method or resolved.methods:
            settings = resolved.method_settings(name)
            if not attribution.mixed_passes(name, settings):
                continue
            maps, seconds = {}, {}
            for precision in ("float32", "bfloat16"):
                began, row = time.process_time(), attribution.row(name, settings, precision)
                with fast_passes(network, (1, 3, data.size, data.size), precision):
                    batches = compute_maps(
                        network, data, pairs, {name: row}, seed=loaded.seed, batch_size=16, device=torch.device("cpu")
                    )
                    maps[precision] = torch.cat([made[name] for _, made in batches])
                seconds[precision] = time.process_time() - began
            scores = {
                precision: scored(network, data, pairs, made, resolved.metrics, 16) for precision, made in maps.items()
            }
            ranks = [
                spearmanr(a, b).statistic
                for a, b in zip(maps["float32"].flatten(1), maps["bfloat16"].flatten(1), strict=True)
            ]
            found = {
                metric: [100 * float(scores[p][metric].mean()) for p in ("float32", "bfloat16")] for metric in METRICS
            }
            rows.append(
                {
                    "model": model,
                    "arch": loaded.models[model].arch,
                    "size": data.size,
                    "method": row.label,
                    "pairs": len(pairs),
                    "spearman_median": float(np.nanmedian(ranks)),
                    "spearman_least": float(np.nanmin(ranks)),
                    "times_as_fast": seconds["float32"] / seconds["bfloat16"],
                    "metrics": {
                        metric: {
                            "float32": full,
                            "bfloat16": half,
                            "within": abs(half - full) <= limit(metric, len(pairs)),
                        }
                        for metric, (full, half) in found.items()
                    },
                }
            )
            # After each method: a run that is stopped leaves what it has measured.
            write_json(out, {"rows": rows})
    show(rows, Console(width=None if sys.stdout.isatty() else 140))


def limit(metric: str, pairs: int) -> float:
    """The most that the mean of ``metric`` over ``pairs`` may change, in points of percent."""
    # Whether a probability rises is yes or no for each pair.
    return max(BOUND, 100 / pairs + 1e-9) if metric == "average_increase" else BOUND


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table: float32 and the change in bf16."""
    table = Table(title="float32, and what bf16 changes, in points", title_justify="left")
    for heading in (
        "network",
        "method",
        "pairs",
        *(m.label for m in METRICS.values()),
        "Spearman",
        "least",
        "× as fast",
    ):
        table.add_column(heading, justify="left" if heading in ("network", "method") else "right")
    for row in rows:
        cells = [
            f"{value['float32']:.2f} {value['bfloat16'] - value['float32']:+.2f}{'' if value['within'] else ' !'}"
            for value in row["metrics"].values()
        ]
        table.add_row(
            f"{row['model']}, {row['size']} px",
            *(row["method"], str(row["pairs"]), *cells),
            *(f"{row['spearman_median']:.4f}", f"{row['spearman_least']:.4f}", f"{row['times_as_fast']:.2f}"),
        )
    console.print(table)


if __name__ == "__main__":
    app()
