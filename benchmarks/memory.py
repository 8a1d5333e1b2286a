"""Peak memory of each step, and bytes of maps on disk: ``uv run python benchmarks/memory.py``.

Each value is the peak of a process of its own that runs one step on images of 224 pixels, with random weights. A row has the
peak at the base size, and with four times as many images, classes of each image, passes (masks, steps, or channels that are
not constant), or images in one pass. Memory that does not grow with the number of images is flat. On a GPU the peak of its
tensors is measured instead.

``--maps`` measures files of maps instead: bytes per (image, class) pair, and what they would take as plain float32 numbers.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

# torch and ibsgl are imported by the measured processes alone: a process counts what its parent had when it started.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

ROOT = Path(__file__).parents[1]
SIZE, BATCH, FACTOR = 224, 2, 4
QUANTITIES = ("images", "classes", "passes", "chunk")
# Growth up to this share, or this many MB, counts as flat: the allocator's blocks differ by as much from run to run.
FLAT, FLAT_MB = 0.1, 60
# By method, the setting that is the number of passes. Of Score-CAM and SISE it is the number of channels that vary.
PASSES = {
    "rise": "masks",
    "integrated_gradients": "steps",
    "extremal_perturbation": "iterations",
    "bottleneck": "samples",
    "score_cam": None,
    "sise": None,
}
# Grad-CAM stands for Grad-CAM++ and Eq. 3 too, which need the same pass.
METHODS = ("gradcam", "fullgrad", *PASSES)
STEPS = ("imports", "feature statistics", "control training", "guided training", "evaluation")
# Steps without a network, with their base numbers of images. They read no pixels.
TABLES = dict.fromkeys(("index", "tables", "report"), 250)


@dataclass(frozen=True)
class Case:
    """One measured process: a step or a saliency method on one network.

    Attributes:
        images: the number of images.
        classes: the number of pairs of each image.
        passes: the method's masks, steps, samples or varying channels of each stage.
        chunk: images in one pass.
    """

    step: str
    network: str = ""
    images: int = 2 * BATCH
    classes: int = 1
    passes: int = 2
    chunk: int = 2


def quantities(step: str) -> list[str]:
    """What the memory of a step is measured against."""
    if step == "imports":
        return []
    if step in METHODS:
        chunked = step in PASSES and step != "bottleneck"
        return ["images", "classes", *(["passes"] if step in PASSES else []), *(["chunk"] if chunked else [])]
    return ["images"]


def grown(case: Case, quantity: str) -> Case:
    """``case`` with four times the quantity. A larger pass needs as many passes more."""
    more = {quantity: FACTOR * getattr(case, quantity)}
    if quantity == "chunk":
        more["passes"] = FACTOR * case.passes
    return replace(case, **more)


# What follows runs in the measured process.


def measure(case: Case, folder: Path) -> None:
    """Run one step, and print the peak of the GPU's tensors in bytes (0 without a GPU)."""
    import torch

    from ibsgl import evaluation, training  # noqa: F401

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if case.step == "index":
        from ibsgl.data.sources.voc import build_index

        build_index(folder / f"{case.images}", splits={"test": "test", "train": "trainval"}, held_out=0.5, seed=0)
    elif case.step != "imports":
        run_step(case, device, folder)
    print(torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)


