"""The speed of each saliency method, compared with the passes that it needs and with other implementations.

All results are ratios of times that are measured in turns in one process. The floor of a method is the time of plain passes,
as many as its ``cost`` states, at the best batch size. Its efficiency is floor / time. Weights and images are random, because
the times do not depend on them. The numbers of masks, steps and channels are small and stand in the table. The cost of one of
them is measured.

    uv run python benchmarks/speed.py --peers TorchRay --peers IBA --precision bfloat16 --compile auto

``--peers`` names the folders that TorchRay and IBA are checked out in. ``--precision`` and ``--compile`` are those of a run.
They change our methods of many passes and their floors; the other implementations stay as they are. The tables are printed.
The tables and a plot are also written to ``results/benchmarks``.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, get_args

import torch
import typer
from peers import PEERS, Inputs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.stats import spearmanr
from torch import nn

from ibsgl import attribution
from ibsgl.attribution import Cost, Passes
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.files import write_json, written
from ibsgl.guidance import GuidanceSettings, training_losses
from ibsgl.metrics import faithfulness, localization
from ibsgl.networks import (
    FastPasses,
    Precision,
    SplitNetwork,
    build_network,
    evaluating,
    fast_passes,
    forward_pass,
    input_gradient,
    shared_gradient,
)
from ibsgl.networks.passes import native_precision
from ibsgl.suppression import SuppressionSettings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

CLASSES = 20
# Masked images in a forward pass, and nodes of an integral: the same for our method, the other implementation and the floor.
CHUNK = 16
# The floor uses the best of these batch sizes.
BATCHES = (1, 4, CHUNK)
# Rounds in which all are timed in turns, if ``--seconds`` allows.
ROUNDS = 7
# Sizes in the table, and in the growth curves.
MASKS, STEPS, ITERATIONS, CHANNELS = 16, 8, 3, 16
GROWTH = {"images": (1, 4, 16, 64), "classes": (1, 2, 4), "masks": (16, 64, 256), "channels": (16, 64, 256)}
NETWORKS = ("resnet50", "vgg16")
# The methods whose passes have the run's precision, and how much faster than the fastest peer they are to be in bf16.
# FASTER_COMPILED: the same for float32 folded or compiled, on ResNet-50.
FASTER = {"rise": 1.9, "score_cam": 1.9, "integrated_gradients": 1.6, "extremal_perturbation": 1.6}
FASTER_COMPILED = 1.15
CAMS = ("gradcam", "gradcam_pp", "gradient")


@dataclass(frozen=True)
class Case:
    """A row of the table: a registered method with its settings, on a number of images.

    ``description`` is what the table states of the settings.
    """

    name: str
    settings: Mapping[str, Any]
    images: int
    description: str


def cases() -> dict[str, Case]:
    """The methods by name, at settings that the other implementation has too."""
    listed = (
        *(Case(name, {}, 4, "") for name in CAMS),
        # The other implementation takes tens of passes per image.
        Case("fullgrad", {}, 2, ""),
        Case("integrated_gradients", {"steps": STEPS, "chunk": CHUNK}, 1, f"{STEPS} steps"),
        Case("rise", {"masks": MASKS, "chunk": CHUNK}, 1, f"{MASKS} masks"),
        Case(
            "score_cam",
            {"weight": "softmax_scores", "fill": "mean", "chunk": CHUNK},
            1,
            f"{CHANNELS} channels that are not constant",
        ),
        Case("sise", {"mu": 0.95, "chunk": CHUNK}, 1, "channels of nearly the largest gradient"),
        Case("extremal_perturbation", {"iterations": ITERATIONS}, 4, f"{ITERATIONS} iterations"),
        Case("bottleneck", {}, 8, "10 steps of 10 samples"),
    )
    return {case.name: case for case in listed}


class Clock:
    """Seconds of functions that run in turns on one device. With ``shared`` they are CPU seconds of this process."""

    def __init__(self, device: torch.device, seconds: float, shared: bool = False):
        self.device, self.seconds = device, seconds
        self.now = time.process_time if shared else time.perf_counter

    def once(self, run: Callable[[], object]) -> float:
        """Seconds of one call."""
        start = self.now()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.now() - start

    def compare(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each run by name, in as many rounds as fit. The first round counts only if no other fits.

        Every second round goes backwards, so that a machine that slows down slows all runs.
        """
        first = {name: [self.once(run)] for name, run in runs.items()}
        cost = sum(map(sum, first.values()))
        rounds = min(ROUNDS, int(self.seconds / cost))
        if rounds < 1:
            return first
        spent: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds):
            for name in reversed(runs) if turn % 2 else runs:
                spent[name].append(self.once(runs[name]))
        return spent


