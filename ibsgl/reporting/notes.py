"""The notes under a table: the network, its training, the form of every metric, and the guidance of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibsgl import attribution
from ibsgl.guidance.registry import NO_LOSS, PAPER
from ibsgl.metrics.faithfulness import AverageDrop
from ibsgl.metrics.localization import Bbox, MIoU

if TYPE_CHECKING:
    from ibsgl.config.schema import Config
    from ibsgl.guidance.settings import GuidanceSettings
    from ibsgl.reporting.measurements import Measurements


def method_notes(config: Config, model: str) -> list[str]:
    """Network, training, metrics and guidance of ``model``, one note each.

    Args:
        config: the config of the run. The overrides of ``model`` are merged into it here.
        model: the network's name in the config.
    """
    config = config.for_model(model)
    network, metrics, guidance = config.network(model), config.metrics, config.guidance
    average_drop, threshold = metrics.metric(AverageDrop), metrics.metric(MIoU)
    miou = {
        "quantile": f"the top {threshold.top:g} of the pixels, strictly above the quantile",
        "value": "values above half of the map's range",
    }[threshold.mode]
    kept = {
        "top": f"the top {metrics.kept.top:g} of the pixels kept, the rest {metrics.kept.fill}",
        "scale": f"the image times the map scaled to [0, 1], on {metrics.kept.fill}",
    }[metrics.kept.mode]
    bbox = {
        "strict": "strictly above the N-th value",
        "index": "exactly N pixels, ties by index",
    }[metrics.metric(Bbox).ties]
    training, epochs = config.guidance.training, config.classifier.epochs
    start = f"the weights {Path(network.weights).name}" if network.weights else "random weights"
    return [
        f"Network: {network.family.describe(network.arch)}, from {start}, epochs of classifier training: {epochs}. "
        "The published baseline values are of TorchRay's networks.",
        f"Training: {config.data.held_out:.3g} of the training images are held out for the losses; no augmentation.",
        f"Region: the class's {metrics.region}, difficult objects: {config.data.list_settings['difficult']}. "
        f"mIoU: {miou}. Bbox: {bbox}.",
        f"AD and AI: {kept}; {average_drop.form} drop.",
        f"Guidance: {_paper_loss(guidance) if guidance.loss == PAPER else _other_loss(guidance)}, "
        f"{training.epochs} epochs of {training.optimizer} at {training.lr:g}; "
        f"suppression {config.suppression.when}; bottleneck reduction {config.bottleneck.reduction}.",
        *row_notes(config),
    ]


def row_notes(config: Config) -> list[str]:
    """A note with what computes the rows that have a name of their own, if there are any."""
    rows = []
    for name, settings in config.methods.items():
        row = attribution.row(name, settings)
        if row.use != name:
            own = {key: value for key, value in settings.items() if key not in (attribution.USE, attribution.LABEL)}
            text = ", ".join(f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in own.items())
            version = "".join(f" {number}" for number in attribution.library_versions(row.use).values())
            rows.append(f"{row.label} is {row.use}{version}" + (f" ({text})" if text else ""))
    return [f"Rows of the run's own: {'; '.join(rows)}."] if rows else []


def pass_notes(measurements: Measurements) -> list[str]:
    """A note with the precision in which the passes of the methods of many passes ran, if there are such methods."""
    methods: dict[str, list[str]] = {}
    for method, ways in measurements.metadata["passes"].items():
        texts = sorted({_way(way) for way in ways})
        methods.setdefault(" or ".join(texts), []).append(measurements.metadata["labels"][method])
    found = [f"{', '.join(labels)}: {text}" for text, labels in methods.items()]
    return [f"Passes: {'; '.join(found)}. All else is in float32."] if found else []


def _way(passes: Mapping[str, Any]) -> str:
    done = (["batch norm folded"] if passes["folded"] else []) + (["compiled"] if passes["compiled"] else [])
    return passes["precision"] + (f" ({', '.join(done)})" if done else "")


def _paper_loss(guidance: GuidanceSettings) -> str:
    return (
        f"{guidance.mode}, {guidance.steps} {guidance.step_unit} step(s) of {guidance.step_size:g}, "
        f"D_KL {guidance.divergence.normalise}, {guidance.divergence.reduction} over channels"
    )


def _other_loss(guidance: GuidanceSettings) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in guidance.loss_settings.items())
    return f"the loss {guidance.loss} ({settings})" + (f", teacher {guidance.teacher}" if guidance.takes_a_map else "")


def variant_notes(config: Config, model: str) -> list[str]:
    """What trains each variant of ``model``, one note each: teacher and loss, and whether it sees boxes."""
    config = config.for_model(model)
    notes = []
    for variant in config.trained_variants:
        guidance = config.guidance_of(variant)
        what = "trained on without guidance"
        if guidance.loss == PAPER:
            what = f"the loss {PAPER} ({guidance.mode}, μ {guidance.mu:g}), teacher {guidance.teacher}"
        elif guidance.loss != NO_LOSS:
            what = _other_loss(guidance)
        notes.append(f"Variant {variant}: {what}. Sees boxes: {'yes' if guidance.sees_boxes else 'no'}.")
    return notes