def run_step(case: Case, device: Any, folder: Path) -> None:
    """Run one step of ``case`` that needs a network."""
    import pandas as pd
    import torch

    from ibsgl import attribution
    from ibsgl.attribution.storage import Maps, write_maps
    from ibsgl.bottleneck import Bottleneck, FeatureStatistics
    from ibsgl.data.index import Index
    from ibsgl.data.loading import ImageDataset
    from ibsgl.evaluation.settings import DeletionSettings
    from ibsgl.evaluation.variants import measure_variants
    from ibsgl.guidance.settings import GuidanceSettings
    from ibsgl.maps import compute_maps
    from ibsgl.metrics import MetricSettings
    from ibsgl.networks import build_network
    from ibsgl.precompute import bottleneck_maps, feature_statistics
    from ibsgl.suppression import SuppressionSettings
    from ibsgl.training.guided import train_guided
    from ibsgl.training.settings import TrainingSettings

    torch.set_num_threads(1)
    torch.manual_seed(0)
    whole = Index.load(folder / "index.parquet")
    data = ImageDataset(
        Index(whole.class_names, whole.digest, whole.table.groupby("split").head(case.images)), folder / "photos", SIZE
    )
    network = build_network(case.network, len(data.index.class_names)).to(device)
    options: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "device": device}
    test = data.pairs("test")
    test = pd.concat([test.assign(target=number) for number in range(case.classes)])
    test = test.sort_values(["image_id", "target"], ignore_index=True)

    def statistics(images: int) -> FeatureStatistics:
        ids = data.ids("train")[:images]
        with torch.inference_mode():
            return FeatureStatistics().update(network.eval().stem(data.images(ids).to(device)))

    if case.step == "feature statistics":
        found = feature_statistics(network, data, BATCH, device)
        bottleneck = Bottleneck(steps=1, samples=case.passes)
        bottleneck_maps(network, data, data.pairs("train"), bottleneck, found.to(device), **options)
    elif case.step.endswith(" training"):
        side = build_shape(network, device)
        guided = case.step == "guided training"
        train_guided(
            network,
            data,
            TrainingSettings(epochs=1, batch_size=BATCH, lr=1e-6),
            guidance=GuidanceSettings() if guided else None,
            suppression=SuppressionSettings() if guided else None,
            l_ib=torch.rand(len(data.pairs("train")), *side[1:]) if guided else None,
            name=case.step,
            seed=0,
            device=device,
            checkpoint=Path(tempfile.mkdtemp(dir=folder)) / "checkpoint.pt",
            digest="",
        )
    elif case.step == "evaluation":
        methods = {name: attribution.get(name) for name in ("rise", "gradcam")}

        def batches() -> Iterator[tuple[pd.DataFrame, dict[str, torch.Tensor]]]:
            for start in range(0, len(test), BATCH):
                rows = test.iloc[start : start + BATCH]
                yield rows, {name: torch.rand(len(rows), SIZE, SIZE) for name in methods}

        path = Path(tempfile.mkdtemp(dir=folder)) / "maps.parquet"
        write_maps(path, batches(), methods, SIZE, {})
        measure_variants(
            {"pretrained": network},
            data,
            test,
            {"pretrained": {"gradient": attribution.get("gradient")}},
            {"pretrained": Maps([path], test)},
            MetricSettings(),
            DeletionSettings(points=2, repeats=1),
            r=0.35,
            reference="pretrained",
            **options,
        )
    else:
        settings: dict[str, Any] = {}
        if case.step == "bottleneck":
            settings["steps"] = 1
        elif case.step in PASSES:
            settings["chunk"] = case.chunk
        if PASSES.get(case.step):
            settings[PASSES[case.step]] = case.passes
        elif case.step in PASSES:
            keep_channels(network, case.passes)
        methods = {case.step: attribution.get(case.step, **settings)}
        given = statistics(BATCH) if "statistics" in methods[case.step].requires else None
        made = compute_maps(network, data, test, methods, statistics=given, coarse=True, **options)
        write_maps(Path(tempfile.mkdtemp(dir=folder)) / "maps.parquet", made, methods, SIZE, {})


def build_shape(network: Any, device: Any) -> tuple[int, int, int]:
    """(C,h,w) of the network's feature map."""
    import torch

    with torch.inference_mode():
        return tuple(network.eval().stem(torch.zeros(1, 3, SIZE, SIZE, device=device)).shape[1:])


