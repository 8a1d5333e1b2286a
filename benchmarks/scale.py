"""How long the reproduction's maps take on this device: ``uv run python benchmarks/scale.py`` on a machine with a GPU.

Every method at its settings in the config, on generated images and networks with random weights (no time depends on them):
seconds an image, FLOP/s beside those of bare batched forward passes of the same network in the same run, peak memory, and the
hours for the test images of VOC 2007, one class each. Needs no data and no download.
"""

import json
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

from ibsgl import attribution
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.cli import ConfigFiles, _config
from ibsgl.network import SplitNetwork, autocast, build_network, chunked, evaluating
from ibsgl.plan import CLASSES, NetworkFacts, Split, method_work, network_facts
from ibsgl.randomness import generator

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

VOC2007_TEST = 4952
# Images of the bare forward passes.
BATCH = 256


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds of ``run``, and the peak of bytes that tensors take; 0 where that is not counted."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, torch.cuda.max_memory_allocated(device) if cuda else 0


def bare(network: SplitNetwork, facts: NetworkFacts, device: torch.device, batch: int, mixed: bool) -> float:
    """FLOP/s of forward passes of ``batch`` images at a time, or of as many as memory holds."""
    size = facts.image_size

    def run(start: int, stop: int) -> float:
        images = torch.rand(stop - start, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            network(images)
            seconds, _ = timed(lambda: network(images), device)
        return (stop - start) * (facts.flops.full.stem + facts.flops.full.head) / seconds

    return max(chunked(run, batch, batch, device))


def explained(
    key: str,
    method: attribution.Attribution,
    network: SplitNetwork,
    images: torch.Tensor,
    targets: torch.Tensor,
    context: dict[str, object],
) -> tuple[float, int]:
    """Seconds and peak of bytes of one call of ``method``, which has been called before."""

    def run(number: int) -> None:
        draws = [generator(0, key, str(image), device=images.device) for image in range(number)]
        method(network, images[:number], targets[:number], draws, **context)

    # The first call chooses kernels and fills the allocator.
    run(1)
    return timed(lambda: run(len(images)), images.device)


@app.command()
def main(
    configfiles: ConfigFiles = [Path("config/voc2007.yaml")],  # noqa: B006
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu, …")] = "cuda",
    images: Annotated[int, typer.Option(min=1, help="Images that each method explains, in one batch.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images of a bare forward pass.")] = BATCH,
    out: Annotated[Path, typer.Option(help="The numbers as JSON.")] = Path("results/benchmarks/scale.json"),
) -> None:
    """Time every method of the config on generated images."""
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here; give --device cpu", param_hint="--device")
    config, rows = _config(configfiles, data=False), []
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    for model, spec in config.models.items():
        resolved = config.for_model(model)
        classes = len(config.data.classes or ()) or CLASSES
        facts = network_facts(resolved, model, classes)
        torch.manual_seed(0)
        network = build_network(
            spec.arch, classes, multilabel=config.data.multilabel, source=spec.source, **spec.options
        ).to(where)
        with evaluating(network):
            rates = {mixed: bare(network, facts, where, batch, mixed) for mixed in {False, where.type == "cuda"}}
            size = spec.image_size
            given = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0)).to(where)
            given, targets = given.contiguous(memory_format=torch.channels_last), torch.arange(images, device=where)
            targets %= classes
            with torch.no_grad(), autocast(where):
                statistics = FeatureStatistics().update(network.stem(given).float())
            for key in tqdm([*resolved.methods, "gradient", "bottleneck"], desc=model, leave=False):
                method = attribution.get(key, **resolved.method_settings(key))
                context = {"statistics": statistics} if "statistics" in method.requires else {}

                seconds, peak = explained(key, method, network, given, targets, context)
                work, _ = method_work(method, facts, Split(images, images), images)
                mixed = hasattr(method, "cost") and method.cost(facts.features[0]).mixed and where.type == "cuda"
                rows.append(
                    {
                        "model": model,
                        "method": method.label,
                        "seconds_per_image": seconds / images,
                        "flops_per_second": work.flops / seconds if work else None,
                        "bare_flops_per_second": rates[mixed],
                        "peak_bytes": peak,
                        "hours": seconds / images * VOC2007_TEST / 3600,
                    }
                )
    table = Table(title=f"{name}, config {config.name!r}, {images} images in a batch", box=None)
    for heading in ("network", "method", "s / image", "TFLOP/s", "of bare forward", "peak GB", f"h / {VOC2007_TEST}"):
        table.add_column(heading, justify="left" if heading in ("network", "method") else "right", no_wrap=True)
    for row in rows:
        rate = row["flops_per_second"]
        shown = (f"{rate / 1e12:.3g}", f"{rate / row['bare_flops_per_second']:.0%}") if rate is not None else ("–", "–")
        peak = f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else "–"
        table.add_row(
            row["model"], row["method"], f"{row['seconds_per_image']:.4g}", *shown, peak, f"{row['hours']:.3g}"
        )
    # A pipe has no width of its own.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"device": name, "images": images, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app()
