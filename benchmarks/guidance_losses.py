"""What the run of config/losses.yaml shows: does a guidance loss lower what it minimises, and what else does it change.

    snakemake --configfile config/shapes.yaml config/losses.yaml
    python benchmarks/guidance_losses.py

It writes docs/measured/guidance-losses.csv and the tables of docs/guidance-losses.md. Every value is a variant − control, or
guided − a variant, paired by image and training, with a 95 % interval over both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from ibsgl import config
from ibsgl.config import Config
from ibsgl.config.steps import step_of
from ibsgl.data.index import Index
from ibsgl.data.loading import ImageDataset
from ibsgl.files import read_tensors, written
from ibsgl.guidance import GuidanceSettings, training_losses
from ibsgl.guidance.registry import PAPER
from ibsgl.guidance.teachers import other_pairs
from ibsgl.inference import pair_batches
from ibsgl.networks import SplitNetwork, evaluating
from ibsgl.randomness import generator
from ibsgl.reporting.comparisons import METRIC_LABELS, by_replicate_text, comparison_table
from ibsgl.reporting.measurements import read_measurements
from ibsgl.reporting.statistics import Estimate, crossed_estimate
from ibsgl.training.variants import CONTROL, GUIDED

CPU, BATCH = torch.device("cpu"), 64
# A guidance loss may cost this much of the control's held-out accuracy; docs/guidance-scan.md has the rule.
KEPT = 1.0
SHOWN = ("accuracy", "ebpg", "miou", "bbox", "average_drop", "average_increase", "l_ce")
TABLE = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def held_out_values(
    network: SplitNetwork,
    data: ImageDataset,
    guidance: GuidanceSettings,
    settings: Config,
    l_ib: torch.Tensor,
    seed: int,
) -> pd.DataFrame:
    """``objective`` and ``accuracy`` (points) of every held-out pair.

    ``objective`` is what ``guidance`` minimises, without its weight. For the paper's own loss it is Eq. 10 with the variant's
    teacher, because A' of Algorithm 1 is another one for every network.
    """
    if guidance.loss == PAPER:
        guidance = guidance.model_copy(update={"mode": "end_to_end"})
    loss, teacher = guidance.build_loss(settings.suppression), guidance.build_teacher()
    assert loss is not None
    pairs, start, objectives, correct = data.pairs("held_out"), 0, [], []
    if teacher is not None and "shuffled" in teacher.requires:
        l_ib = l_ib[other_pairs(pairs, seed)]
    labels = dict(zip(data.ids("held_out"), data.labels("held_out"), strict=True))
    with evaluating(network):
        for rows, images, targets in pair_batches(data, pairs, BATCH, CPU, "held-out pairs"):
            region, maps = data.regions(rows), l_ib[start : start + len(rows)]
            start += len(rows)

            def teach(features: torch.Tensor, given=(targets, region, maps)) -> torch.Tensor | None:
                return None if teacher is None else teacher(features, *given)

            losses = training_losses(
                network,
                images,
                torch.stack([labels[image_id] for image_id in rows["image_id"]]),
                targets,
                loss,
                teach=teach,
                region=region,
                generators=[
                    generator(seed, "objective", *row) for row in rows[["image_id", "target"]].itertuples(index=False)
                ],
            )
            objectives.append(losses["guidance"].detach())
            with torch.no_grad():
                correct.append(100.0 * (network(images).argmax(1) == targets))
    values = {"objective": torch.cat(objectives).double().numpy(), "accuracy": torch.cat(correct).double().numpy()}
    return pairs[["image_id", "class_name"]].assign(**values)


def held_out_differences(settings: Config, model: str, place: Path, data: ImageDataset) -> Iterator[dict[str, object]]:
    """Own objective and held-out accuracy of every variant − control, over the replicates of the run in ``place``."""
    replicates = sorted(int(folder.parents[1].name) for folder in place.glob(f"{model}/*/evaluation/0"))
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for replicate in replicates:
        folder = place / model / str(replicate)
        l_ib = read_tensors(folder / "pretrained" / "bottleneck.pt")["held_out"]
        seed = step_of(settings, "guide", model=model, replicate=replicate, variant=CONTROL).training_seed
        build = settings.network(model).build
        networks = {
            name: build(len(data.index.class_names), folder / name / "network.pt") for name in settings.trained_variants
        }
        for variant in settings.trained_variants[1:]:
            guidance = settings.guidance_of(variant)
            own, control = (
                held_out_values(networks[name], data, guidance, settings, l_ib, seed) for name in (variant, CONTROL)
            )
            for key in ("objective", "accuracy"):
                found.setdefault((variant, f"control's {key}"), []).append(control[key].to_numpy())
                found.setdefault((variant, key), []).append((own[key] - control[key]).to_numpy())
    for (variant, key), values in found.items():
        yield _row(variant, f"held_out_{key}", crossed_estimate(np.stack(values)))


def _row(variant: str, metric: str, estimate: Estimate) -> dict[str, object]:
    return {
        **{
            "variant": variant,
            "minus": CONTROL,
            "metric": metric,
            "value": estimate.mean,
            "low": estimate.low,
            "high": estimate.high,
        },
        **{"replicates": estimate.replicates, "images": estimate.images, "by_replicate": by_replicate_text(estimate)},
    }


def test_differences(settings: Config, model: str, place: Path) -> Iterator[dict[str, object]]:
    """The differences variant − control and guided − variant of the comparisons table, of :data:`SHOWN`."""
    measured = read_measurements(place.glob(f"{model}/*/evaluation/*"))
    table = comparison_table(measured, settings.variant_names, multilabel=settings.data.multilabel)
    for row in table[table["metric"].isin(SHOWN)].itertuples():
        variant, _, other = str(row.comparison).partition(" - ")
        if other == CONTROL or (variant == GUIDED and other in settings.trained_variants):
            keys = ("metric", "value", "low", "high", "replicates", "images", "by_replicate")
            yield {"variant": variant, "minus": other} | {key: getattr(row, key) for key in keys}


def objective_table(settings: Config, table: pd.DataFrame) -> str:
    """One line per variant: what it minimises, before and after, and what it costs."""
    lines = [
        "| variant | loss | teacher | weight | sees boxes | own objective: control | variant − control | lowered "
        "| held-out accuracy (points) | kept |",
        "|---|---|---|---:|---|---:|---:|---|---:|---|",
    ]
    for variant in settings.trained_variants[1:]:
        guidance = settings.guidance_of(variant)
        rows = _rows(table, variant, CONTROL)
        control, change, cost = (
            rows.loc[f"held_out_{key}"] for key in ("control's objective", "objective", "accuracy")
        )
        loss = guidance.build_loss(settings.suppression)
        assert loss is not None
        cells = [
            variant,
            f"{guidance.loss} ({guidance.mode})" if guidance.loss == PAPER else guidance.loss,
            guidance.teacher if guidance.takes_a_map else "–",
            f"{loss.weight:g}",
            "yes" if guidance.sees_boxes else "no",
            f"{control['value']:.4g}",
            _interval(change),
            "yes" if change["high"] < 0 else "no",
            _interval(cost),
            "yes" if cost["value"] >= -KEPT else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def effects_table(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> str:
    """One line per pair of variants: the differences, first − second, on the test images."""
    labels = [METRIC_LABELS[metric] for metric in SHOWN]
    lines = [f"| variants | {' | '.join(labels)} |", f"|---|{'---:|' * len(SHOWN)}"]
    for first, second in pairs:
        rows = _rows(table, first, second)
        cells = [f"{first} − {second}", *(_interval(rows.loc[metric]) for metric in SHOWN)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The differences of two variants, by metric."""
    return table[(table["variant"] == first) & (table["minus"] == second)].set_index("metric")