def ratio(spent: Mapping[str, list[float]], above: str, below: str) -> float:
    """Median over the rounds of the ratio of the times of ``above`` and ``below``."""
    return median(a / b for a, b in zip(spent[above], spent[below], strict=True))


class _Some(nn.Module):
    """Some channels of a feature map."""

    def __init__(self, channels: torch.Tensor):
        super().__init__()
        self.register_buffer("channels", channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) → (B,channels,h,w)."""
        return features[:, self.channels].contiguous(memory_format=torch.channels_last)


class _Padded(nn.Module):
    """A head whose input has only some of its ``total`` channels. The other channels are zero."""

    def __init__(self, head: nn.Module, channels: torch.Tensor, total: int):
        super().__init__()
        self.head, self.total = head, total
        self.register_buffer("channels", channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B,c,h,w) → logits (B,K)."""
        whole = features.new_zeros(len(features), self.total, *features.shape[2:])
        return self.head(whole.index_copy(1, self.channels, features))


class Bench:
    """One network with random weights, images for it, and the plain passes of the floors."""

    def __init__(self, arch: str, size: int, clock: Clock, precision: Precision = "float32", compile: str = "off"):
        torch.manual_seed(0)
        self.precision: Precision = precision
        self.compile = compile == "auto"
        self.arch, self.size, self.clock, self.device = arch, size, clock, clock.device
        device = clock.device
        self.network = build_network(arch, CLASSES, multilabel=True).to(device).eval()
        coarse = torch.rand(max(BATCHES), 3, 8, 8)
        images = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
        self.images = images.to(device, memory_format=torch.channels_last)
        self.targets = (torch.arange(len(images)) % CLASSES).to(device)
        with evaluating(self.network), torch.no_grad():
            self.features = self.network.stem(self.images)
        self.channels = self.features.shape[1]
        self.statistics = FeatureStatistics().update(self.features)
        self.batch = self._best_batch()

    def take(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``number`` images (B,3,H,W) and their targets (B,), in new tensors."""
        places = torch.arange(number, device=self.device) % len(self.images)
        return self.images[places], self.targets[places]

    def narrow(self, channels: int) -> SplitNetwork:
        """The network with some of its feature channels, so that Score-CAM makes few masks.

        A channel that is constant gives no mask, and a pass then has fewer images than those that are compiled. So those that
        vary in the first image come first.
        """
        network, normalize = self.network, self.network.stem.normalize
        constant = self.features[0].amax((-2, -1)) == self.features[0].amin((-2, -1))
        places = constant.int().argsort(stable=True)[:channels]
        return SplitNetwork(
            nn.Sequential(network.stem.backbone, _Some(places)),
            _Padded(network.head, places, self.channels),
            mean=normalize.mean.flatten().tolist(),
            std=normalize.std.flatten().tolist(),
            multilabel=network.multilabel,
        ).to(self.device)

    def _best_batch(self) -> int:
        """The batch size at which a forward pass takes the least time per image."""
        with evaluating(self.network), torch.no_grad():
            self.network(self.images[:1])
            runs = {size: lambda size=size: self.network(self.images[:size]) for size in BATCHES}
            spent = self.clock.compare(runs)
        # The largest, unless another is faster by a twentieth: smaller differences are noise.
        return min(BATCHES, key=lambda size: median(spent[size]) / size * (0.95 if size == max(BATCHES) else 1))

    @contextmanager
    def fast(self, network: SplitNetwork, cost: Cost) -> Iterator[FastPasses | None]:
        """Inside, the passes of a method on ``network`` and those of its floor are as in a run."""
        masked = cost.image.head > 0
        shape, compile = (CHUNK, 3, self.size, self.size), self.compile and masked
        with ExitStack() as stack:
            passes = [
                stack.enter_context(fast_passes(each, shape, self.precision, fold=self.compile, compile=compile))
                for each in (network, self.network)
                if cost.mixed
            ]
            yield passes[0] if passes else None

    def forward(self) -> None:
        """A plain forward pass of :attr:`batch` images."""
        with evaluating(self.network), torch.no_grad():
            self.network(self.images[: self.batch])

    def floor(self, passes: Passes, batch: int | None = None) -> Callable[[], None]:
        """A function that runs ``passes`` and nothing else, ``batch`` images at a time."""
        size = batch or self.batch
        through, head_only = passes.stem_backward, passes.head_backward - passes.stem_backward
        stem, head = passes.stem - through, passes.head - passes.head_backward
        network = self.network

        def gradient(part: nn.Module, x: torch.Tensor) -> None:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                torch.autograd.grad(part(x).sum(), x)

        def forward(part: nn.Module, x: torch.Tensor) -> None:
            with torch.no_grad():
                part(x)

        def whole(x: torch.Tensor) -> None:
            forward_pass(network, x)

        def whole_gradient(x: torch.Tensor) -> None:
            input_gradient(network, x, torch.zeros(len(x), dtype=torch.int64, device=x.device))

        def run() -> None:
            with evaluating(network):
                for x in self._batches(self.images, through, size):
                    whole_gradient(x)
                for x in self._batches(self.images, min(stem, head), size):
                    whole(x)
                for x in self._batches(self.images, stem - min(stem, head), size):
                    forward(network.stem, x)
                # A fully connected head reads its weights once per batch, so large batches are faster here.
                for x in self._batches(self.features, head - min(stem, head), 8 * CHUNK):
                    forward(network.head, x)
                for x in self._batches(self.features, head_only, 8 * CHUNK):
                    gradient(network.head, x)

        return run

    @staticmethod
    def _batches(tensors: torch.Tensor, number: float, size: int) -> Iterator[torch.Tensor]:
        number = round(number)
        for start in range(0, number, size):
            length = min(size, number - start)
            repeats = math.ceil(length / len(tensors))
            yield (tensors.repeat(repeats, 1, 1, 1) if repeats > 1 else tensors)[:length]

    def inputs(self, case: Case) -> Inputs:
        """What the implementations of a row get."""
        images, targets = self.take(case.images)
        network = self.narrow(CHANNELS) if case.name == "score_cam" else self.network
        method = attribution.get(case.name, **case.settings)
        return Inputs(method, network, images, targets, self.statistics, self.images)


def _passes(cost: Cost, pairs: int, images: int) -> Passes:
    return cost.pair * pairs + cost.image * images + cost.batch


def _passes_run(inputs: Inputs) -> Passes:
    """The passes of one call of SISE, which depend on the channels that it selects."""
    sizes: list[int] = []
    with inputs.network.stem.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0]))):
        inputs.ours()
    pairs = len(inputs.images)
    return Passes(sum(sizes), sum(sizes), pairs, pairs)


def measure_method(bench: Bench, case: Case) -> dict[str, Any]:
    """Seconds, floor and efficiency of one method, compared with the other implementation."""
    inputs, peer = bench.inputs(case), PEERS.get(case.name)
    channels = CHANNELS if case.name == "score_cam" else bench.channels
    cost = inputs.method.cost(min(channels, bench.channels))
    passes = _passes_run(inputs) if case.name == "sise" else _passes(cost, case.images, case.images)
    maps: dict[str, torch.Tensor] = {}
    # A floor whose passes are compiled has batches of the compiled size.
    batch = CHUNK if bench.compile and cost.mixed else bench.batch

    def keep(name: str, run: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: maps.__setitem__(name, run())

    runs = {
        "forward": bench.forward,
        # Before the floor: if there is one round only, later runs find the memory warm.
        "ours": keep("ours", inputs.ours),
        "floor": bench.floor(passes, batch),
    }
    row: dict[str, Any] = {
        "network": bench.arch,
        "method": inputs.method.label,
        "name": case.name,
        "settings": ", ".join(filter(None, [f"{case.images} image" + "s" * (case.images > 1), case.description])),
    }
    peer_images = peer.images(case.images) if peer else case.images
    if peer and peer.installed:
        runs["theirs"] = keep("theirs", peer.runner(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with bench.fast(inputs.network, cost) as fast:
            spent = bench.clock.compare(runs)
        bench.network.zero_grad(set_to_none=True)
        row |= {
            "rounds": len(spent["ours"]),
            "floor_batch": bench.batch,
            "seconds": median(spent["ours"]) / case.images,
            "floor": median(spent["floor"]) / case.images,
            "efficiency": ratio(spent, "floor", "ours"),
            "forwards": ratio(spent, "ours", "forward") * bench.batch / case.images,
            "peer": peer and peer.package,
            "peer_forwards": None,
            "speedup": None,
            "agreement": "not installed" if peer and not peer.installed else None,
            "agrees": None,
            "precision": bench.precision if cost.mixed else "float32",
            "folded": False,
            "compiled": False,
            "spearman": None,
        }
        if "theirs" in runs:
            row["peer_forwards"] = ratio(spent, "theirs", "forward") * bench.batch / peer_images
            row["speedup"] = ratio(spent, "theirs", "ours") * case.images / peer_images
    if fast:
        row |= {"folded": fast.folded, "compiled": fast.compiled}
    ours = maps["ours"]
    if cost.mixed and (bench.precision != "float32" or bench.compile):
        # The other implementation is compared in the same precision as its own.
        ours = inputs.ours()
        pairs = zip(ours.flatten(1).cpu(), maps["ours"].flatten(1).cpu(), strict=True)
        row["spearman"] = min(spearmanr(one, other).statistic for one, other in pairs)
    if peer and "theirs" in runs:
        row["agreement"], row["agrees"] = peer.compare(inputs, ours, maps["theirs"])
    return row


def measure_cams(bench: Bench) -> dict[str, Any]:
    """Grad-CAM, Grad-CAM++ and Eq. 3 together, as in a job, compared with one stem pass and the head's gradient."""
    methods = [attribution.get(name) for name in CAMS]
    images, targets = bench.take(min(8, max(BATCHES)))

    def together() -> None:
        with shared_gradient():
            for method in methods:
                method(bench.network, images, targets)

    cost = methods[0].cost(bench.channels)
    spent = bench.clock.compare({"ours": together, "floor": bench.floor(_passes(cost, len(images), len(images)))})
    return {"network": bench.arch, "images": len(images), "ratio": ratio(spent, "ours", "floor")}


def measure_guidance(bench: Bench, batch: int) -> dict[str, Any]:
    """A guided training step, with cached and with computed maps, compared with an unguided step.

    The steps are those of :func:`ibsgl.training.guided.train_guided` with the default settings.
    """
    images, targets = bench.take(batch)
    labels = nn.functional.one_hot(targets, CLASSES).float()
    method = attribution.get("bottleneck")
    with evaluating(bench.network), torch.no_grad():
        cached = method.feature_saliency(bench.network, bench.network.stem(images), targets, bench.statistics)
    network = build_network(bench.arch, CLASSES, multilabel=True).to(bench.device).eval()
    # With a learning rate of zero random weights do not diverge, and a step costs the same.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def step(guidance: GuidanceSettings | None, l_ib: Callable[[torch.Tensor], torch.Tensor]) -> None:
        loss = guidance.build_loss(SuppressionSettings()) if guidance is not None else None
        losses = training_losses(network, images, labels, targets, loss, teach=l_ib)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].mean().backward()
        optimizer.step()

    def computed(features: torch.Tensor) -> torch.Tensor:
        return method.feature_saliency(network, features.detach(), targets, bench.statistics)

    runs = {
        "plain": lambda: step(None, computed),
        "cached": lambda: step(GuidanceSettings(), lambda features: cached),
        "computed": lambda: step(GuidanceSettings(), computed),
    }
    spent = bench.clock.compare(runs)
    return {
        "network": bench.arch,
        "batch": batch,
        "plain_seconds": median(spent["plain"]),
        "cached": ratio(spent, "cached", "plain"),
        "computed": ratio(spent, "computed", "plain"),
    }


