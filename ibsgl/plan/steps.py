"""The steps of a run that pass images through a network, and the work of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ibsgl import attribution
from ibsgl.attribution import Passes
from ibsgl.attribution.cost import cost_of, passes_per_map
from ibsgl.config import Config
from ibsgl.data.sources import Split
from ibsgl.errors import ConfigError
from ibsgl.guidance.registry import NO_LOSS
from ibsgl.metrics import further
from ibsgl.plan.data import DataFacts
from ibsgl.plan.jobs import Jobs
from ibsgl.plan.networks import NetworkFacts, Work


@dataclass(frozen=True)
class Step:
    """A step of the run on one network: one row of the plan.

    Attributes:
        model: the network's name in the config.
        name: of the step, or the label of the saliency method.
        networks: on how many networks the step is run: replicates × variants.
        examples: number of images or pairs on each network.
        unit: what ``examples`` counts.
        work: the work on all networks; ``None``: the method or metric does not state its cost.
        at_most: part of the work may not be needed.
    """

    model: str
    name: str
    networks: int
    examples: int
    unit: Literal["images", "pairs"]
    work: Work | None
    at_most: bool = False


def images_passed(split: Split, batch_size: int) -> float:
    """How many images a method passes that passes an image once for all its classes (expected number).

    An image whose pairs lie in two batches is passed in both.
    """
    cuts = math.ceil(split.pairs / batch_size) - 1
    return split.images + cuts * (1 - split.images / split.pairs)


def method_work(
    method: attribution.Attribution, network: NetworkFacts, split: Split, batch_size: int, *, auto: bool = False
) -> tuple[Work | None, bool]:
    """The work of the maps of ``split`` on one network, and whether part of it may not be needed.

    With ``auto``, only some methods have passes in bf16; see :meth:`ibsgl.config.Config.precision_of`. The work is ``None`` if
    the method does not state its cost.

    Raises:
        ConfigError: the method cannot run on this network.
    """
    try:
        cost = cost_of(method, network.features[0], network.stages)
    except ValueError as error:
        raise ConfigError(f"models.{network.model}: {error}") from error
    if cost is None:
        return None, False
    images, batches = images_passed(split, batch_size), math.ceil(split.pairs / batch_size)
    passes = cost.pair * split.pairs + cost.image * images + cost.batch * batches
    return network.work(passes, cost.mixed and (cost.within_bound or not auto)), cost.at_most


def model_steps(jobs: Jobs, data: DataFacts, network: NetworkFacts) -> list[Step]:
    """Every step on one network of the config that passes images, in the order of the run."""
    config = jobs.config.for_model(jobs.model)
    steps = [*_training_steps(jobs, config, data, network), *_evaluation_steps(jobs, config, data, network)]
    steps += _further_steps(jobs, config, data, network)
    return [step for step in steps if step.networks]


def _step(
    name: str,
    networks: int,
    examples: int,
    unit: Literal["images", "pairs"],
    network: NetworkFacts,
    work: Work | None,
    at_most: bool = False,
) -> Step:
    """The step with ``work`` on each of ``networks`` networks."""
    whole = None if work is None else work * networks
    return Step(network.model, name, networks, examples, unit, whole, at_most)


def _predicting(network: NetworkFacts, images: float) -> Work:
    """The work of predicting the classes of ``images`` images."""
    return network.work(Passes(stem=1, head=1) * images)


def _training_steps(jobs: Jobs, config: Config, data: DataFacts, network: NetworkFacts) -> Iterator[Step]:
    train, held_out, test = (data.splits[split] for split in ("train", "held_out", "test"))
    classifier, training = config.classifier, config.guidance.training

    examples = classifier.epochs * train.images
    # The held-out images after each epoch and at the end, the test images at the end.
    predictions = _predicting(network, (classifier.epochs + 1) * held_out.images + test.images)
    work = network.training_work(examples) + predictions
    yield _step("classifier", jobs.count("classifier"), examples, "images", network, work)

    networks = jobs.count("bottleneck")
    stems = network.work(Passes(stem=train.images))
    yield _step("feature statistics", networks, train.images, "images", network, stems)
    # Of the held-out pairs also for the likeliest other class, which is predicted first.
    pairs = train.pairs + 2 * held_out.pairs
    bottleneck = config.bottleneck.cost(network.features[0]).pair
    work = network.work(bottleneck * pairs) + _predicting(network, held_out.pairs)
    yield _step("L^ib for the guidance", networks, pairs, "pairs", network, work)

    examples = training.epochs * train.pairs
    # The held-out images before the training and after each epoch, the test images before and after the training.
    predictions = _predicting(network, (training.epochs + 1) * held_out.images + 2 * test.images)
    for variant in config.trained_variants:
        guidance = config.guidance_of(variant)
        guided = guidance.loss != NO_LOSS
        work = network.training_work(examples, guidance if guided else None) + predictions
        if guidance.bottleneck_of == "current":
            on_head = Passes(head=bottleneck.head, head_backward=bottleneck.head_backward)
            work += network.work(on_head * examples)
        yield _step(f"{variant} training", jobs.count("guide", variant), examples, "pairs", network, work)


def _evaluation_steps(jobs: Jobs, config: Config, data: DataFacts, network: NetworkFacts) -> Iterator[Step]:
    held_out, test = data.splits["held_out"], data.splits["test"]
    for name, networks in jobs.methods().items():
        row = attribution.row(name, config.method_settings(name))
        work, at_most = method_work(row.method, network, test, config.batch_size, auto=config.precision == "auto")
        yield _step(row.label, networks, test.pairs, "pairs", network, work, at_most)

    # What is measured on all variants of a replicate is one job.
    replicates, variants = jobs.count("evaluate"), len(config.variant_names)
    every = replicates * variants
    # One pass over the whole image is for the scores too.
    images = images_passed(test, config.batch_size)
    further = data.splits["further"].images if "further" in data.splits else 0
    work = _predicting(network, images + further)
    yield _step("predictions", every, test.images + further, "images", network, work)
    # What each map keeps of the image.
    maps = jobs.scored_maps()
    yield _step("scores", maps, test.pairs, "pairs", network, _predicting(network, test.pairs))
    # What the map of Eq. 3 keeps: each trained variant's on the pretrained one, and the reverse.
    trained = replicates * (variants - 1)
    yield _step("cross-scoring", trained, test.pairs, "pairs", network, _predicting(network, 2 * test.pairs))

    stems = network.work(Passes(stem=held_out.pairs))
    losses = stems + network.work(Passes(head=1, head_backward=2) * held_out.pairs)
    yield _step("losses", every, held_out.pairs, "pairs", network, losses)
    diagnostics = stems + network.work(Passes(head=1, head_backward=1) * held_out.pairs)
    yield _step("diagnostics of L^ib", replicates, held_out.pairs, "pairs", network, diagnostics)

    # Where nothing or everything is deleted, one pass serves all orders.
    passes = 2 + (config.deletion.points - 2) * config.deletion.repeats
    curves = _predicting(network, passes * test.pairs)
    yield _step("deletion curves", every, test.pairs, "pairs", network, curves)


def _further_steps(jobs: Jobs, config: Config, data: DataFacts, network: NetworkFacts) -> Iterator[Step]:
    """The stored maps of methods of one pass, and the further metrics."""
    test, on = data.splits["test"], jobs.further_networks()
    if not on:
        return

    def maps_of(method: str) -> Work | None:
        row = attribution.row(method, config.method_settings(method))
        return method_work(row.method, network, test, config.batch_size, auto=config.precision == "auto")[0]

    light = [maps_of(method) for _, variant in on for method in config.light_methods(variant)]
    yield Step(network.model, "maps for further metrics", len(on), test.pairs, "pairs", _sum(light))
    methods = [method for replicate, variant in on for method in config.methods_of(variant, replicate)]
    for row in config.further_metrics:
        use, settings, label = config.further_metric(row)
        metric = further.get(use, **settings)
        works = [_metric_work(metric, method, maps_of(method), config, network, test.pairs) for method in methods]
        yield Step(network.model, label or metric.label, len(methods), test.pairs, "pairs", _sum(works))


def _metric_work(
    metric: Any, method: str, maps: Work | None, config: Config, network: NetworkFacts, pairs: int
) -> Work | None:
    """The work of a further metric of one method's maps on one network; ``None`` if it is unknown."""
    nothing = network.work(Passes())
    if metric.requires == "maps":
        return nothing
    if not hasattr(metric, "forward_passes") or not hasattr(metric, "further_maps"):
        return None
    built = attribution.row(method, config.method_settings(method)).method
    passes = passes_per_map(built, network.features[0], network.stages)
    if hasattr(metric, "unsuited") and metric.unsuited(passes):
        return nothing
    work = _predicting(network, metric.forward_passes() * pairs)
    if not metric.further_maps():
        return work
    return None if maps is None else work + maps * metric.further_maps()


def _sum(works: Iterable[Work | None]) -> Work | None:
    """The sum of ``works``; ``None`` if one of them is unknown."""
    total: Work | None = None
    for work in works:
        if work is None:
            return None
        total = work if total is None else total + work
    return total