def _interval(row: pd.Series) -> str:
    # Sums of numbers that cancel leave a rest of rounding.
    value, low, high = (0.0 if abs(row[key]) < 1e-9 else row[key] for key in ("value", "low", "high"))
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"


@app.command()
def main(
    configfiles: Annotated[
        list[Path], typer.Option("--config", help="The config file. A further file changes some keys. Repeatable.")
    ] = [Path("config/shapes.yaml"), Path("config/losses.yaml")],  # noqa: B006
    results: Annotated[Path, typer.Option(help="The folder that has the run's folder.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="All differences as CSV.")] = Path("docs/measured/guidance-losses.csv"),
    page: Annotated[Path, typer.Option(help="The page whose tables are written.")] = Path("docs/guidance-losses.md"),
) -> None:
    """Compare every variant of a finished run with the control and with `guided`, and write the differences."""
    settings = config.read(configfiles, data=False)
    model, place = next(iter(settings.models)), results / settings.name
    settings = settings.for_model(model)
    root = results.parent / settings.data_root
    data = ImageDataset(Index.load(place / "index.parquet"), root, settings.models[model].image_size)
    rows = [*held_out_differences(settings, model, place, data), *test_differences(settings, model, place)]
    table = pd.DataFrame(rows)
    with written(out) as temporary:
        table.to_csv(temporary, index=False)
    trainings = f"Trainings of each variant: {table['replicates'].min()}."
    variants = settings.trained_variants[1:]
    tables = {
        "objectives": objective_table(settings, table),
        "effects": effects_table(table, [(variant, CONTROL) for variant in variants]),
        "guided": effects_table(table, [(GUIDED, variant) for variant in variants if variant != GUIDED]),
    }
    texts = {name: f"{trainings}\n\n{text}" for name, text in tables.items()}
    old = page.read_text(encoding="utf-8")
    page.write_text(TABLE.sub(lambda match: f"{match[1]}\n{texts[match['name']]}\n\n{match[3]}", old), encoding="utf-8")
    typer.echo("\n\n".join(texts.values()))


if __name__ == "__main__":
    app()
