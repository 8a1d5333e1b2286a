"""The plan of a whole run: its data, its networks, its steps and its disk space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ibsgl import attribution
from ibsgl.attribution import Passes
from ibsgl.config import Config
from ibsgl.config.steps import lineage
from ibsgl.plan.data import DataFacts, data_facts
from ibsgl.plan.jobs import Jobs
from ibsgl.plan.networks import NetworkFacts, Work, network_facts
from ibsgl.plan.steps import Step, model_steps
from ibsgl.plan.timing import MeasuredHere, Timing

# Bytes of a number.
_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        name: of the config.
        replicates: number of trainings of every variant.
        networks: the networks of the config.
        steps: of every network, without those of alternatives.
        alternatives: by name, the work of the jobs that differ from those of the run itself.
        disk_bytes: see :func:`disk_space`; with the archives that are downloaded, and with the alternatives' files.
        device: whose seconds these are; ``None`` without times.
        timing: how the seconds were made; ``None`` without times.
        estimated: the seconds are not measured but computed from published values.
    """

    name: str
    replicates: int
    data: DataFacts
    networks: list[NetworkFacts]
    steps: list[Step]
    alternatives: dict[str, Work]
    disk_bytes: dict[str, int]
    device: str | None
    timing: str | None
    estimated: bool
    batch_size: int

    def total(self, model: str | None = None) -> Work:
        """The work of all steps of the network ``model``, or of all networks and alternatives.

        Steps of unknown work are left out.
        """
        total = _sum((step for step in self.steps if model in (None, step.model)), self.device is not None)
        return total if model else sum(self.alternatives.values(), total)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON: passes of one image each, FLOPs, seconds, bytes."""
        return asdict(self) | {"total": asdict(self.total())}


def make_plan(
    config: Config,
    images: Mapping[str, int] | None = None,
    calibration: bool = True,
    timing: Timing | None = None,
) -> Plan:
    """The plan of a run of ``config`` and of its alternatives.

    Args:
        images: see :func:`ibsgl.plan.data_facts`.
        calibration: run the networks for some seconds on the run's device, to measure the time. Where that is a GPU and this
            machine has none, nothing is measured.
        timing: times of another device. Then nothing is measured.

    Raises:
        ValueError: the number of images is unknown, or ``timing`` does not have a network of the config.
    """
    data = data_facts(config, images)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if config.device == "cuda" or (config.device == "auto" and cuda) else "cpu")
    if timing is None and calibration and (cuda or device.type == "cpu"):
        name = f"CPU, {config.threads} thread(s)" if device.type == "cpu" else torch.cuda.get_device_name(device)
        timing = MeasuredHere(device, name)
    known: dict[tuple[str, str, int], NetworkFacts] = {}

    def facts(of: Config, model: str, classes: int) -> NetworkFacts:
        # The losses change with other settings, but not what they cost.
        key = (model, of.network(model).model_dump_json(exclude={"multilabel"}), classes)
        if key not in known:
            resolved = of.for_model(model)
            known[key] = network_facts(resolved, model, classes)
            if timing is not None:
                seconds, batch = timing.seconds(resolved, known[key], classes)
                known[key] = replace(known[key], seconds=seconds, batch=batch)
        return known[key]

    networks = [facts(config, model, data.classes) for model in config.models]
    jobs = [Jobs(config, model) for model in config.models]
    disk = disk_space(jobs, data, networks)
    alternatives = {}
    for name in config.alternatives:
        other = config.alternative(name)
        other_data = data
        if lineage(other, "index") != lineage(config, "index"):
            other_data = data_facts(other, images, f"{config.name}/alternatives/{name}")
        other_jobs = [Jobs(other, of_model.model, of_model) for of_model in jobs]
        other_networks = [facts(other, of_model.model, other_data.classes) for of_model in jobs]
        steps = [
            step
            for of_model, network in zip(other_jobs, other_networks, strict=True)
            for step in model_steps(of_model, other_data, network)
        ]
        alternatives[name] = _sum(steps, timing is not None)
        for what, size in disk_space(other_jobs, other_data, other_networks).items():
            disk[what] = disk.get(what, 0) + size
    archives = config.data.archives
    # JPEG files do not shrink in an archive.
    packed = sum(archive.bytes for archive in archives.archives) if archives else 0
    return Plan(
        config.name,
        config.replicates,
        data,
        networks,
        [
            step
            for of_model, network in zip(jobs, networks, strict=True)
            for step in model_steps(of_model, data, network)
        ],
        alternatives,
        ({"archives": packed, "data, unpacked": packed} if packed else {}) | disk,
        timing.device if timing else None,
        timing.origin if timing else None,
        timing.estimated if timing else False,
        config.batch_size,
    )


def _sum(steps: Iterable[Step], timed: bool) -> Work:
    """The work of ``steps``, without those of unknown work."""
    known = [step.work for step in steps if step.work is not None]
    return sum(known, Work(Passes(), 0, 0.0 if timed else None))


def disk_space(jobs: Sequence[Jobs], data: DataFacts, networks: Sequence[NetworkFacts]) -> dict[str, int]:
    """Bytes of what the jobs on each network store, by name. Maps are an upper bound: float32 before compression.

    Maps of methods with ``coarse`` have the size of the feature map, others that of the image. Maps of methods of one pass are
    stored only for further metrics.
    """
    # Of the held-out pairs for the other class too.
    guiding_pairs = data.splits["train"].pairs + 2 * data.splits["held_out"].pairs
    test_pairs = data.splits["test"].pairs
    sizes = dict.fromkeys(("weights", "feature statistics", "L^ib for the guidance", "maps, uncompressed"), 0)
    for of_model, network in zip(jobs, networks, strict=True):
        trained = [of_model.count("guide", variant) for variant in of_model.config.trained_variants]
        replicates = of_model.count("bottleneck")
        channels, height, width = network.features
        sizes["weights"] += network.bytes * (of_model.count("classifier") + sum(trained))
        # Mean and squares in float64.
        sizes["feature statistics"] += 2 * _FLOAT64 * channels * height * width * replicates
        sizes["L^ib for the guidance"] += _FLOAT32 * guiding_pairs * height * width * replicates
        for method, stored in (*of_model.stored_maps().items(), *of_model.light_maps().items()):
            used = attribution.method_of(method, of_model.config.method_settings(method))
            cells = height * width if attribution.is_coarse(used) else network.image_size**2
            sizes["maps, uncompressed"] += _FLOAT32 * cells * test_pairs * stored
    return {what: size for what, size in sizes.items() if size}
