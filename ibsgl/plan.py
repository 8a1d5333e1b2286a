"""What a run will cost, before anything runs: pairs, passes, FLOPs, disk, and the time on this machine.

Passes are what each method says of itself (``cost``), FLOPs are what torch counts in the networks' passes, and the time is that
of a few bare passes here. What a method does besides, such as blurring images or weighting masks, is not in it: at the paper's
settings its matrix products are below a hundredth of the FLOPs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ibsgl import attribution
from ibsgl.config import NETWORKS, Config, Guidance, Suppression
from ibsgl.network import SplitNetwork, autocast, build_network, evaluating
from ibsgl.passes import Cost, Passes
from ibsgl.training import guided_losses

# (image, class) pairs of PASCAL VOC 2007's lists, by list and number of its images: the labels 1, and with difficult objects
# also 0, in its ImageSets/Main/<class>_<list>.txt, summed over the twenty classes. For trainval the former are the "img"
# column of Table 1 of its development kit's documentation (host.robots.ox.ac.uk/pascal/VOC/voc2007/htmldoc).
VOC2007_PAIRS = {
    ("trainval", 5011): {"keep": 7913, "drop": 7306},
    ("test", 4952): {"keep": 7632, "drop": 7013},
}
# VOC 2007's, for another multi-label set of which only the number of images is known.
PAIRS_PER_IMAGE = {
    difficult: sum(pairs[difficult] for pairs in VOC2007_PAIRS.values()) / sum(images for _, images in VOC2007_PAIRS)
    for difficult in ("keep", "drop")
}
# Of a data set that is not there and whose config does not name them; next to nothing depends on it.
CLASSES = 20

FLOAT = 4  # bytes
# A calibrated pass: the forward pass of as many images as take so long, repeated until so much time is spent.
PASS_SECONDS = 0.3


@dataclass(frozen=True)
class Split:
    """Size of a split."""

    images: int
    pairs: int


@dataclass(frozen=True)
class DataFacts:
    """What the plan needs to know of a data set; ``source`` says where the numbers come from."""

    splits: dict[str, Split]
    classes: int
    source: str


def _with_held_out(train: Split, test: Split, held_out: float, classes: int, source: str) -> DataFacts:
    """The held-out images set aside, with their share of the pairs."""
    images = round(held_out * train.images)
    pairs = round(train.pairs * images / train.images)
    splits = {
        "train": Split(train.images - images, train.pairs - pairs),
        "held_out": Split(images, pairs),
        "test": test,
    }
    return DataFacts(splits, classes, source)


def data_facts(
    config: Config, images: Mapping[str, int] | None = None, pairs_per_image: float | None = None
) -> DataFacts:
    """Images and pairs of each split: counted in the run's index or its data, or else as the config has them.

    Args:
        images: number of images by list (``{"trainval": 5011, "test": 4952}``), for data that is not there; otherwise
            the config's ``data.download.images``.
        pairs_per_image: for such data; otherwise 1, or where images show several classes VOC 2007's own number on its
            lists, and its mean on others.

    Raises:
        ValueError: nothing says how many images there are.
    """
    data, index = config.data, Path(f"results/{config.name}/index.parquet")
    if index.is_file():
        from ibsgl.data.voc import Index

        stored = Index.load(index)
        splits = {
            split: Split(rows["image_id"].nunique(), len(rows))
            for split, rows in stored.table.groupby("split", sort=False)
        }
        return DataFacts(splits, len(stored.class_names), f"counted in {index}")
    if data.source == "shapes":
        from ibsgl.data.shapes import CLASS_NAMES

        train, test = (Split(number, number) for number in (data.shapes.trainval, data.shapes.test))
        return _with_held_out(train, test, data.held_out, len(CLASS_NAMES), "as data.shapes has them")
    if data.source == "imagenet":
        train, test = (Split(number, number) for number in (1000 * data.imagenet.train, config.test_images))
        return _with_held_out(train, test, data.held_out, 1000, "as data.imagenet has them, of 1000 classes")
    lists = (data.splits.train, data.splits.test)
    root = Path(config.data_root)
    if (root / "ImageSets").is_dir():
        from ibsgl.data.voc import shown_classes

        shown = [shown_classes(root, name, data.difficult) for name in lists]
        train, test = (Split(len(of_list), sum(map(len, of_list.values()))) for of_list in shown)
        names = data.classes or set().union(*(classes for of_list in shown for classes in of_list.values()))
        return _with_held_out(train, test, data.held_out, len(names), f"counted in {root}")
    images = images or (data.download.images if data.download else {})
    if missing := [name for name in lists if name not in images]:
        raise ValueError(
            f"data.root: there is no folder {config.data_root!r} to count images in; give their number with "
            + " ".join(f"--images {name}=…" for name in missing)
        )

    def absent(name: str) -> Split:
        if pairs_per_image is not None:
            return Split(images[name], round(pairs_per_image * images[name]))
        if not data.multilabel:
            return Split(images[name], images[name])
        known = VOC2007_PAIRS.get((name, images[name]))
        return Split(
            images[name], known[data.difficult] if known else round(PAIRS_PER_IMAGE[data.difficult] * images[name])
        )

    train, test = map(absent, lists)
    own = all((name, images[name]) in VOC2007_PAIRS for name in lists) and pairs_per_image is None
    source = f"the data is absent; pairs {'as in the lists of VOC 2007' if own and data.multilabel else 'estimated'}"
    return _with_held_out(train, test, data.held_out, len(data.classes or ()) or CLASSES, source)


@dataclass(frozen=True)
class Prices:
    """What one image costs, in FLOPs or in seconds.

    ``full`` and ``mixed``: a pass through each part, in float32 and where :func:`ibsgl.network.autocast` is on.
    ``training`` and ``guided``: a training step's share, forward and backward to the weights.
    """

    full: Passes
    mixed: Passes
    training: float
    guided: float


@dataclass(frozen=True)
class Work:
    """Passes of single images, their FLOPs, and the seconds they take here; None: not calibrated."""

    passes: Passes
    flops: float
    seconds: float | None

    def __add__(self, other: Work) -> Work:
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return Work(self.passes + other.passes, self.flops + other.flops, seconds)


def _inner_steps(guidance: Guidance) -> int:
    """How often a training step takes the gradient of Eq. 10."""
    return guidance.steps if guidance.mode == "feature" else 1


@dataclass(frozen=True)
class NetworkFacts:
    """A network of the config: its size, and what its passes cost.

    ``features`` is the shape (C,h,w) of its map; ``batch`` is how many images the calibration passed at a time.
    """

    model: str
    arch: str
    image_size: int
    features: tuple[int, int, int]
    parameters: int
    bytes: int
    flops: Prices
    seconds: Prices | None = None
    batch: int | None = None

    def work(self, passes: Passes, mixed: bool = False) -> Work:
        """What these passes cost."""
        seconds = None if self.seconds is None else passes.at(self.seconds.mixed if mixed else self.seconds.full)
        return Work(passes, passes.at(self.flops.full), seconds)

    def training(self, examples: int, guidance: Guidance | None = None) -> Work:
        """What it costs to train on so many examples, with Algorithm 1 or without."""
        # The inner steps know one pass of the head (for p, L^c and L^p), two gradients, and the gradient of those.
        steps = 0 if guidance is None else _inner_steps(guidance)
        passes = Passes(stem=1, head=1 + steps, stem_backward=1, head_backward=1 + 3 * steps)
        kind = "training" if guidance is None else "guided"
        seconds = None if self.seconds is None else examples * getattr(self.seconds, kind)
        return Work(passes * examples, examples * getattr(self.flops, kind), seconds)


def _losses(
    network: SplitNetwork, images: torch.Tensor, classes: int, guidance: Guidance | None, suppression: Suppression
) -> torch.Tensor:
    """A training batch's loss, as training forms it, with targets and L^ib that are all alike."""
    labels = images.new_zeros(len(images), classes)
    labels[:, 0] = 1
    target = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    losses = guided_losses(
        network, images, labels, target, lambda a: a.new_ones(len(a), *a.shape[2:]), guidance, suppression
    )
    return losses["loss"].mean()


