"""The paper's values and the settings behind them, and how a run's settings differ from those."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from pydantic import BaseModel

from ibsgl import attribution

if TYPE_CHECKING:
    from ibsgl.config.schema import Config

# Sections of settings.yaml that are not settings. They describe the others.
_DESCRIPTIONS = ("labels", "test_set")


def check_number(number: int) -> None:
    """Raise ``ValueError`` unless the paper has a table ``number``."""
    if number not in (1, 2, 3, 4):
        raise ValueError(f"there are Tables 1, 2, 3 and 4, not {number}")


def read_published(published_dir: str | Path, number: int) -> pd.DataFrame:
    """Table ``number`` as printed: method, variant, label, metric, value (percent), marking, in_paper, source."""
    check_number(number)
    return pd.read_csv(Path(published_dir) / f"table{number}.csv", dtype={"in_paper": bool}, keep_default_na=False)


def read_published_settings(published_dir: str | Path, number: int) -> dict[str, Any]:
    """The settings behind table ``number``, from ``settings.yaml``.

    Returns:
        The common settings and those of the table's network. ``labels`` and ``test_set`` are described at
        :func:`deviations` and :func:`data_set`.
    """
    check_number(number)
    content = yaml.safe_load((Path(published_dir) / "settings.yaml").read_text(encoding="utf-8"))
    settings = copy.deepcopy(content["common"])
    for key, value in content["first" if number in (1, 3) else "second"].items():
        if isinstance(value, dict):
            settings.setdefault(key, {}).update(value)
        else:
            settings[key] = value
    return settings | {key: content[key] for key in _DESCRIPTIONS}


def comparable_settings(config: Config, model: str) -> dict[str, Any]:
    """The settings of a run that ``settings.yaml`` has too, with the defaults of every method filled in.

    Args:
        config: the config of the run. The overrides of ``model`` are merged into it here.
        model: the network's name in the config.

    Returns:
        Nested, as :func:`deviations` needs it, without ``data`` (:func:`data_set`).
    """
    config = config.for_model(model)
    network = config.models[model]
    methods = {name: attribution.get(name, **settings) for name, settings in config.methods.items()}
    return {
        **config.data.list_settings,
        "image_size": network.image_size,
        "arch": network.arch,
        "r": config.suppression.r,
        "beta": config.suppression.beta,
        "mu": config.guidance.mu,
        "when": config.suppression.when,
        "average": config.tables.average,
        "metrics": config.metrics.model_dump(),
        "alpha": config.bottleneck.alpha,
        "gamma": config.bottleneck.gamma,
        "sigma": config.bottleneck.sigma,
        **{name: settings for name, method in methods.items() if (settings := _settings_of(method)) is not None},
    }


def _settings_of(method: object) -> dict[str, Any] | None:
    """The settings of a saliency method as YAML has them, or ``None`` if they cannot be read."""
    if isinstance(method, BaseModel):
        return method.model_dump(mode="json")
    # A tuple is a list in YAML.
    return json.loads(json.dumps(asdict(method))) if is_dataclass(method) and not isinstance(method, type) else None


def data_set(scores: pd.DataFrame, name: str, published: Mapping[str, Any]) -> str:
    """The name of the data set of ``scores``: that of the published data set, or ``name`` with its size if it is another one.

    The published data set has certain class names and a certain number of test images (``test_set``). Its name in a config
    does not count.
    """
    metadata = next(iter(scores.attrs["metadata"].values()))
    known = published["test_set"]
    images = scores["image_id"].nunique()
    if metadata["class_names"] == known["class_names"] and images == known["images"]:
        return published["data"]
    return f"{name} ({images} test images, {len(metadata['class_names'])} classes)"


def deviations(settings: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """The differences between ``settings`` and the published ones, as phrases: "RISE masks 500 instead of 8000".

    Args:
        settings: nested, with the keys of ``published``. Other keys are ignored.
        published: nested. Its top-level ``labels`` maps dotted keys to the names of settings in the phrases.

    Returns:
        One phrase per different or absent setting, in the order of ``published``. A section that ``settings`` does not
        have is left out. The list is empty if the run is comparable.
    """
    labels = published.get("labels", {})

    def compare(section: object, expected: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[str]:
        for key, value in expected.items():
            full_path = (*path, key)
            ours = section.get(key) if isinstance(section, Mapping) else None
            if isinstance(value, Mapping):
                # A method that was not run needs no phrase: its row in the table is "not run".
                yield from () if ours is None else compare(ours, value, full_path)
            elif ours != value:
                name = labels.get(".".join(full_path), " ".join(full_path).replace("_", " "))
                yield f"{name} {'not set' if ours is None else ours} instead of {value}"

    return list(compare(settings, {key: value for key, value in published.items() if key not in _DESCRIPTIONS}, ()))