def keep_channels(network: Any, number: int) -> None:
    """Make all but the first ``number`` channels of every stage zero. Score-CAM and SISE pass no constant channel."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        mask = output.new_zeros(output.shape[1], 1, 1)
        mask[:number] = 1
        return output * mask

    for name in network.stages:
        stem = network.stem.backbone
        (stem.get_submodule(name) if name else stem).register_forward_hook(hook)


def prepare(folder: Path) -> None:
    """Make the images that the steps read, and the measurements that the tables are made of."""
    from ibsgl.data.sources.shapes import generate
    from ibsgl.data.sources.voc import build_index

    most = FACTOR * 2 * BATCH
    generate(folder / "photos", seed=0, trainval=2 * most, test=most, size=32, progress=False)
    splits = {"test": "test", "train": "trainval"}
    build_index(folder / "photos", splits=splits, held_out=0.25, seed=0).save(folder / "index.parquet")
    for images in {FACTOR**power * images for images in TABLES.values() for power in (0, 1)}:
        generate(folder / f"{images}", seed=0, trainval=12, test=images, size=16, progress=False)
        index = build_index(folder / f"{images}", splits=splits, held_out=0.5, seed=0)
        index.save(folder / f"{images}.parquet")
        write_measurements(folder / "runs" / f"{images}", index)


def write_measurements(folder: Path, index: Any) -> None:
    """Random measurements of every test image, of three variants, all methods on each, and two replicates."""
    import numpy as np
    import pandas as pd

    from ibsgl.reporting.page.thumbnails import write_thumbnails
    from ibsgl.reporting.score_files import write_evaluation
    from ibsgl.training.variants import CONTROL, GUIDED, PRETRAINED

    rng = np.random.default_rng(0)
    rows = index.table[index.table["split"] == "test"].reset_index(drop=True)
    identity, variants = rows[["image_id", "class_name", "target"]], (PRETRAINED, CONTROL, GUIDED)

    def numbers(*names: str) -> dict[str, Any]:
        return {name: rng.random(len(rows)) for name in names}

    write_thumbnails(folder / "report" / "maps" / "resnet", [], {})
    for replicate in range(2):
        scores, losses, predictions, curves = [], [], [], []
        for variant in variants:
            metrics = ("p_full", "p_kept", "ebpg", "miou", "bbox", "average_drop", "average_increase")
            for method in METHODS:
                made = identity.assign(variant=variant, scored_on=variant, method=method, **numbers(*metrics))
                scores.append(made)
            pair = identity[["image_id", "class_name"]].assign(variant=variant)
            losses.append(pair.assign(**numbers("l_ce", "l_ss", "overlap")))
            logits = numbers(*(f"logit_{number}" for number in range(len(index.class_names))))
            labels = {f"label_{number}": (rows["target"] == number) * 1.0 for number in range(len(index.class_names))}
            predictions.append(
                identity[["image_id"]].assign(variant=variant, split="test", correct=1.0, **logits, **labels)
            )
            for fraction in (0.0, 0.5, 1.0):
                curves.append(pair.assign(repeat=0, fraction=fraction, **numbers("probability")))
        joined = {
            name: pd.concat(parts, ignore_index=True)
            for name, parts in {
                "scores": scores,
                "losses": losses,
                "predictions": predictions,
                "curves": curves,
            }.items()
        }
        diagnosed = identity[["image_id", "class_name"]].assign(
            **numbers("nats", "r_other", "r_activation", "r_gradient", "region_share")
        )
        write_evaluation(
            folder / f"resnet/{replicate}/evaluation/0",
            **joined,
            diagnostics=diagnosed,
            model="resnet",
            replicate=replicate,
            arch="resnet_small",
            labels={method: method for method in METHODS},
            settings={},
            seed=0,
            tags={"data_digest": index.digest, "class_names": list(index.class_names), "weights_digest": {}},
            started=0.0,
        )


# What follows runs in the parent.


def command(case: Case, folder: Path) -> list[str]:
    """The command line of the measured process."""
    if case.step not in ("tables", "report"):
        return [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--folder", str(folder)]
    run = folder / "runs" / str(case.images)
    found = [part for number in range(2) for part in ("--evaluation", f"{run}/resnet/{number}/evaluation/0")]

    def ibsgl(step: str) -> list[str]:
        program = [str(Path(sys.executable).parent / "ibsgl"), step, *found, "--settings", settings_of(step)]
        return [*program, "--published", str(ROOT / "results" / "published")]

    if case.step == "tables":
        index = ["--index", str(folder / f"{case.images}.parquet")]
        return [*ibsgl("tables"), "--model", "resnet", *index, "--out", str(run / "tables")]
    claims = str(run / "claims.csv")
    subprocess.run([*ibsgl("claims"), "--out", claims], check=True)
    return [*ibsgl("report"), "--claims", claims, "--out", str(run / "report" / "index.html")]


def settings_of(step: str) -> str:
    """The settings of a step of the default run, with one network."""
    program = (
        "import sys; from pathlib import Path; from ibsgl import config; from ibsgl.config.steps import step_of;"
        "loaded = config.read([Path(sys.argv[1])], data=False);"
        "loaded = loaded.model_copy(update={'models': {'resnet': loaded.models['resnet']}});"
        "print(step_of(loaded, sys.argv[2], **({'model': 'resnet'} if sys.argv[2] == 'tables' else {})).to_json())"
    )
    arguments = [sys.executable, "-c", program, str(ROOT / "config" / "shapes.yaml"), step]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def peak_of(case: Case, folder: Path) -> float:
    """Peak MB of the process of ``case``: its resident memory, or on a GPU that of its tensors."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        process = subprocess.Popen(command(case, folder), stdout=out, stderr=error)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        error.seek(0)
        if process.returncode:
            raise SystemExit(f"{case}: {error.read().decode(errors='replace')[-2000:]}")
        lines = out.read().decode().split()
    on_gpu = int(lines[-1]) if lines and lines[-1].isdigit() else 0
    # The kernel counts in KiB.
    return on_gpu / 1e6 if on_gpu else usage.ru_maxrss * 1024 / 1e6