class _NoModules(nullcontext):
    """In place of torch's record of which module runs, whose hooks refuse gradients of a module's own input."""

    parents = frozenset({"Global"})


def flops_of(run: Callable[[], object]) -> int:
    """FLOPs of ``run`` as torch counts them, a multiplication and an addition being two."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter:
        run()
    return counter.get_total_flops()


def count_flops(network: SplitNetwork, image_size: int, config: Config) -> tuple[tuple[int, int, int], Prices]:
    """Shape (C,h,w) of the feature map, and the FLOPs of one image.

    They depend on shapes alone, so a network on the meta device, without memory, is as good as a real one.
    """
    images = torch.rand(1, 3, image_size, image_size, device=next(network.parameters()).device)
    parts = {}
    with evaluating(network):
        x = images
        for name, part in (("stem", network.stem), ("head", network.head)):
            with torch.no_grad():
                parts[name] = flops_of(lambda part=part, x=x: part(x))
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                y = part(x)
                parts[f"{name}_backward"] = flops_of(lambda x=x, y=y: torch.autograd.grad(y.sum(), x))
            if name == "stem":
                features = tuple(y.shape[1:])
            x = y
    network.eval()
    with torch.enable_grad():
        training, guided = (
            flops_of(
                lambda guidance=guidance: _losses(network, images, y.shape[1], guidance, config.suppression).backward()
            )
            for guidance in (None, config.guidance)
        )
    network.zero_grad(set_to_none=True)
    prices = Passes(**parts)
    return features, Prices(prices, prices, training, guided)


def _build(config: Config, model: str, classes: int) -> SplitNetwork:
    spec = config.models[model]
    return build_network(spec.arch, classes, multilabel=config.data.multilabel, source=spec.source, **spec.options)


def network_facts(config: Config, model: str, classes: int) -> NetworkFacts:
    """Size and FLOPs of the network ``model``; nothing is downloaded for it, unless its factory does so."""
    spec = config.models[model]
    # A factory may read weights, which the meta device has no place for.
    with nullcontext() if ":" in spec.arch else torch.device("meta"):
        network = _build(config, model, classes)
    features, flops = count_flops(network, spec.image_size, config)
    return NetworkFacts(
        model,
        spec.arch,
        spec.image_size,
        features,
        sum(parameter.numel() for parameter in network.parameters()),
        sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()),
        flops,
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``run``: the median after a first time, or the first on a CPU that needs long for it."""
    spent: list[float] = []
    while len(spent) < 2 or sum(spent[1:]) < PASS_SECONDS:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
        if device.type == "cpu" and spent[0] > PASS_SECONDS / 2:
            return spent[0]
    return median(spent[1:])


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def calibrate(config: Config, model: str, classes: int, device: torch.device) -> tuple[Prices, int]:
    """Seconds of one image on ``device``, with random weights, and how many images the stem was given at a time.

    That is the config's ``batch_size``, or fewer where a CPU would need long or a GPU has no memory for them. A CPU runs
    the config's ``threads``, as one job does.
    """
    size, batch = config.models[model].image_size, config.batch_size
    with _threads(config.threads), device:
        network = _build(config, model, classes).eval()
        if device.type == "cpu":
            with torch.no_grad():
                one = _seconds(lambda: network.stem(torch.rand(1, 3, size, size)), device)
            batch = max(1, min(batch, int(PASS_SECONDS / one)))
        while True:
            try:
                images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
                return _calibrate(network, images, classes, config, device), batch
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2


