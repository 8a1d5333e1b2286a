"""The steps of a run that pass images through a network, and the work of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ibsgl import attribution
from ibsgl.attribution import Cost, Passes
from ibsgl.config import Config
from ibsgl.data.sources import Split
from ibsgl.plan.data import DataFacts
from ibsgl.plan.networks import NetworkFacts, Work
from ibsgl.training.variants import VARIANTS


@dataclass(frozen=True)
class Step:
    """A step of the run on one network: one row of the plan.

    Attributes:
        model: the network's name in the config.
        name: of the step, or the label of the saliency method.
        variants: on how many variants of the network the step is run.
        examples: number of images or pairs on each variant.
        unit: what ``examples`` counts.
        work: the work on all variants; ``None``: the method does not state its cost.
        at_most: part of the work may not be needed.
    """

    model: str
    name: str
    variants: int
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
    method: attribution.Attribution, network: NetworkFacts, split: Split, batch_size: int, variants: int = 1
) -> tuple[Work | None, bool]:
    """The work of the maps of ``split`` on ``variants`` variants, and whether part of it may not be needed.

    The work is ``None`` if the method does not state its cost.
    """
    if not hasattr(method, "cost"):
        return None, False
    cost: Cost = method.cost(network.features[0])
    images, batches = images_passed(split, batch_size), math.ceil(split.pairs / batch_size)
    passes = cost.pair * split.pairs + cost.image * images + cost.batch * batches
    return network.work(passes * variants, cost.mixed), cost.at_most


def variants_with_statistics(config: Config) -> set[str]:
    """The variants whose feature statistics are computed: the pretrained one for the guidance, others for a method."""
    evaluations = config.evaluations()
    methods = {name for name in {name for _, name in evaluations} if "statistics" in attribution.requirements(name)}
    return {"pretrained"} | {variant for variant, name in evaluations if name in methods}


def model_steps(config: Config, data: DataFacts, network: NetworkFacts) -> list[Step]:
    """Every step on one network that passes images, in the order of the run. ``config`` is resolved for this network."""
    return [*_training_steps(config, data, network), *_evaluation_steps(config, data, network)]


def _predicting(network: NetworkFacts, images: float) -> Work:
    """The work of predicting the classes of ``images`` images."""
    return network.work(Passes(stem=1, head=1) * images, mixed=True)


def _training_steps(config: Config, data: DataFacts, network: NetworkFacts) -> Iterator[Step]:
    train, held_out, test = (data.splits[split] for split in ("train", "held_out", "test"))
    classifier, guidance = config.classifier, config.guidance

    examples = classifier.epochs * train.images
    # The held-out images after each epoch and at the end, the test images at the end.
    predictions = _predicting(network, (classifier.epochs + 1) * held_out.images + test.images)
    yield Step(network.model, "classifier", 1, examples, "images", network.training_work(examples) + predictions)

    variants = len(variants_with_statistics(config))
    stems = network.work(Passes(stem=train.images * variants))
    yield Step(network.model, "feature statistics", variants, train.images, "images", stems)

    pairs = train.pairs + held_out.pairs
    bottleneck = config.bottleneck.cost(network.features[0]).pair
    yield Step(network.model, "L^ib for the guidance", 1, pairs, "pairs", network.work(bottleneck * pairs))

    examples = guidance.training.epochs * train.pairs
    # The held-out images before the training and after each epoch, the test images before and after the training.
    predictions = _predicting(network, (guidance.training.epochs + 1) * held_out.images + 2 * test.images)
    guided = network.training_work(examples, guidance) + predictions
    if guidance.bottleneck_network == "current":
        on_head = Passes(head=bottleneck.head, head_backward=bottleneck.head_backward)
        guided += network.work(on_head * examples)
    yield Step(network.model, "guided training", 1, examples, "pairs", guided)
    control = network.training_work(examples) + predictions
    yield Step(network.model, "control training", 1, examples, "pairs", control)


def _evaluation_steps(config: Config, data: DataFacts, network: NetworkFacts) -> Iterator[Step]:
    held_out, test = data.splits["held_out"], data.splits["test"]
    evaluations, every = config.evaluations(), len(VARIANTS)
    # Each method once, in the order of the tables.
    for name in dict.fromkeys(name for _, name in evaluations):
        method = attribution.get(name, **config.method_settings(name))
        variants = sum(evaluated == name for _, evaluated in evaluations)
        work, at_most = method_work(method, network, test, config.batch_size, variants)
        yield Step(network.model, method.label, variants, test.pairs, "pairs", work, at_most)

    # On each variant the whole image, and what each map keeps of it.
    scores = _predicting(network, (every + len(evaluations)) * test.pairs)
    yield Step(network.model, "scores", every, test.pairs, "pairs", scores)

    stems = network.work(Passes(stem=every * held_out.pairs), mixed=True)
    losses = network.work(Passes(head=1, head_backward=2) * (every * held_out.pairs))
    effect = stems + losses + _predicting(network, every * test.images)
    yield Step(network.model, "effect of guidance", every, held_out.pairs, "pairs", effect)

    points = config.deletion.points * config.deletion.repeats
    curves = _predicting(network, every * points * test.pairs)
    yield Step(network.model, "deletion curves", every, test.pairs, "pairs", curves)
