"""The paper's values and the settings behind them, and how a run's settings differ from those."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from pydantic import BaseModel

from ibsgl import attribution
from ibsgl.training.variants import GUIDED

if TYPE_CHECKING:
    from ibsgl.config.schema import Config

# The states of the settings that a run must share with the published ones.
STATES = ("paper", "inferred")
# Sections of settings.yaml that are not settings. They describe the others.
_DESCRIPTIONS = ("labels", "test_set", "ours", "differences")
# Settings of methods that limit the memory. They change results only by rounding.
_TECHNICAL = ("chunk",)


def check_number(number: int) -> None:
    """Raise ``ValueError`` unless the paper has a table ``number``."""
    if number not in (1, 2, 3, 4):
        raise ValueError(f"there are Tables 1, 2, 3 and 4, not {number}")


def read_published(published_dir: str | Path, number: int) -> pd.DataFrame:
    """Table ``number`` as printed: method, variant, label, metric, value (percent), marking, in_paper, source."""
    check_number(number)
    return pd.read_csv(Path(published_dir) / f"table{number}.csv", dtype={"in_paper": bool}, keep_default_na=False)


def read_published_settings(published_dir: str | Path, number: int, states: Sequence[str] = STATES) -> dict[str, Any]:
    """The settings behind table ``number``, from ``settings.yaml``.

    Args:
        published_dir: folder with ``settings.yaml``.
        number: 1 to 4.
        states: "paper" (the paper's own words), "inferred" (from SISE and the papers of the methods), or both.

    Returns:
        The common settings and those of the table's network, nested. Beside them: ``labels`` and ``ours``, described at
        :func:`deviations` and :func:`not_stated`; ``test_set``, described at :func:`data_set`; ``differences``, sentences
        on what every run does otherwise than the authors of a method.
    """
    check_number(number)
    content = yaml.safe_load((Path(published_dir) / "settings.yaml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = {}
    for state in states:
        for part in ("common", "first" if number in (1, 3) else "second"):
            for key, value in content[state].get(part, {}).items():
                if isinstance(value, dict):
                    settings.setdefault(key, {}).update(copy.deepcopy(value))
                else:
                    settings[key] = value
    return settings | {key: content[key] for key in _DESCRIPTIONS}


def comparable_settings(config: Config, model: str) -> dict[str, Any]:
    """Every setting of a run that changes its tables, with the defaults of every method filled in.

    Args:
        config: the config of the run. The overrides of ``model`` are merged into it here.
        model: the network's name in the config.

    Returns:
        Nested, as :func:`deviations` needs it, without ``data`` (:func:`data_set`). The guidance is that of the guided
        variant. Weights are a file's name, the name of torchvision's weights, or "random".
    """
    config = config.for_model(model)
    network = config.models[model]
    lists = dict(config.data.list_settings)
    splits = getattr(config.data, "splits", None)
    # The paper's settings are of the paper's methods. A row with another name, which `use`s one, is a row of the run's own.
    methods = {
        name: attribution.row(name, settings).method
        for name, settings in config.methods.items()
        if attribution.method_of(name, settings) == name
    }
    return {
        "source": config.data.source,
        "train_list": f"that of {config.data.source}" if splits is None else splits.train,
        "test_list": lists.pop("split"),
        **lists,
        "held_out": config.data.held_out,
        "multilabel": config.data.multilabel,
        "average": config.tables.average,
        "network": {
            "arch": network.arch,
            "image_size": network.image_size,
            "source": network.source,
            "weights": Path(network.weights).name if network.weights else "random",
        },
        "classifier": config.classifier.model_dump(),
        "suppression": config.suppression.model_dump(),
        "bottleneck": _settings_of(config.bottleneck),
        "guidance": config.guidance_of(GUIDED).model_dump() | {"training": config.guidance.training.model_dump()},
        "metrics": config.metrics.model_dump(),
        "deletion": config.deletion.model_dump(),
        **{name: _settings_of(method) for name, method in methods.items()},
    }


def _settings_of(method: object) -> dict[str, Any]:
    """The settings of a saliency method as YAML has them. They are empty if they cannot be read."""
    settings: dict[str, Any] = {}
    if isinstance(method, BaseModel):
        settings = method.model_dump(mode="json")
    elif is_dataclass(method) and not isinstance(method, type):
        # A tuple is a list in YAML.
        settings = json.loads(json.dumps(asdict(method)))
    return {key: value for key, value in settings.items() if key not in _TECHNICAL}


def data_set(images: int, class_names: Sequence[str], name: str, published: Mapping[str, Any]) -> str:
    """The name of the published data set if it is this one, otherwise ``name`` with its size.

    Args:
        images: number of test images.
        class_names: the classes in order.
        name: of the run. It does not count for whether the data set is the published one.
        published: its ``test_set`` has the class names and the number of images by which the published data set is
            recognised.
    """
    known = published["test_set"]
    if list(class_names) == known["class_names"] and images == known["images"]:
        return str(published["data"])
    return f"{name} ({images} test images, {len(class_names)} classes)"


def deviations(settings: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """The differences between ``settings`` and the published ones, as phrases: "RISE masks 500 instead of 8000".

    Args:
        settings: nested, with the keys of ``published``. Other keys are ignored.
        published: nested. ``{at_most: x}`` accepts every number up to x. Its top-level ``labels`` maps dotted keys to the
            names of settings and sections in the phrases.

    Returns:
        One phrase per different or absent setting, in the order of ``published``. A section that ``settings`` does not
        have is left out. The list is empty if the run is comparable.
    """
    labels = published.get("labels", {})

    def compare(section: object, expected: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[str]:
        for key, value in expected.items():
            full_path = (*path, key)
            ours = section.get(key) if isinstance(section, Mapping) else None
            if isinstance(value, Mapping) and set(value) == {"at_most"}:
                if ours is None or ours > value["at_most"]:
                    found = "not set" if ours is None else ours
                    yield f"{_label(full_path, labels)} {found} instead of at most {value['at_most']}"
            elif isinstance(value, Mapping):
                # A method that was not run needs no phrase: its row in the table is "not run".
                yield from () if ours is None else compare(ours, value, full_path)
            elif ours != value:
                yield f"{_label(full_path, labels)} {'not set' if ours is None else _text(ours)} instead of {_text(value)}"

    return list(compare(settings, {key: value for key, value in published.items() if key not in _DESCRIPTIONS}, ()))


def not_stated(settings: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """The settings that are stated nowhere, with the run's values, as phrases: "guidance steps 5".

    Args:
        settings: those of :func:`comparable_settings`.
        published: its ``ours`` has the dotted keys of these settings and sections, its ``labels`` their names.

    Returns:
        One phrase per setting, in the order of ``ours``. Settings that the run does not have are left out.
    """
    labels = published.get("labels", {})

    def phrases(value: object, path: tuple[str, ...]) -> Iterable[str]:
        if isinstance(value, Mapping):
            for key, part in value.items():
                yield from phrases(part, (*path, key))
        elif value is not None:
            yield f"{_label(path, labels)} {_text(value)}"

    found: list[str] = []
    for key in published["ours"]:
        value: Any = settings
        path = tuple(key.split("."))
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        found += phrases(value, path)
    return found


def _label(path: tuple[str, ...], labels: Mapping[str, str]) -> str:
    """The name of a setting: that of the longest part of its key that has one, then the rest of the key."""
    for length in range(len(path), 0, -1):
        name = labels.get(".".join(path[:length]))
        if name:
            return " ".join([name, *path[length:]]).replace("_", " ") if length < len(path) else name
    return " ".join(path).replace("_", " ")


def _text(value: object) -> str:
    """A value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