def _calibrate(
    network: SplitNetwork, images: torch.Tensor, classes: int, config: Config, device: torch.device
) -> Prices:
    with torch.no_grad():
        features = network.stem(images)
    # A fully connected head reads its weights once a batch, however many images are in it.
    features = features.repeat(math.ceil(config.batch_size / len(images)), 1, 1, 1)[: config.batch_size]

    def forward(part: nn.Module, x: torch.Tensor, mixed: bool) -> float:
        with torch.no_grad(), autocast(device) if mixed else nullcontext():
            return _seconds(lambda: part(x), device) / len(x)

    def backward(part: nn.Module, x: torch.Tensor, once: float) -> float:
        x = x.detach().requires_grad_(True)
        return max(0.0, _seconds(lambda: torch.autograd.grad(part(x).sum(), x), device) / len(x) - once)

    with evaluating(network):
        stem, head = forward(network.stem, images, False), forward(network.head, features, False)
        full = Passes(stem, head, backward(network.stem, images, stem), backward(network.head, features, head))
        mixed = full
        if device.type == "cuda":
            mixed = Passes(forward(network.stem, images, True), forward(network.head, features, True))

    def train_stem() -> None:
        with autocast(device):
            maps = network.stem(images)
        maps.float().sum().backward()

    alone = SplitNetwork(nn.Identity(), network.head, multilabel=network.multilabel)
    batch = features[: config.guidance.training.batch_size].requires_grad_(True)

    def train_head(guidance: Guidance | None) -> float:
        run = lambda: _losses(alone, batch, classes, guidance, config.suppression).backward()  # noqa: E731
        return _seconds(run, device) / len(batch)

    of_stem, of_head = _seconds(train_stem, device) / len(images), train_head(None)
    # One inner step is like another.
    inner = train_head(config.guidance.model_copy(update={"steps": 1})) - of_head
    return Prices(full, mixed, of_stem + of_head, of_stem + of_head + max(0.0, inner) * _inner_steps(config.guidance))


