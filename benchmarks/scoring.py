"""How much of the time of reading and scoring are the network's passes: ``uv run python benchmarks/scoring.py``.

The evaluation reads images and stored maps, keeps the top of each map, passes the whole and the kept image, and computes the
metrics. It needs one pass per image, and one per map. This script runs the function of the evaluation job on JPEG files of
VOC's size and on maps that were stored before, and times each part. The goal is that passes take 90 % of the time.

Exactly these passes alone run in turns with the job, so that passes that are slower in the job would show. Networks have random
weights, because no time depends on them.

All times are CPU seconds with one thread for the network. The threads that read images are included, although they run beside
the passes on a free core. The job also makes the maps of Eq. 3 and the deletion curves. These have passes of their own, and are
shown apart.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from ibsgl import attribution
from ibsgl.attribution.storage import Maps, write_maps
from ibsgl.data import loading
from ibsgl.data.loading import ImageDataset
from ibsgl.data.sources.voc import VOC
from ibsgl.evaluation import scoring, variants
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.evaluation.variants import measure_variants
from ibsgl.files import write_json
from ibsgl.metrics import METRICS, MetricSettings, faithfulness
from ibsgl.networks import SplitNetwork, build_network, evaluating, upsample

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

VARIANT, SEED, R = "pretrained", 0, 0.35
GOAL = 0.9
NETWORKS = ("resnet50", "vgg16")
CLASSES = 20
# Width and height of most images of VOC 2007.
PHOTOGRAPH = (500, 375)
# One pass for each random order. With more points there are more, so that orders and masks have a smaller share.
DELETION = DeletionSettings(points=3, repeats=1)
PASSES = "passes"
# These have passes of their own, and do not belong to reading and scoring.
APART = ("maps of Eq. 3", "deletion curves")


def photograph(rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A picture with a smooth background, grain, and an ellipse, and the ellipse's box [x0, y0, x1, y1]."""
    width, height = PHOTOGRAPH
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = coarse.resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
    x0, y0 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    box = (x0, y0, x0 + int(rng.integers(60, width // 2)), y0 + int(rng.integers(60, height // 2)))
    ImageDraw.Draw(image).ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    # So that a file has about 100 kB, as VOC's have.
    grain = np.asarray(image, dtype=np.float32) + rng.normal(0, 9, (height, width, 1))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8)), box


def write_photographs(root: Path, number: int) -> None:
    """A data set in VOC layout with ``number`` test images of one class each, and two training images."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    width, height = PHOTOGRAPH
    names = [f"{place:06d}" for place in range(number + 2)]
    for place, name in enumerate(names):
        image, box = photograph(rng)
        image.save(root / "JPEGImages" / f"{name}.jpg", quality=90)
        edges = "".join(
            f"<{key}>{value + 1}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            f"<object><name>class {place % CLASSES:02d}</name><difficult>0</difficult>"
            f"<bndbox>{edges}</bndbox></object></annotation>"
        )
    for split, of_split in (("test", names[:-2]), ("trainval", names[-2:])):
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(of_split) + "\n")


def random_maps(number: int, size: int, methods: int) -> dict[str, torch.Tensor]:
    """By method, maps (number,size,size): in turns as smooth as a CAM and with a value of its own for each pixel."""
    g = torch.Generator().manual_seed(SEED)
    maps = {}
    for method in range(methods):
        side = size if method % 2 else 7
        values = torch.rand(number, side, side, generator=g)
        maps[f"method_{method}"] = upsample(values, (size, size))
    return maps


@dataclass
class Parts:
    """CPU seconds by part. Parts may be nested: the time of an inner part does not count for the outer one."""

    seconds: dict[str, float] = field(default_factory=dict)
    _open: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the block's time in this thread for ``name``; inside a part of :data:`APART`, for that part."""
        stack = self._open.__dict__.setdefault("stack", [])
        outer = next((part for part, _ in stack if part in APART), None)
        if outer is not None:
            name = f"{outer}: {PASSES}" if name == PASSES else outer
        stack.append((name, [0.0]))
        start = time.thread_time()
        try:
            yield
        finally:
            spent = time.thread_time() - start
            part, inner = stack.pop()
            if stack:
                stack[-1][1][0] += spent
            with self._lock:
                self.seconds[part] = self.seconds.get(part, 0) + spent - inner[0]

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose calls count for the part ``name``."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return function(*args, **kwargs)

        return measured

    def of_each(self, name: str, function: Callable[..., Iterator]) -> Callable[..., Iterator]:
        """The same for a generator function: each of its steps counts."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Iterator:
            steps, end = function(*args, **kwargs), object()
            while True:
                with self.measure(name):
                    step = next(steps, end)
                if step is end:
                    return
                yield step

        return measured

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside this block, the functions of the evaluation count their time."""
        listed = [
            ("decode images", loading, "_open"),
            ("convert and resize images", ImageDataset, "_pixels"),
            ("images to tensors", ImageDataset, "images"),
            ("regions", ImageDataset, "regions"),
            ("keep the top", faithfulness, "keep_top"),
            (PASSES, SplitNetwork, "forward"),
            ("images in the passes' layout", scoring, "image_logits"),
            ("images in the passes' layout", variants, "image_logits"),
            ("tables of scores", variants, "score_maps"),
            (APART[0], variants, "maps_of_batch"),
            (APART[1], variants, "deletion_curves"),
            *((f"metric {metric.label}", metric, "__call__") for metric in METRICS.values()),
        ]
        with ExitStack() as stack:
            for name, place, attribute in listed:
                stack.enter_context(patch.object(place, attribute, self.of(name, getattr(place, attribute))))
            stack.enter_context(patch.object(Maps, "batches", self.of_each("read maps", Maps.batches)))
            yield


class Job:
    """The evaluation of one network on the images and the stored maps of a folder."""

    def __init__(self, arch: str, data: ImageDataset, file: Path, batch_size: int):
        torch.manual_seed(SEED)
        self.network: SplitNetwork = build_network(arch, len(data.index.class_names), multilabel=True).eval()
        self.data, self.file, self.batch_size = data, file, batch_size
        self.pairs = data.pairs("test")
        self.methods = {"gradient": attribution.get("gradient")}

    def measure(self) -> None:
        """As the job does."""
        stored = {VARIANT: Maps([self.file], self.pairs)}
        measure_variants(
            {VARIANT: self.network},
            self.data,
            self.pairs,
            {VARIANT: self.methods},
            stored,
            MetricSettings(),
            DELETION,
            r=R,
            seed=SEED,
            reference=VARIANT,
            batch_size=self.batch_size,
            device=torch.device("cpu"),
        )

    def plain_passes(self, maps: int) -> Callable[[], None]:
        """A function with one pass for each image and for each of its ``maps``, in the same batches."""
        images = self.data.images(self.data.ids("test")[: self.batch_size])

        def run() -> None:
            with evaluating(self.network), torch.inference_mode():
                for start in range(0, len(self.pairs), self.batch_size):
                    for _ in range(1 + maps):
                        self.network(images[: len(self.pairs) - start])

        return run


def apart(part: str) -> bool:
    """Whether ``part`` does not belong to reading and scoring."""
    return part.startswith(APART)


def compare(job: Job, maps: int, rounds: int) -> dict[str, Any]:
    """Efficiency, and CPU milliseconds of each part per map. The first round warms up and does not count."""
    plain = job.plain_passes(maps)
    ratios, of_rounds = [], []
    for turn in range(rounds + 1):
        parts, began = Parts(), time.process_time()
        with parts.attached():
            job.measure()
        ended = time.process_time()
        plain()
        passes = time.process_time() - ended
        # Among others, the threads with which pyarrow reads maps.
        parts.seconds["other"] = ended - began - sum(parts.seconds.values())
        if turn:
            ratios.append(passes / sum(seconds for name, seconds in parts.seconds.items() if not apart(name)))
            of_rounds.append(parts.seconds)
    number = len(job.pairs) * maps
    milliseconds = {
        name: 1000 * median(seconds[name] for seconds in of_rounds) / number for name in sorted(of_rounds[0])
    }
    scored = {name: ms for name, ms in milliseconds.items() if not apart(name)}
    share = scored[PASSES] / sum(scored.values())
    return {"share_of_passes": share, "efficiency": median(ratios), "ms_per_map": milliseconds}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    for arch, found in result["networks"].items():
        scored = {name: ms for name, ms in found["ms_per_map"].items() if not apart(name)}
        total = sum(scored.values())
        table = Table(title=f"{arch}: CPU milliseconds per map", title_justify="left")
        for column in ("part", "ms", "share"):
            table.add_column(column, justify="left" if column == "part" else "right")
        for name, ms in sorted(scored.items(), key=lambda item: -item[1]):
            table.add_row(name, f"{ms:.2f}", f"{ms / total:.1%}", end_section=name == min(scored, key=scored.get))
        for name, ms in found["ms_per_map"].items():
            if apart(name):
                table.add_row(f"apart: {name}", f"{ms:.2f}", "")
        console.print(table)
        verdict = "met" if found["share_of_passes"] >= GOAL else "MISSED"
        console.print(
            f"{arch}: passes take {found['share_of_passes']:.1%} of reading and scoring (goal {GOAL:.0%}: {verdict}); "
            f"plain passes / reading and scoring = {found['efficiency']:.3f}\n"
        )


@app.command()
def main(
    network: Annotated[list[str] | None, typer.Option(help="Network. Repeatable; default: resnet50 and vgg16.")] = None,
    root: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder in VOC layout; default: generated photographs."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images.")] = 8,
    methods: Annotated[int, typer.Option(min=1, help="Stored maps of each image.")] = 3,
    size: Annotated[int, typer.Option(min=16, help="Side of the network's images in pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after the first.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for scoring.json.")] = Path("results/benchmarks"),
) -> None:
    """Measure how much of reading and scoring are passes, print the tables, and write them."""
    torch.set_num_threads(1)
    console, start = Console(), time.perf_counter()
    result: dict[str, Any] = {"images": images, "methods": methods, "size": size, "batch": batch, "networks": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = root or Path(temporary, "photographs")
        if root is None:
            write_photographs(folder, images)
        index = VOC(root=str(folder), held_out=0.5).build_index(folder, SEED)
        table = index.table
        late = (table["split"] == "test") & (table.groupby("split").cumcount() >= images)
        data = ImageDataset(replace(index, table=table[~late]), folder, size)
        pairs, file = data.pairs("test"), Path(temporary, "maps.parquet")
        stored = random_maps(len(pairs), size, methods)
        of_batches = (
            (pairs[a : a + batch], {name: maps[a : a + batch] for name, maps in stored.items()})
            for a in range(0, len(pairs), batch)
        )
        write_maps(file, of_batches, dict.fromkeys(stored, attribution.get("gradient")), size, {})
        for arch in network or NETWORKS:
            # The map of Eq. 3 is scored too.
            result["networks"][arch] = compare(Job(arch, data, file, batch), methods + 1, rounds)
    show(result, console)
    write_json(out / "scoring.json", result)
    console.print(f"{time.perf_counter() - start:.0f} s; written to {out / 'scoring.json'}")


if __name__ == "__main__":
    app()