def rows_of(
    cases: list[Case], folder: Path, workers: int, progress: Callable[[Iterator[float], int], Any]
) -> list[dict[str, Any]]:
    """One row per case: its peaks at the base size and with four times each quantity."""
    everything = [(case, quantity) for case in cases for quantity in ("", *quantities(case.step))]

    def run(of: tuple[Case, str]) -> float:
        case, quantity = of
        return peak_of(grown(case, quantity) if quantity else case, folder)

    with ThreadPoolExecutor(workers) as pool:
        peaks = dict(zip(everything, progress(pool.map(run, everything), len(everything)), strict=True))
    rows = []
    for case in cases:
        row: dict[str, Any] = {"step": case.step, "network": case.network, "images": case.images}
        row |= {"base_mb": peaks[case, ""]}
        row |= {f"{quantity}_mb": peaks.get((case, quantity)) for quantity in QUANTITIES}
        more = row["images_mb"]
        row["flat_in_images"] = None if more is None else more - row["base_mb"] <= max(FLAT * row["base_mb"], FLAT_MB)
        rows.append(row)
    return rows


def bytes_per_pair(path: Path) -> dict[str, tuple[float, float]]:
    """By method of a file of maps, bytes of one map as plain float32 numbers at the image's size and as it is stored."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ibsgl.attribution.storage import Maps

    file = pq.ParquetFile(path)
    pairs = file.read(["image_id", "target"]).to_pandas()
    stored = dict.fromkeys(file.schema_arrow.names[2:], 0)
    for number in range(file.metadata.num_row_groups):
        for place, name in enumerate(stored, 2):
            stored[name] += file.metadata.row_group(number).column(place).total_compressed_size
    found = {}
    maps = Maps([path], pd.DataFrame(pairs))
    plain = dict.fromkeys(stored, 0)
    # As many maps in a row group as the run's batches have.
    for batch in maps.batches(32):
        for name, saliency in batch.items():
            values = np.ascontiguousarray(saliency.numpy())
            kind = pa.list_(pa.float32(), values[0].size)
            table = pa.table({name: pa.FixedSizeListArray.from_arrays(values.ravel(), type=kind)})
            options = {"use_dictionary": False, "write_statistics": False, "compression": "zstd"}
            sink = io.BytesIO()
            pq.write_table(table, sink, use_byte_stream_split=[f"{name}.list.element"], **options)
            sink.seek(0)
            plain[name] += pq.ParquetFile(sink).metadata.row_group(0).column(0).total_compressed_size
    for name in stored:
        found[name] = plain[name] / len(pairs), stored[name] / len(pairs)
    return found


@app.command()
def main(
    network: Annotated[list[str], typer.Option("--network", help="The networks. Repeatable.")] = ["resnet50", "vgg16"],  # noqa: B006
    step: Annotated[list[str], typer.Option("--step", help="Only these steps or methods. Repeatable.")] = [],  # noqa: B006
    workers: Annotated[int, typer.Option(min=1, help="Processes at a time, each with one thread.")] = 2,
    maps: Annotated[
        list[Path],
        typer.Option("--maps", exists=True, help="Measure these files of maps, and nothing else. Repeatable."),
    ] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="The folder of memory.json, or of disk.json.")] = Path("results/benchmarks"),
    case: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Measure the peak memory of each step, or the bytes of maps on disk."""
    if case == "prepare":
        prepare(folder)
    elif case:
        measure(Case(**json.loads(case)), folder)
    elif maps:
        show_bytes(maps, out)
    else:
        show_memory(network, step, workers, out)