@dataclass(frozen=True)
class Step:
    """One row of the plan: a step on one model, for so many examples on each of so many of its networks.

    ``work`` is that on all of them, None where a method does not say; ``at_most``: some of it may not be needed.
    """

    model: str
    name: str
    networks: int
    examples: int
    unit: Literal["images", "pairs"]
    work: Work | None
    at_most: bool = False


def _passed_images(split: Split, batch_size: int) -> float:
    """Images whose passes all their classes share: one that is cut by the end of a batch is passed in both."""
    cuts = math.ceil(split.pairs / batch_size) - 1
    return split.images + cuts * (1 - split.images / split.pairs)


def method_work(
    method: attribution.Attribution, network: NetworkFacts, split: Split, batch_size: int, networks: int = 1
) -> tuple[Work | None, bool]:
    """What the maps of ``split`` cost on so many networks, and whether at most; None: the method does not say."""
    if not hasattr(method, "cost"):
        return None, False
    cost: Cost = method.cost(network.features[0])
    images, batches = _passed_images(split, batch_size), math.ceil(split.pairs / batch_size)
    passes = cost.pair * split.pairs + cost.image * images + cost.batch * batches
    return network.work(passes * networks, cost.mixed), cost.at_most


def steps(config: Config, data: DataFacts, network: NetworkFacts) -> list[Step]:
    """Every step of one model that passes images, in the order of running; ``config`` is that model's."""
    train, held_out, test = (data.splits[split] for split in ("train", "held_out", "test"))
    classifier, guidance = config.classifier, config.guidance
    cells, every = config.cells(), len(NETWORKS)
    methods = {name: attribution.get(name, **config.method_settings(name)) for _, name in cells}
    rows: list[Step] = []

    def row(
        name: str,
        networks: int,
        examples: int,
        unit: Literal["images", "pairs"],
        work: Work | None,
        at_most: bool = False,
    ) -> None:
        rows.append(Step(network.model, name, networks, examples, unit, work, at_most))

    def predict(images: float) -> Work:
        return network.work(Passes(stem=1, head=1) * images, mixed=True)

    seen = classifier.epochs * train.images
    checked = predict((classifier.epochs + 1) * held_out.images + test.images)
    row("classifier", 1, seen, "images", network.training(seen) + checked)
    described = _described(config)
    passed = network.work(Passes(stem=train.images * len(described)))
    row("feature statistics", len(described), train.images, "images", passed)
    guiding = train.pairs + held_out.pairs
    of_bottleneck = methods["bottleneck"].cost(network.features[0]).pair
    row("L^ib for the guidance", 1, guiding, "pairs", network.work(of_bottleneck * guiding))
    seen = guidance.training.epochs * train.pairs
    checked = predict((guidance.training.epochs + 1) * held_out.images + 2 * test.images)
    guided = network.training(seen, guidance) + checked
    if guidance.bottleneck_network == "current":
        guided += network.work(Passes(head=of_bottleneck.head, head_backward=of_bottleneck.head_backward) * seen)
    row("guided training", 1, seen, "pairs", guided)
    row("control training", 1, seen, "pairs", network.training(seen) + checked)
    for name, method in methods.items():
        networks = sum(of == name for _, of in cells)
        row(
            method.label,
            networks,
            test.pairs,
            "pairs",
            *method_work(method, network, test, config.batch_size, networks),
        )
    # The whole image once a network, and what each of its maps keeps.
    row("scores", every, test.pairs, "pairs", predict((every + len(cells)) * test.pairs))
    losses = Passes(head=1, head_backward=2) * (every * held_out.pairs)
    stems = network.work(Passes(stem=every * held_out.pairs), mixed=True)
    row(
        "effect of guidance",
        every,
        held_out.pairs,
        "pairs",
        stems + network.work(losses) + predict(every * test.images),
    )
    deleted = config.deletion.points * config.deletion.repeats
    row("deletion curves", every, test.pairs, "pairs", predict(every * deleted * test.pairs))
    return rows


