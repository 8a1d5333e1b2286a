"""The plan of a whole run: its data, its networks, its steps and its disk space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ibsgl.config import Config
from ibsgl.plan.calibration import calibrate
from ibsgl.plan.data import DataFacts, data_facts
from ibsgl.plan.networks import NetworkFacts, Work, network_facts
from ibsgl.plan.steps import Step, model_steps, variants_with_statistics
from ibsgl.training.variants import VARIANTS

# Bytes of a number.
_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        name: of the config.
        networks: the networks of the config.
        steps: of every network.
        disk_bytes: see :func:`disk_space`.
        device: where the seconds were measured; ``None`` without calibration.
    """

    name: str
    data: DataFacts
    networks: list[NetworkFacts]
    steps: list[Step]
    disk_bytes: dict[str, int]
    device: str | None
    batch_size: int

    def total(self, model: str | None = None) -> Work:
        """The work of all steps of the network ``model``, or of all networks. Steps of unknown work are left out."""
        known = [step.work for step in self.steps if step.work is not None and model in (None, step.model)]
        return sum(known[1:], known[0])

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON: passes of one image each, FLOPs, seconds, bytes."""
        return asdict(self) | {"total": asdict(self.total())}


def make_plan(config: Config, images: Mapping[str, int] | None = None, calibration: bool = True) -> Plan:
    """The plan of a run of ``config``.

    Args:
        images: see :func:`ibsgl.plan.data_facts`.
        calibration: run the networks for some seconds on the run's device, to measure the time. Where that is a GPU and this
            machine has none, nothing is measured.

    Raises:
        ValueError: the number of images is unknown.
    """
    data = data_facts(config, images)
    resolved = {model: config.for_model(model) for model in config.models}
    networks = [network_facts(resolved[model], model, data.classes) for model in resolved]
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if config.device == "cuda" or (config.device == "auto" and cuda) else "cpu")
    measured_on = None
    if calibration and (cuda or device.type == "cpu"):
        measured_on = f"CPU, {config.threads} thread(s)" if device.type == "cpu" else torch.cuda.get_device_name(device)
        for place, network in enumerate(networks):
            seconds, batch = calibrate(resolved[network.model], network.model, data.classes, device)
            networks[place] = replace(network, seconds=seconds, batch=batch)
    return Plan(
        config.name,
        data,
        networks,
        [step for network in networks for step in model_steps(resolved[network.model], data, network)],
        disk_space(config, data, networks),
        measured_on,
        config.batch_size,
    )


def disk_space(config: Config, data: DataFacts, networks: Sequence[NetworkFacts]) -> dict[str, int]:
    """Bytes of what the run stores, by name. Maps are an upper bound: float32 before compression."""
    guiding_pairs = data.splits["train"].pairs + data.splits["held_out"].pairs
    test_pairs = data.splits["test"].pairs
    archives = config.data.archives
    archive_bytes = sum(archive.bytes for archive in archives.archives) if archives else 0
    # Mean and squares in float64.
    statistics = 2 * _FLOAT64 * len(variants_with_statistics(config))
    sizes = {
        "archives": archive_bytes,
        # JPEG files do not shrink in an archive.
        "data, unpacked": archive_bytes,
        "weights": sum(len(VARIANTS) * network.bytes for network in networks),
        "feature statistics": sum(statistics * math.prod(network.features) for network in networks),
        "L^ib for the guidance": sum(
            _FLOAT32 * guiding_pairs * math.prod(network.features[1:]) for network in networks
        ),
        "maps, uncompressed": sum(
            _FLOAT32 * network.image_size**2 * test_pairs * len(config.evaluations()) for network in networks
        ),
    }
    return {what: size for what, size in sizes.items() if size}
