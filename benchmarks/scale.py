"""How long the maps of the reproduction take on a GPU: ``uv run python benchmarks/scale.py``.

Each method runs at its settings in the config, on random images and networks with random weights; the time depends on neither.
The table has seconds per image, FLOP/s compared with plain forward passes of the same network in the same run, peak memory, and
the hours for the test images of VOC 2007 with one class each. In bfloat16 it also has the agreement of the maps with those in
float32. No data and no download are needed.

The JSON is a profile of the device: ``ibsgl plan --device-profile results/benchmarks/scale.json`` has the times of this device
on any other machine.
"""

import datetime
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import nn
from tqdm import tqdm

from ibsgl import attribution, config, devices
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.data.sources import Split
from ibsgl.data.sources.voc import CLASSES
from ibsgl.files import write_json
from ibsgl.networks import Precision, SplitNetwork, chunked, evaluating, fast_passes, forward_pass
from ibsgl.networks.passes import native_precision
from ibsgl.plan import (
    DeviceProfile,
    NetworkFacts,
    calibrate,
    method_work,
    network_facts,
    random_network,
)
from ibsgl.plan.profile import Agreement, MethodTime, NetworkSeconds, PassSeconds
from ibsgl.randomness import generator

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

VOC2007_TEST = 4952
# Images of a plain forward pass.
BATCH = 256


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds of ``run()``, and the peak memory of tensors in bytes, which is counted on CUDA only and 0 elsewhere."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, torch.cuda.max_memory_allocated(device) if cuda else 0


def forward_rate(
    network: SplitNetwork, facts: NetworkFacts, device: torch.device, batch: int, precision: Precision
) -> float:
    """FLOP/s of plain forward passes of ``batch`` images at a time, or of as many as fit into memory."""
    size = facts.image_size

    def run(start: int, stop: int) -> float:
        images = torch.rand(stop - start, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        forward_pass(network, images)
        seconds, _ = timed(lambda: forward_pass(network, images), device)
        return (stop - start) * (facts.flops.full.stem + facts.flops.full.head) / seconds

    with fast_passes(network, (1, 3, size, size), precision):
        return max(chunked(run, batch, batch, device))


def random_images(number: int, size: int) -> torch.Tensor:
    """Smooth images (N,3,size,size) in [0,1] with some noise. A map of plain noise would be noise too."""
    draws = torch.Generator().manual_seed(0)
    coarse = torch.rand(number, 3, 7, 7, generator=draws)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=draws)).clamp(0, 1)


@torch.no_grad()
def scale_logits(network: SplitNetwork, images: torch.Tensor) -> None:
    """Change the last linear layer so that the logits of ``images`` have a standard deviation of 1.

    With random weights it can be 30. Then probabilities round to 0 or 1, and maps agree without a reason.
    """
    linear = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]
    if linear and (spread := network(images).std()) > 0:
        for parameter in linear[-1].parameters():
            parameter /= spread


def agreement(maps: torch.Tensor, exact: torch.Tensor) -> Agreement:
    """Spearman's correlation of each of ``maps`` (B,H,W) with that of ``exact``. A constant map has none, and counts as 0."""
    pairs = zip(maps.flatten(1).cpu().numpy(), exact.flatten(1).cpu().numpy(), strict=True)
    values = [spearmanr(*pair).statistic if all(np.ptp(side) for side in pair) else 0.0 for pair in pairs]
    return Agreement(median=float(np.median(values)), min=float(min(values)))


def time_method(
    key: str,
    method: attribution.Attribution,
    network: SplitNetwork,
    images: torch.Tensor,
    targets: torch.Tensor,
    context: dict[str, object],
) -> tuple[float, int, torch.Tensor]:
    """Seconds, peak memory in bytes, and the maps of ``images`` (B,3,H,W), after a first call with one image."""
    maps = images.new_empty(0)

    def run(number: int) -> None:
        nonlocal maps
        generators = [generator(0, key, str(image), device=images.device) for image in range(number)]
        maps = method(network, images[:number], targets[:number], generators, **context)

    # The first call chooses kernels and fills the allocator.
    run(1)
    seconds, peak = timed(lambda: run(len(images)), images.device)
    return seconds, peak, maps