def _described(config: Config) -> set[str]:
    """The networks whose feature statistics are asked for; the guidance always asks for the pretrained one's."""
    return {"pretrained"} | {
        network
        for network, name in config.cells()
        if "statistics" in attribution.get(name, **config.method_settings(name)).requires
    }


def disk(config: Config, data: DataFacts, networks: list[NetworkFacts]) -> dict[str, int]:
    """Bytes by what they hold. Maps are the bound: float32, before compression."""
    pairs = data.splits["train"].pairs + data.splits["held_out"].pairs
    parts = {
        "archives": sum(archive.bytes for archive in config.data.download.archives) if config.data.download else 0,
        # Pictures do not become smaller by being packed.
        "data, unpacked": sum(archive.bytes for archive in config.data.download.archives)
        if config.data.download
        else 0,
        "weights": sum(len(NETWORKS) * network.bytes for network in networks),
        # Two sums in float64.
        "feature statistics": sum(
            len(_described(config)) * 2 * 8 * math.prod(network.features) for network in networks
        ),
        "L^ib for the guidance": sum(FLOAT * pairs * math.prod(network.features[1:]) for network in networks),
        "maps, uncompressed": sum(
            FLOAT * network.image_size**2 * data.splits["test"].pairs * len(config.cells()) for network in networks
        ),
    }
    return {what: number for what, number in parts.items() if number}


@dataclass(frozen=True)
class Plan:
    """What a run of the config ``name`` will cost; ``device`` says on what the time was measured."""

    name: str
    data: DataFacts
    networks: list[NetworkFacts]
    steps: list[Step]
    disk_bytes: dict[str, int]
    device: str | None
    batch_size: int

    def total(self, model: str | None = None) -> Work:
        """All that is known of one model, or of all."""
        known = [step.work for step in self.steps if step.work is not None and model in (None, step.model)]
        return sum(known[1:], known[0])

    def as_dict(self) -> dict[str, Any]:
        """All numbers for JSON: passes of single images, FLOPs, seconds, bytes."""
        return asdict(self) | {"total": asdict(self.total())}


def plan(config: Config, images: Mapping[str, int] | None = None, calibration: bool = True) -> Plan:
    """The plan of ``config``; with ``calibration`` the networks are run for some seconds on the device of the run.

    Where that is a GPU and there is none here, nothing is timed. ``images`` as for :func:`data_facts`.
    """
    data = data_facts(config, images)
    networks = [network_facts(config.for_model(model), model, data.classes) for model in config.models]
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if config.device == "cuda" or (config.device == "auto" and cuda) else "cpu")
    described = None
    if calibration and (cuda or device.type == "cpu"):
        described = f"CPU, {config.threads} thread(s)" if device.type == "cpu" else torch.cuda.get_device_name(device)
        timed = []
        for network in networks:
            seconds, batch = calibrate(config.for_model(network.model), network.model, data.classes, device)
            timed.append(replace(network, seconds=seconds, batch=batch))
        networks = timed
    return Plan(
        config.name,
        data,
        networks,
        [step for network in networks for step in steps(config.for_model(network.model), data, network)],
        disk(config, data, networks),
        described,
        config.batch_size,
    )


