"""Reading a config, and the checks that a schema cannot do: networks, methods and their settings, files and folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ibsgl import attribution
from ibsgl.config.schema import Config, merge, parse
from ibsgl.errors import ConfigError


def check(config: Config, data: bool = True) -> Config:
    """``config`` itself if networks can be built and methods made from it. Without ``data`` files and folders may be missing.

    Raises:
        ConfigError: one line that begins with the key.
    """
    try:
        config.data.check()
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error
    for name in config.models:
        _check_model(config, name, data)
    if data and config.data.folder and not config.data.archives and not Path(config.data_root).is_dir():
        hint = "; give data.download to have it fetched" if "download" in type(config.data).model_fields else ""
        raise ConfigError(f"data.root: there is no folder {config.data_root!r}{hint}")
    return config


def _check_model(config: Config, name: str, data: bool) -> None:
    network = config.network(name)
    try:
        network.check()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"models.{name}.{error}") from error
    if data and network.weights_file and not Path(network.weights_file).is_file():
        raise ConfigError(f"models.{name}.weights: there is no file {network.weights_file!r}")
    resolved = config.for_model(name)
    for method, settings in resolved.methods.items():
        try:
            attribution.get(method, **settings)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"methods.{method}: {error}") from error
    if set(resolved.methods) != set(config.methods):
        raise ConfigError(f"models.{name}.override.methods: may change settings, not add methods")


def load(values: Mapping[str, Any], data: bool = True) -> Config:
    """The checked config of ``values``, a parsed YAML file or Snakemake's ``config``; see :func:`check`."""
    return check(parse(values), data)


def read(files: Sequence[Path], data: bool = True) -> Config:
    """The checked config of ``files``, each on top of the last as Snakemake merges them; see :func:`check`."""
    merged: dict[str, Any] = {}
    for file in files:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ConfigError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: a config is a list of keys and values")
        merged = merge(merged, values)
    return load(merged, data=data)