def measure_metrics(bench: Bench) -> dict[str, Any]:
    """All metrics of one map, compared with Grad-CAM's map and the two forward passes of AD and AI."""
    images, targets = bench.take(min(8, max(BATCHES)))
    gradcam = attribution.get("gradcam")
    saliency = gradcam(bench.network, images, targets)
    region = torch.zeros_like(saliency, dtype=torch.bool)
    region[:, bench.size // 4 : bench.size // 2, bench.size // 4 : -bench.size // 4] = True
    p = torch.rand(2, len(images), device=bench.device)

    def metrics() -> None:
        faithfulness.keep_top(images, saliency)
        for metric in (localization.ebpg, localization.miou, localization.bbox):
            metric(saliency, region)
        faithfulness.average_drop(*p), faithfulness.average_increase(*p)

    passes = bench.floor(Passes(stem=2, head=2) * len(images))

    def reference() -> None:
        gradcam(bench.network, images, targets)
        passes()

    spent = bench.clock.compare({"metrics": metrics, "reference": reference})
    return {
        "network": bench.arch,
        "images": len(images),
        "seconds": median(spent["metrics"]) / len(images),
        "share": ratio(spent, "metrics", "reference"),
    }


def _grown(bench: Bench, kind: str, number: int, name: str) -> Callable[[], object]:
    """A run of the method ``name`` with ``number`` images, classes, masks or channels; ``kind`` is which of these."""
    settings = {"rise": {"masks": number if kind == "masks" else MASKS, "chunk": CHUNK}, "score_cam": {"chunk": CHUNK}}
    method = attribution.get(name, **settings.get(name, {}))
    context = {"statistics": bench.statistics} if "statistics" in method.requires else {}
    images, targets = bench.take(number if kind == "images" else 1)
    network = bench.network
    if kind == "classes":
        images, targets = images.repeat(number, 1, 1, 1), torch.arange(number, device=bench.device)
    if name == "score_cam":
        network = bench.narrow(number if kind == "channels" else CHANNELS)
    return lambda: method(network, images, targets, **context)


def growth_points(limit: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """(kind, method, numbers up to ``limit``) of every growth curve. ``kind`` is what grows."""
    pairs = (
        *(("images", name) for name in ("gradcam", "fullgrad", "bottleneck")),
        *(("classes", name) for name in ("rise", "score_cam")),
        ("masks", "rise"),
        ("channels", "score_cam"),
    )
    return [(kind, name, tuple(n for n in GROWTH[kind] if n <= limit) or GROWTH[kind][:1]) for kind, name in pairs]


def measure_growth(bench: Bench, kind: str, name: str, numbers: tuple[int, ...]) -> dict[str, Any]:
    """The time at each of ``numbers``, divided by the time at the first."""
    spent = bench.clock.compare({str(n): _grown(bench, kind, n, name) for n in numbers})
    first = str(numbers[0])
    return {
        "network": bench.arch,
        "size": bench.size,
        "kind": kind,
        "method": attribution.get(name).label,
        "name": name,
        "numbers": list(numbers),
        "times": [ratio(spent, str(n), first) for n in numbers],
        "seconds": median(spent[first]),
    }


def goals(found: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The goals that were measured, the values found, and whether they meet the goals."""
    listed: list[dict[str, Any]] = []

    def goal(network: str, text: str, value: float | None, limit: float, least: bool) -> None:
        if value is not None:
            met = value >= limit if least else value <= limit
            listed.append(
                {"network": network, "goal": f"{text} {'≥' if least else '≤'} {limit:g}", "found": value, "met": met}
            )

    for row in found["methods"]:
        network, label = row["network"], row["method"]
        if row["name"] == "fullgrad":
            goal(network, f"{label}: plain forward passes per image", row["forwards"], 4, False)
            goal(network, f"{label}: times as fast as grad-cam", row["speedup"], 5, True)
        if row["name"] in ("rise", "score_cam", "sise", "integrated_gradients", "extremal_perturbation"):
            goal(network, f"{label}: efficiency", row["efficiency"], 0.9, True)
        if row["name"] in FASTER and row["precision"] == "bfloat16":
            goal(
                network,
                f"{label} in bfloat16: times as fast as {row['peer']}",
                row["speedup"],
                FASTER[row["name"]],
                True,
            )
        elif row["name"] in FASTER and row["folded"] and network == "resnet50":
            how = "compiled" if row["compiled"] else "folded"
            goal(network, f"{label}, {how}: times as fast as {row['peer']}", row["speedup"], FASTER_COMPILED, True)
        if row["name"] == "bottleneck":
            goal(network, f"{label}: times as fast as IBA", row["speedup"], 60, True)
    for row in found["cams"]:
        goal(row["network"], "three CAMs / one stem pass and the head's gradient", row["ratio"], 1.15, False)
    for row in found["guidance"]:
        goal(row["network"], "guided step / plain step, maps cached", row["cached"], 1.5, False)
    for row in found["metrics"]:
        goal(row["network"], "all metrics of a map / Grad-CAM's map and two passes", row["share"], 0.02, False)
    for row in found["growth"]:
        if row["kind"] == "classes" and row["numbers"][-1] == 4:
            goal(row["network"], f"{row['method']}: 4 classes / 1 class", row["times"][-1], 1.1, False)
    return listed


def facts(device: torch.device) -> dict[str, Any]:
    """The machine and the versions."""
    from importlib.metadata import PackageNotFoundError, version

    def version_of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in ("torch", "torchvision", "captum", "grad-cam")},
    }


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables."""

    def table(title: str, *columns: str) -> Table:
        empty = Table(title=title, title_justify="left")
        for place, column in enumerate(columns):
            text = place < 2 or column in ("settings", "package", "maps", "passes")
            empty.add_column(column, justify="left" if text else "right", no_wrap=column == "method")
        return empty

    methods = table(
        "Methods, per image",
        *(
            "network",
            "method",
            "settings",
            "passes",
            "s",
            "floor, s",
            "efficiency",
            "forward passes",
            "Spearman",
            "rounds",
        ),
    )
    peers = table(
        "Compared with other implementations, per image",
        *("network", "method", "settings", "package", "its forward passes", "ours", "times as fast", "maps"),
    )
    for row in result["methods"]:
        methods.add_row(
            row["network"],
            row["method"],
            row["settings"],
            ", ".join([row["precision"], *(how for how in ("folded", "compiled") if row[how])]),
            _number(row["seconds"]),
            _number(row["floor"]),
            f"{row['efficiency']:.2f}",
            _number(row["forwards"]),
            _number(row["spearman"], 4),
            str(row["rounds"]),
        )
        if row["peer"]:
            verdict = {True: "", False: "DIFFER: ", None: ""}[row["agrees"]] + row["agreement"]
            peers.add_row(
                *(row["network"], row["method"], row["settings"], row["peer"], _number(row["peer_forwards"])),
                *(_number(row["forwards"]), _number(row["speedup"]), verdict),
            )
    others = table("Other costs", "network", "what", "ratio")
    for row in result["cams"]:
        others.add_row(row["network"], "three CAMs / one stem pass and the head's gradient", f"{row['ratio']:.2f}")
    for row in result["guidance"]:
        for kind in ("cached", "computed"):
            text = f"guided step / plain step, maps {kind}, batches of {row['batch']}"
            others.add_row(row["network"], text, f"{row[kind]:.2f}")
    for row in result["metrics"]:
        text = f"all metrics of a map ({1000 * row['seconds']:.2g} ms) / Grad-CAM's map and two passes"
        others.add_row(row["network"], text, f"{row['share']:.3f}")
    for row in result["growth"]:
        steps = ", ".join(f"{n}: {t:.2f}" for n, t in zip(row["numbers"], row["times"], strict=True))
        others.add_row(row["network"], f"{row['method']} at {row['size']} px, {row['kind']}", steps)
    aims = table("Goals", "network", "goal", "found", "")
    for row in result["goals"]:
        aims.add_row(row["network"], row["goal"], _number(row["found"]), "met" if row["met"] else "MISSED")
    for each in (methods, peers, others, aims):
        console.print(each)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Write a plot of the efficiency, the speed compared with other implementations, and the growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(16, 5), layout="constrained")
    rows = result["methods"]
    names = list(dict.fromkeys(row["method"] for row in rows))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    height = 0.8 / max(1, len(networks))
    for axis, key in ((left, "efficiency"), (middle, "speedup")):
        for shift, network in enumerate(networks):
            values = {row["method"]: row[key] for row in rows if row["network"] == network and row[key]}
            places = [names.index(name) + shift * height for name in values]
            axis.barh(places, list(values.values()), height, label=network)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks([place + height * (len(networks) - 1) / 2 for place in range(len(names))], names)
        axis.invert_yaxis()
    left.set(title="Efficiency: plain passes / method", xlabel="1: nothing but the passes")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    middle.set(title="Times as fast as the other implementation", xscale="log")
    for row in result["growth"]:
        numbers = [n / row["numbers"][0] for n in row["numbers"]]
        right.plot(numbers, row["times"], marker="o", label=f"{row['method']}, {row['kind']} from {row['numbers'][0]}")
    right.set(title="Growth", xlabel="times as many", ylabel="times as long", xscale="log", yscale="log")
    if result["growth"]:
        right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def measure(
    benches: Callable[[], Iterator[Bench]],
    grown: Callable[[], Bench] | None,
    chosen: list[Case],
    limit: int,
    batch: int,
    networks: int,
    console: Console,
) -> dict[str, list[dict[str, Any]]]:
    """Measure every row, with a progress bar."""
    found: dict[str, list[dict[str, Any]]] = {k: [] for k in ("methods", "cams", "guidance", "metrics", "growth")}
    points = growth_points(limit) if grown else []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("networks", total=networks * (len(chosen) + 3) + len(points))

        def add(kind: str, description: str, run: Callable[[], dict[str, Any]]) -> None:
            progress.update(bar, description=description)
            found[kind].append(run())
            progress.advance(bar)

        for bench in benches():
            for case in chosen:
                add("methods", f"{bench.arch}: {case.name}", lambda b=bench, c=case: measure_method(b, c))
            add("cams", f"{bench.arch}: three CAMs", lambda b=bench: measure_cams(b))
            add("metrics", f"{bench.arch}: metrics", lambda b=bench: measure_metrics(b))
            add("guidance", f"{bench.arch}: guidance", lambda b=bench: measure_guidance(b, batch))
        if grown:
            bench = grown()
            for point in points:
                add("growth", f"growth with {point[0]}", lambda p=point: measure_growth(bench, *p))
    return found


@app.command()
def main(
    network: Annotated[list[str] | None, typer.Option(help="Network. Repeatable; default: resnet50 and vgg16.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method. Repeatable; default: all.")] = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the images in pixels.")] = 224,
    growth_size: Annotated[
        int, typer.Option(min=16, help="The same for the growth curves, which are of the first network.")
    ] = 64,
    growth_limit: Annotated[
        int,
        typer.Option(min=0, help="Largest number of images, masks and channels of the growth curves; 0: no curves."),
    ] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Images in a training step.")] = 8,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds that a row may take after its first round.")] = 6,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's default.")] = 0,
    shared: Annotated[
        bool, typer.Option("--shared", help="Count CPU seconds, on a machine that others use too. Needs --threads 1.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="Of our methods of many passes: float32, bfloat16, or auto: what the device has.")
    ] = "float32",
    compile: Annotated[str, typer.Option(help="off or auto: fold batch norm, and compile the masked passes.")] = "off",
    peers: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="IBSGL_PEERS",
            exists=True,
            file_okay=False,
            help="Folder of a package that is not installed (TorchRay, IBA). Repeatable.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for speed.json and speed.png.")] = Path("results/benchmarks"),
) -> None:
    """Measure the speed, print the tables, and write them and a plot."""
    known = cases()
    precisions = (*get_args(Precision), "auto")
    if precision not in precisions:
        raise typer.BadParameter(f"it is one of {', '.join(precisions)}", param_hint="--precision")
    if compile not in ("off", "auto"):
        raise typer.BadParameter("it is off or auto", param_hint="--compile")
    if unknown := [name for name in method or () if name not in known]:
        raise typer.BadParameter(f"--method: {unknown[0]!r} is unknown; take one of {', '.join(known)}")
    sys.path.extend(str(folder) for folder in peers or ())
    if threads:
        torch.set_num_threads(threads)
    if shared and (device != "cpu" or torch.get_num_threads() > 1):
        raise typer.BadParameter("--shared counts the seconds of one CPU thread; give --device cpu --threads 1")
    chosen, networks = [known[name] for name in method or known], network or list(NETWORKS)
    on, start = torch.device(device), time.perf_counter()
    clock = Clock(on, seconds, shared)
    # In a pipe rich takes 80 columns, too few for these tables.
    console = Console(width=None if sys.stdout.isatty() else 160)
    passes = (native_precision(on.type) if precision == "auto" else precision, compile)
    about = facts(on) | {"clock": "CPU" if shared else "wall", "precision": passes[0], "compile": compile}
    found = measure(
        lambda: (Bench(arch, size, clock, *passes) for arch in networks),
        (lambda: Bench(networks[0], growth_size, clock)) if growth_limit else None,
        chosen,
        growth_limit,
        batch,
        len(networks),
        console,
    )
    result = {"facts": about, "size": size, **found, "goals": goals(found), "wall_seconds": time.perf_counter() - start}
    show(result, console)
    write_json(out / "speed.json", result)
    with written(out / "speed.png") as temporary:
        plot(result, temporary)
    console.print(f"{result['wall_seconds']:.0f} s on {about['threads']} threads; written to {out}")


if __name__ == "__main__":
    app()