def show_bytes(maps: list[Path], out: Path) -> None:
    """Print and write the bytes per pair of files of maps."""
    rows = [
        {"method": name, "plain": plain, "stored": stored}
        for file in maps
        for name, (plain, stored) in bytes_per_pair(file).items()
    ]
    table = Table(title="bytes of one map", box=None)
    for heading in ("method", "plain float32", "stored", "share"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"], f"{row['plain']:,.0f}", f"{row['stored']:,.0f}", f"{row['stored'] / row['plain']:.1%}"
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    write(out / "disk.json", rows)


def show_memory(networks: list[str], only: list[str], workers: int, out: Path) -> None:
    """Print and write the table of peak memory."""
    known = (*STEPS, *METHODS, *TABLES)
    if unknown := [name for name in only if name not in known]:
        raise typer.BadParameter(f"there is no {unknown[0]!r}; there are {', '.join(known)}", param_hint="--step")
    cases = [Case("imports")] + [Case(step, network) for network in networks for step in (*STEPS[1:], *METHODS)]
    cases += [Case(step, images=images) for step, images in TABLES.items()]
    cases = [case for case in cases if not only or case.step in only]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, __file__, "--case", "prepare", "--folder", temporary], check=True)
        rows = rows_of(cases, folder, workers, lambda peaks, total: track(peaks, total=total, description="processes"))
    table = Table(title="peak MB of a process; ×4: with four times as many", box=None)
    for heading in (
        "step",
        "network",
        "images",
        "base",
        *(f"{quantity} ×4" for quantity in QUANTITIES),
        "flat in images",
    ):
        table.add_column(heading, justify="left" if heading in ("step", "network") else "right", no_wrap=True)
    for row in rows:
        peaks = (row["base_mb"], *(row[f"{quantity}_mb"] for quantity in QUANTITIES))
        flat = {None: "–", True: "yes", False: "no"}[row["flat_in_images"]]
        numbers = ("–" if peak is None else f"{peak:,.0f}" for peak in peaks)
        table.add_row(row["step"], row["network"] or "–", str(row["images"]), *numbers, flat)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    write(out / "memory.json", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``rows`` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
