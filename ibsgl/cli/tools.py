"""Commands that are no rule: logging to MLflow, the plan of a run, checks before a run, and a step's settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ibsgl.cli.app import app
from ibsgl.cli.options import DEFAULT_CONFIG, ConfigFiles


@app.command()
def track(configfiles: ConfigFiles = DEFAULT_CONFIG) -> None:
    """Log to MLflow the records that it does not have yet. The workflow does this by itself."""
    from ibsgl import config, tracking

    loaded = config.read(configfiles)
    tracking.flush(loaded.name, Path(f"results/{loaded.name}/records"), loaded.model_dump(mode="json"))


@app.command()
def plan(
    configfiles: ConfigFiles = DEFAULT_CONFIG,
    images: Annotated[
        list[str] | None,
        typer.Option("--images", help="<list>=<number>, for data that is not there. Repeatable."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Time some passes here, with random weights.")
    ] = True,
    device_profile: Annotated[
        Path | None,
        typer.Option("--device-profile", help="The times of another device: a scale.json of benchmarks/scale.py."),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option("--card", help="Estimate the time on a100, h100, h200, l4, rtx4090, t4 or v100 from its peak."),
    ] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(
            "--efficiency",
            help="The share of a --card's peak that is reached. Default: 0.6 in float32, 0.2 in bfloat16.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write the numbers there too.")] = None,
) -> None:
    """What a run will cost, before anything runs: pairs, passes, FLOPs, disk, and the time here or on another device."""
    from rich.console import Console

    from ibsgl import config
    from ibsgl.files import write_json
    from ibsgl.plan import CardEstimate, DeviceProfile, ProfiledDevice, Timing, card_named, make_plan, show

    counts = {}
    for item in images or ():
        name, _, number = item.partition("=")
        if not number.isdigit():
            raise typer.BadParameter(f"{item!r} is not <list>=<number>, like test=4952", param_hint="--images")
        counts[name] = int(number)
    if device_profile is not None and card is not None:
        raise typer.BadParameter("give --card or --device-profile, not both", param_hint="--card")
    if efficiency is not None and card is None:
        raise typer.BadParameter("it is that of a --card", param_hint="--efficiency")
    loaded = config.read(configfiles, data=False)
    timing: Timing | None = None
    try:
        if card is not None:
            shares = {} if efficiency is None else {"efficiency": dict.fromkeys(("float32", "bfloat16"), efficiency)}
            timing = CardEstimate(card_named(card), loaded.precision, **shares)
        elif device_profile is not None:
            timing = ProfiledDevice(DeviceProfile.read(device_profile), device_profile, loaded.precision)
    except config.ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--device-profile" if card is None else "--card") from None
    planned = make_plan(loaded, counts, calibrate, timing)
    if out is not None:
        write_json(out, planned.as_dict())
    # In a file or a pipe, a table is as wide as it needs to be.
    show(planned, Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200))


@app.command()
def doctor(configfiles: ConfigFiles = DEFAULT_CONFIG) -> None:
    """Check what a run needs: packages, device, disk, config, data, weights and MLflow.

    Each line is ok, a note or a problem, with what to do. The exit status is 1 if there is a problem.
    """
    from rich.console import Console

    from ibsgl.doctor import run_checks, show

    if not show(run_checks(configfiles), Console(markup=False, highlight=False)):
        raise typer.Exit(1)


@app.command()
def settings(
    step: Annotated[str, typer.Argument(help="classifier, guide, maps, …")],
    configfiles: ConfigFiles = DEFAULT_CONFIG,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="model=…, replicate=…, variant=…, method=…, number=…. Repeatable."),
    ] = None,
) -> None:
    """Print the settings that a step of this config depends on, ready for --settings."""
    from ibsgl import config
    from ibsgl.config.steps import STEPS, WILDCARDS, step_of

    loaded = config.read(configfiles)
    if step not in STEPS:
        raise typer.BadParameter(f"there is no step {step!r}; take one of {', '.join(STEPS)}", param_hint="STEP")
    wildcards = dict(item.partition("=")[::2] for item in where or ())
    if missing := [name for name in WILDCARDS.get(step, ()) if not wildcards.get(name)]:
        raise typer.BadParameter(f"{step} needs {' and '.join(f'{name}=…' for name in missing)}", param_hint="--where")
    if "model" in wildcards and wildcards["model"] not in loaded.models:
        known = ", ".join(loaded.models)
        raise typer.BadParameter(f"there is no model {wildcards['model']!r}; take one of {known}", param_hint="--where")
    try:
        typer.echo(step_of(loaded, step, **wildcards).to_json())
    except config.ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--where") from None
