"""The plan as printed tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

from rich import box
from rich.console import Console
from rich.table import Table

from ibsgl.plan.data import DataFacts
from ibsgl.plan.networks import NetworkFacts, Work
from ibsgl.plan.run import Plan
from ibsgl.plan.timing import HERE

# The columns of :func:`_work_columns`.
_WORK = ("stem forward", "head forward", "stem backward", "head backward", "FLOPs", "time")


def show(plan: Plan, console: Console) -> None:
    """Print ``plan``. Where ``console`` is no terminal, the tables are plain columns."""
    _show_data(plan.name, plan.data, console)
    console.print(f"replicates: {plan.replicates}\n")
    if plan.timing and plan.timing != HERE:
        console.print(f"Times: {plan.timing}. Nothing was run here.\n", soft_wrap=True)
    for network in plan.networks:
        _show_network(network, plan, console)
        _show_steps(plan, network.model, console)
    if plan.alternatives:
        _show_alternatives(plan, console)
    _show_disk(plan.disk_bytes, console)
    total = plan.total()
    time = f"{duration(total.seconds)} on {plan.device}, one job at a time" if plan.device else "time not measured"
    time = f"an estimate of {time}" if plan.estimated else time
    unknown = " Methods marked unknown are not included." if any(step.work is None for step in plan.steps) else ""
    console.print(
        f"Total: {with_prefix(total.flops, 'FLOP')}, {time}. This counts the networks' passes only: not reading images, not "
        f"making masks, not the optimiser's steps.{unknown}",
        soft_wrap=True,
    )
    console.print(
        "Grad-CAM, Grad-CAM++ and Eq. 3 share their passes on a network, but each is counted in full.", soft_wrap=True
    )


def _show_data(name: str, data: DataFacts, console: Console) -> None:
    table = _table(f"{name}: {data.origin}", ("split", "images", "(image, class) pairs"), console)
    for split, size in data.splits.items():
        table.add_row(split, f"{size.images:,}", f"{size.pairs:,}")
    _put(table, console)


def _show_network(network: NetworkFacts, plan: Plan, console: Console) -> None:
    shape = "×".join(map(str, network.features))
    title = (
        f"{network.model}: {network.arch} at {network.image_size} px, feature map {shape}, "
        f"{_count(network.parameters)} parameters"
    )
    where = "time here" if plan.timing == HERE else f"time on {plan.device}"
    time = f"{where}, {network.batch} at a time" if network.batch else "time (estimate)" if plan.estimated else "time"
    table = _table(title, ("for one image", "FLOPs", time, "rate"), console)
    for name, flops, seconds in _unit_costs(network):
        rate = with_prefix(flops / seconds, "FLOP/s") if seconds else "–"
        table.add_row(name, with_prefix(flops, "FLOP"), duration(seconds), rate)
    _put(table, console)


def _show_steps(plan: Plan, model: str, console: Console) -> None:
    headings = ("step", "networks", "examples", *_WORK)
    table = _table(f"{model}: passes of one image each", headings, console)
    for step in plan.steps:
        if step.model == model:
            name = f"{step.name} (at most)" if step.at_most else step.name
            table.add_row(name, str(step.networks), f"{step.examples:,} {step.unit}", *_work_columns(step.work))
    table.add_section()
    table.add_row("total", "", "", *_work_columns(plan.total(model)))
    _put(table, console)


def _show_alternatives(plan: Plan, console: Console) -> None:
    table = _table("Alternatives: what each adds to the run", ("alternative", *_WORK), console)
    for name, work in plan.alternatives.items():
        table.add_row(name, *_work_columns(work))
    table.add_section()
    first, *others = plan.alternatives.values()
    table.add_row("total", *_work_columns(sum(others, first)))
    _put(table, console)


def _show_disk(sizes: dict[str, int], console: Console) -> None:
    table = _table("Disk", ("what", "size"), console)
    for what, size in sizes.items():
        table.add_row(what, with_prefix(size, "B"))
    table.add_section()
    table.add_row("total", with_prefix(sum(sizes.values()), "B"))
    _put(table, console)


def _table(title: str, headings: tuple[str, ...], console: Console) -> Table:
    """An empty table, whose title is printed at once."""
    console.print(title, style="bold", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number == 0)
    return table


def _put(table: Table, console: Console) -> None:
    console.print(table)
    console.print()


def _unit_costs(network: NetworkFacts) -> Iterator[tuple[str, float, float | None]]:
    """(name, FLOPs, seconds) of every kind of pass of one image."""
    flops, seconds = network.flops, network.seconds
    for precision, suffix in (("full", ""), ("mixed", ", bf16")):
        if precision == "mixed" and (seconds is None or seconds.mixed == seconds.full):
            continue
        for part in ("stem", "head"):
            for key, direction in ((part, "forward"), (f"{part}_backward", "backward to its input")):
                pass_seconds = getattr(getattr(seconds, precision), key) if seconds else None
                if precision == "full" or pass_seconds:
                    yield f"{part} {direction}{suffix}", getattr(flops.full, key), pass_seconds
    yield "training step", flops.training, seconds.training if seconds else None
    names = {"feature": "inner step of guidance", "end_to_end": "guidance, end to end"}
    for kind, added in flops.guidance.items():
        yield names.get(kind, f"guidance loss {kind}"), added, seconds.guidance[kind] if seconds else None


def _work_columns(work: Work | None) -> list[str]:
    if work is None:
        return ["unknown"] * 6
    return [*map(_count, astuple(work.passes)), with_prefix(work.flops, "FLOP"), duration(work.seconds)]


def with_prefix(number: float, unit: str) -> str:
    """``number`` with three significant digits, a prefix and ``unit``: ``8.18 GFLOP``."""
    for prefix, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # From 999.5 on, three digits round to 1000, which is 1.00 of the larger prefix.
        if number >= 0.9995 * factor:
            return f"{number / factor:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{number:.0f} {unit}"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number < 1e6 else with_prefix(number, "")


def duration(seconds: float | None) -> str:
    """``seconds`` in the largest unit that fits: ``1.5 min``; a dash for ``None``."""
    if seconds is None:
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{1000 * seconds:.3g} ms"
