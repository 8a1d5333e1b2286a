"""What ``precision: auto`` and ``compile: auto`` mean in a run.

This depends on the machine. So the first run writes it down in ``results/<name>/passes.json``, and every later run of that name
reads it there: on another machine too, the same config has the same passes. Delete the file to decide again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, ValidationError

from ibsgl.errors import ConfigError
from ibsgl.files import written
from ibsgl.networks.passes import Precision, has_compiler, native_precision
from ibsgl.provenance import processor
from ibsgl.settings import Settings

if TYPE_CHECKING:
    from ibsgl.config.schema import Config

AUTO: Literal["auto"] = "auto"
PrecisionSetting = Literal["float32", "bfloat16", "auto"]
# YAML reads the word off as false.
Compile = Annotated[Literal["off", "auto"], BeforeValidator(lambda value: "off" if value is False else value)]


class Recorded(Settings):
    """The file ``passes.json``: what a run has taken, and the processor on which that was decided."""

    precision: Precision
    compile: Compile
    processor: str


class PassSettings(NamedTuple):
    """How the passes of methods of many passes run. ``compile: auto`` compiles where the job is long enough to pay for it."""

    precision: Precision
    compile: Compile


def file_of(config: Config) -> Path:
    """Where a run's decision is written down."""
    return Path(f"results/{config.name}/passes.json")


def pass_settings(config: Config) -> PassSettings:
    """The precision and the compiler of ``config``: its own values, those of its file, or what fits this machine.

    Raises:
        ConfigError: the file is not readable.
    """
    if config.precision != AUTO and config.compile != AUTO:
        return PassSettings(config.precision, config.compile)
    path = file_of(config)
    found = _read(path) if path.is_file() else _decide(_on_gpu(config))
    return PassSettings(
        found.precision if config.precision == AUTO else config.precision,
        found.compile if config.compile == AUTO else config.compile,
    )


def record_passes(config: Config) -> None:
    """Write down what ``auto`` means in this run and its alternatives, if they have it, unless that is written down already."""
    path = file_of(config)
    configs = (config, *map(config.alternative, config.alternatives))
    if any(AUTO in (each.precision, each.compile) for each in configs) and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as temporary:
            temporary.write_text(_decide(_on_gpu(config)).model_dump_json(indent=2) + "\n")


def _on_gpu(config: Config) -> bool:
    from ibsgl import devices

    return config.device == "cuda" or (config.device == "auto" and bool(devices.automatic()))


def _decide(on_gpu: bool) -> Recorded:
    return Recorded(
        precision=native_precision("cuda" if on_gpu else "cpu"),
        compile=AUTO if has_compiler() else "off",
        processor="GPU" if on_gpu else processor(),
    )


def _read(path: Path) -> Recorded:
    try:
        return Recorded.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        raise ConfigError(
            f"{path}: this is not what a run wrote there about its precision; delete the file to decide again"
        ) from None