@app.command()
def main(
    configfiles: Annotated[
        list[Path], typer.Option("--config", help="The config file. A further file changes some keys. Repeatable.")
    ] = [Path("config/voc2007.yaml")],  # noqa: B006
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu, …")] = "cuda",
    precision: Annotated[
        str,
        typer.Option(
            help="Of the methods of many passes: float32, bfloat16, or auto, which is bfloat16 if the device has it."
        ),
    ] = "auto",
    images: Annotated[int, typer.Option(min=1, help="Number of images that each method explains, in one batch.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images of a plain forward pass.")] = BATCH,
    out: Annotated[Path, typer.Option(help="The values as JSON, for ibsgl plan --device-profile.")] = Path(
        "results/benchmarks/scale.json"
    ),
) -> None:
    """Time every method of the config on random images, and each kind of pass."""
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here; give --device cpu", param_hint="--device")
    known = (*get_args(Precision), "auto")
    if precision not in known:
        raise typer.BadParameter(f"it is one of {', '.join(known)}", param_hint="--precision")
    loaded = config.read(configfiles, data=False)
    chosen: Precision = native_precision(where.type) if precision == "auto" else precision
    cuda = where.type == "cuda"
    devices.forbid_tf32()
    name = torch.cuda.get_device_name(where) if cuda else "CPU"
    # The number of classes hardly changes the time.
    classes = len(getattr(loaded.data, "classes", None) or ()) or CLASSES
    networks, rows = [], []
    for model in loaded.models:
        settings = loaded.for_model(model)
        facts = network_facts(settings, model, classes)
        networks.append(time_network(settings, model, classes, where, chosen))
        rows += time_methods(settings, facts, classes, where, chosen, images, batch)
    profile = DeviceProfile(
        version=1,
        device=name,
        memory_bytes=torch.cuda.get_device_properties(where).total_memory if cuda else 0,
        torch=torch.__version__,
        date=datetime.datetime.now(datetime.UTC).date(),
        images=images,
        networks=networks,
        rows=rows,
    )
    # A pipe has no width of its own.
    Console(width=None if sys.stdout.isatty() else 140).print(
        table_of(
            rows, f"{name}, config {loaded.name!r}, {images} images in a batch, methods of many passes in {chosen}"
        )
    )
    write_json(out, profile.model_dump(mode="json"))


def time_network(
    settings: config.Config, model: str, classes: int, device: torch.device, precision: Precision
) -> NetworkSeconds:
    """The seconds of one image in each kind of pass, as ``ibsgl plan`` measures them."""
    seconds, batch = calibrate(settings, model, classes, device, precision)
    network = settings.network(model)
    return NetworkSeconds(
        arch=network.arch,
        source=network.source,
        options=network.options,
        image_size=network.image_size,
        precision=precision,
        batch=batch,
        full=PassSeconds.of(seconds.full),
        mixed=PassSeconds.of(seconds.mixed),
        training=seconds.training,
        guidance=seconds.guidance,
    )


def time_methods(
    settings: config.Config,
    facts: NetworkFacts,
    classes: int,
    device: torch.device,
    precision: Precision,
    images: int,
    batch: int,
) -> list[MethodTime]:
    """Every method of the config on one network."""
    torch.manual_seed(0)
    network, rows = random_network(settings, facts.model, classes).to(device), []
    with evaluating(network):
        kinds: set[Precision] = {"float32", precision}
        rates = {kind: forward_rate(network, facts, device, batch, kind) for kind in kinds}
        inputs = random_images(images, facts.image_size).to(device).contiguous(memory_format=torch.channels_last)
        targets = torch.arange(images, device=device) % classes
        scale_logits(network, inputs)
        with torch.no_grad():
            statistics = FeatureStatistics().update(network.stem(inputs))
        for key in tqdm([*settings.methods, *config.BUILT_IN_METHODS], desc=facts.model, leave=False):
            method = attribution.row(key, settings.method_settings(key)).method
            context = {"statistics": statistics} if "statistics" in method.requires else {}
            arguments = (key, method, network, inputs, targets, context)
            with fast_passes(network, inputs.shape, precision):
                seconds, peak, maps = time_method(*arguments)
            mixed = precision == "bfloat16" and hasattr(method, "cost") and method.cost(facts.features[0]).mixed
            agrees = None
            if mixed:
                agrees = agreement(maps, time_method(*arguments)[2])
            work, _ = method_work(method, facts, Split(images, images), images)
            rows.append(
                MethodTime(
                    model=facts.model,
                    method=method.label,
                    seconds_per_image=seconds / images,
                    flops_per_second=work.flops / seconds if work else None,
                    forward_flops_per_second=rates[precision if mixed else "float32"],
                    peak_bytes=peak,
                    hours=seconds / images * VOC2007_TEST / 3600,
                    agreement=agrees,
                )
            )
    return rows


def table_of(rows: list[MethodTime], title: str) -> Table:
    """The rows for people."""
    table = Table(title=title, box=None)
    headings = ("network", "method", "s / image", "TFLOP/s", "of plain forward", "peak GB", f"h / {VOC2007_TEST}")
    for heading in (*headings, "agreement, least"):
        table.add_column(heading, justify="left" if heading in ("network", "method") else "right", no_wrap=True)
    for row in rows:
        rate = row.flops_per_second
        columns = ("–", "–")
        if rate is not None:
            columns = (f"{rate / 1e12:.3g}", f"{rate / row.forward_flops_per_second:.0%}")
        peak = f"{row.peak_bytes / 1e9:.1f}" if row.peak_bytes else "–"
        agrees = f"{row.agreement.median:.4f}, {row.agreement.min:.4f}" if row.agreement else "–"
        table.add_row(row.model, row.method, f"{row.seconds_per_image:.4g}", *columns, peak, f"{row.hours:.3g}", agrees)
    return table


if __name__ == "__main__":
    app()