def _si(number: float, unit: str) -> str:
    """Three significant digits and a prefix: ``8.18 GFLOP``."""
    for prefix, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999.6 of the smaller unit would be rounded to 1000 of them.
        if number >= 0.9995 * factor:
            return f"{number / factor:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{number:.0f} {unit}"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number < 1e6 else _si(number, "")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{1000 * seconds:.3g} ms"


def _cells(work: Work | None) -> list[str]:
    if work is None:
        return ["unknown"] * 6
    return [*map(_count, astuple(work.passes)), _si(work.flops, "FLOP"), _duration(work.seconds)]


def _prices(network: NetworkFacts) -> Iterator[tuple[str, float, float | None]]:
    """(pass, FLOPs, seconds) of one image."""
    flops, seconds = network.flops, network.seconds
    for kind, label in (("full", ""), ("mixed", ", bf16")):
        if kind == "mixed" and (seconds is None or seconds.mixed == seconds.full):
            continue
        for part in ("stem", "head"):
            for key, direction in ((part, "forward"), (f"{part}_backward", "backward to its input")):
                if kind == "full" or direction == "forward":
                    of_seconds = seconds and getattr(getattr(seconds, kind), key)
                    yield f"{part} {direction}{label}", getattr(flops.full, key), of_seconds
    yield "training step", flops.training, seconds and seconds.training
    yield "guided training step", flops.guided, seconds and seconds.guided


def show(plan: Plan, console: Console) -> None:
    """Print the plan as tables; as plain columns where ``console`` is no terminal."""

    frame = box.SIMPLE_HEAD if console.is_terminal else None

    def table(title: str, *headings: str) -> Table:
        console.print(title, style="bold", soft_wrap=True)
        made = Table(box=frame, pad_edge=False)
        for number, heading in enumerate(headings):
            made.add_column(heading, justify="right" if number else "left", no_wrap=number == 0)
        return made

    def put(made: Table) -> None:
        console.print(made)
        console.print()

    splits = table(f"{plan.name}: {plan.data.source}", "split", "images", "(image, class) pairs")
    for name, split in plan.data.splits.items():
        splits.add_row(name, f"{split.images:,}", f"{split.pairs:,}")
    put(splits)
    for network in plan.networks:
        shape = "×".join(map(str, network.features))
        title = (
            f"{network.model}: {network.arch} at {network.image_size} px, feature map {shape}, "
            f"{_count(network.parameters)} parameters"
        )
        here = f"time here, {network.batch} at a time" if network.batch else "time"
        prices = table(title, "for one image", "FLOPs", here, "rate")
        for name, flops, seconds in _prices(network):
            rate = _si(flops / seconds, "FLOP/s") if seconds else "–"
            prices.add_row(name, _si(flops, "FLOP"), _duration(seconds), rate)
        put(prices)
        columns = ("stem forward", "head forward", "stem backward", "head backward", "FLOPs", "time")
        made = table(f"{network.model}: passes of single images", "step", "networks", "examples", *columns)
        for step in plan.steps:
            if step.model == network.model:
                name = f"{step.name} (at most)" if step.at_most else step.name
                made.add_row(name, str(step.networks), f"{step.examples:,} {step.unit}", *_cells(step.work))
        made.add_section()
        made.add_row("all", "", "", *_cells(plan.total(network.model)))
        put(made)
    space = table("Disk", "what", "size")
    for what, number in plan.disk_bytes.items():
        space.add_row(what, _si(number, "B"))
    space.add_section()
    space.add_row("all", _si(sum(plan.disk_bytes.values()), "B"))
    put(space)
    total = plan.total()
    on = f"{_duration(total.seconds)} on {plan.device}, one job at a time" if plan.device else "time not measured"
    unknown = " Methods marked unknown are not in it." if any(step.work is None for step in plan.steps) else ""
    console.print(
        f"In all {_si(total.flops, 'FLOP')}, {on}: the networks' passes alone, without reading images, making masks and "
        f"the optimiser's steps.{unknown}",
        soft_wrap=True,
    )
    console.print(
        "Grad-CAM, Grad-CAM++ and Eq. 3 are counted each, and share their passes on a network.", soft_wrap=True
    )
