"""Reading a config, and the checks that a schema cannot do: networks, methods and their settings, files and folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ibsgl import attribution
from ibsgl.config.files import read_file
from ibsgl.config.passes import pass_settings
from ibsgl.config.schema import BUILT_IN_METHODS, SANITY_METHODS, Config, merge, parse
from ibsgl.config.steps import Step, step_of
from ibsgl.errors import ConfigError
from ibsgl.metrics import METRICS, further
from ibsgl.settings import LARGEST


def check(config: Config, data: bool = True) -> Config:
    """``config`` itself if networks can be built and methods made from it and from each alternative.

    Without ``data`` files and folders may be missing.

    Raises:
        ConfigError: one line that begins with the key.
    """
    try:
        config.data.check()
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error
    for name in config.models:
        _check_network(config, name, data)
        _check_methods(config, name)
    _check_further_metrics(config)
    # What an earlier run wrote down must be readable.
    pass_settings(config)
    for name in config.alternatives:
        _check_alternative(config, name, data)
    if data and config.data.folder and not config.data.archives and not Path(config.data_root).is_dir():
        hint = "; give data.download to have it fetched" if "download" in type(config.data).model_fields else ""
        raise ConfigError(f"data.root: there is no folder {config.data_root!r}{hint}")
    return config


def _check_network(config: Config, name: str, data: bool) -> None:
    network = config.network(name)
    try:
        network.check()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"models.{name}.{error}") from error
    if data and network.weights_file and not Path(network.weights_file).is_file():
        raise ConfigError(f"models.{name}.weights: there is no file {network.weights_file!r}")


def _check_methods(config: Config, model: str) -> None:
    resolved = config.for_model(model)
    labels = {
        attribution.row(method, resolved.method_settings(method)).label: method
        for method in (*BUILT_IN_METHODS, *SANITY_METHODS)
    }
    for method, settings in resolved.methods.items():
        base = config.methods.get(method, settings)
        if attribution.method_of(method, settings) != attribution.method_of(method, base):
            raise ConfigError(f"models.{model}.override.methods.{method}.use: a row is one method on all networks")
        try:
            label = attribution.row(method, settings).label
        except (ValueError, TypeError) as error:
            raise ConfigError(f"methods.{method}: {error}") from error
        if label in labels:
            raise ConfigError(f"methods.{method}: {labels[label]} is called {label!r} in tables too; give one a label")
        labels[label] = method
        for key, value in settings.items():
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise ConfigError(f"methods.{method}.{key}: {value:g} is more than {LARGEST}")
    if set(resolved.methods) != set(config.methods):
        raise ConfigError(f"models.{model}.override.methods: may change settings, not add methods")


def _check_further_metrics(config: Config) -> None:
    own: dict[str, str] = {}
    for row in config.further_metrics:
        use, settings, _ = config.further_metric(row)
        try:
            own[row] = further.get(use, **settings).label
        except (ValueError, TypeError) as error:
            raise ConfigError(f"further_metrics.{row}: {error}") from error
    # Rows of one metric without labels are told apart by the rows' names.
    names = {metric.label.removesuffix("(%)"): "a metric of Tables 1–4" for metric in METRICS.values()}
    given = {row: label for row in own if (label := config.further_metric(row).label)}
    names |= {label: row for row, label in own.items() if row not in given}
    for row, label in given.items():
        if label in names:
            raise ConfigError(
                f"further_metrics.{row}.label: {names[label]} is called {label!r} in tables too; take another text"
            )
        names[label] = row


def _check_alternative(config: Config, name: str, data: bool) -> None:
    """``ConfigError`` if the alternative ``name`` cannot be run, or cannot be compared with ``config``."""
    other = config.alternative(name)
    for key in sorted(_FIXED & config.alternatives[name].keys()):
        raise ConfigError(f"alternatives.{name}.{key}: an alternative cannot change this key")
    if other.models.keys() != config.models.keys():
        raise ConfigError(f"alternatives.{name}.models: an alternative has the networks of the config, no others")
    if _images(other) != _images(config):
        raise ConfigError(f"alternatives.{name}.data: all alternatives use the images of the config; change other keys")
    try:
        other.data.check()
    except ValueError as error:
        raise ConfigError(f"alternatives.{name}.data.{error}") from error
    try:
        for model in other.models:
            # What equals the config's is checked already.
            if other.network(model) != config.network(model):
                _check_network(other, model, data)
            if other.for_model(model).methods != config.for_model(model).methods:
                _check_methods(other, model)
    except ConfigError as error:
        raise ConfigError(f"alternatives.{name}.{error}") from error


# Keys of the whole run.
_FIXED = {
    "name",
    "seed",
    "device",
    "threads",
    "shard_size",
    "batch_size",
    "replicates",
    "alternatives",
    "further_metrics",
}


def _images(config: Config) -> tuple[str, Step | None]:
    """The folder of the images and, if they are generated, what they are generated from."""
    return config.data_root, step_of(config, "data") if config.data.generated else None


def load(values: Mapping[str, Any], data: bool = True) -> Config:
    """The checked config of ``values``, a parsed YAML file or Snakemake's ``config``; see :func:`check`."""
    return check(parse(values), data)


def read(files: Sequence[Path], data: bool = True) -> Config:
    """The checked config of ``files``, each on top of the last as Snakemake merges them; see :func:`check`."""
    merged: dict[str, Any] = {}
    for file in files:
        merged = merge(merged, read_file(file))
    return load(merged, data=data)
