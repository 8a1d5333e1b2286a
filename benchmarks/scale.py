"""How long the maps of the reproduction take on a GPU: ``uv run python benchmarks/scale.py``.

Each method runs at its settings in the config, on random images and networks with random weights; the time depends on neither.
The table has seconds per image, FLOP/s compared with plain forward passes of the same network in the same run, peak memory, and
the hours for the test images of VOC 2007 with one class each. No data and no download are needed.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ibsgl import attribution, config
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.data.sources import Split
from ibsgl.data.sources.voc import CLASSES
from ibsgl.files import write_json
from ibsgl.networks import SplitNetwork, autocast, chunked, evaluating
from ibsgl.plan import NetworkFacts, method_work, network_facts, random_network
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


def forward_rate(network: SplitNetwork, facts: NetworkFacts, device: torch.device, batch: int, mixed: bool) -> float:
    """FLOP/s of plain forward passes of ``batch`` images at a time, or of as many as fit into memory."""
    size = facts.image_size

    def run(start: int, stop: int) -> float:
        images = torch.rand(stop - start, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            network(images)
            seconds, _ = timed(lambda: network(images), device)
        return (stop - start) * (facts.flops.full.stem + facts.flops.full.head) / seconds

    return max(chunked(run, batch, batch, device))


def time_method(
    key: str,
    method: attribution.Attribution,
    network: SplitNetwork,
    images: torch.Tensor,
    targets: torch.Tensor,
    context: dict[str, object],
) -> tuple[float, int]:
    """Seconds and peak memory in bytes of the maps of ``images`` (B,3,H,W), after a first call with one image."""

    def run(number: int) -> None:
        generators = [generator(0, key, str(image), device=images.device) for image in range(number)]
        method(network, images[:number], targets[:number], generators, **context)

    # The first call chooses kernels and fills the allocator.
    run(1)
    return timed(lambda: run(len(images)), images.device)


@app.command()
def main(
    configfiles: Annotated[
        list[Path], typer.Option("--config", help="The config file. A further file changes some keys. Repeatable.")
    ] = [Path("config/voc2007.yaml")],  # noqa: B006
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu, …")] = "cuda",
    images: Annotated[int, typer.Option(min=1, help="Number of images that each method explains, in one batch.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images of a plain forward pass.")] = BATCH,
    out: Annotated[Path, typer.Option(help="The values as JSON.")] = Path("results/benchmarks/scale.json"),
) -> None:
    """Time every method of the config on random images."""
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here; give --device cpu", param_hint="--device")
    loaded, rows = config.read(configfiles, data=False), []
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    # The number of classes hardly changes the time.
    classes = len(getattr(loaded.data, "classes", None) or ()) or CLASSES
    for model, spec in loaded.models.items():
        resolved = loaded.for_model(model)
        facts = network_facts(resolved, model, classes)
        torch.manual_seed(0)
        network = random_network(resolved, model, classes).to(where)
        with evaluating(network):
            rates = {
                mixed: forward_rate(network, facts, where, batch, mixed) for mixed in {False, where.type == "cuda"}
            }
            size = spec.image_size
            inputs = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0)).to(where)
            inputs, targets = inputs.contiguous(memory_format=torch.channels_last), torch.arange(images, device=where)
            targets %= classes
            with torch.no_grad(), autocast(where):
                statistics = FeatureStatistics().update(network.stem(inputs).float())
            for key in tqdm([*resolved.methods, *config.BUILT_IN_METHODS], desc=model, leave=False):
                method = attribution.row(key, resolved.method_settings(key)).method
                context = {"statistics": statistics} if "statistics" in method.requires else {}
                seconds, peak = time_method(key, method, network, inputs, targets, context)
                work, _ = method_work(method, facts, Split(images, images), images)
                mixed = hasattr(method, "cost") and method.cost(facts.features[0]).mixed and where.type == "cuda"
                rows.append(
                    {
                        "model": model,
                        "method": method.label,
                        "seconds_per_image": seconds / images,
                        "flops_per_second": work.flops / seconds if work else None,
                        "forward_flops_per_second": rates[mixed],
                        "peak_bytes": peak,
                        "hours": seconds / images * VOC2007_TEST / 3600,
                    }
                )
    table = Table(title=f"{name}, config {loaded.name!r}, {images} images in a batch", box=None)
    for heading in ("network", "method", "s / image", "TFLOP/s", "of plain forward", "peak GB", f"h / {VOC2007_TEST}"):
        table.add_column(heading, justify="left" if heading in ("network", "method") else "right", no_wrap=True)
    for row in rows:
        rate = row["flops_per_second"]
        columns = ("–", "–")
        if rate is not None:
            columns = (f"{rate / 1e12:.3g}", f"{rate / row['forward_flops_per_second']:.0%}")
        peak = f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else "–"
        table.add_row(
            row["model"], row["method"], f"{row['seconds_per_image']:.4g}", *columns, peak, f"{row['hours']:.3g}"
        )
    # A pipe has no width of its own.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    write_json(out, {"device": name, "images": images, "rows": rows})


if __name__ == "__main__":
    app()
