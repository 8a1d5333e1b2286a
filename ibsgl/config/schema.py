"""The config as one typed object: its keys, their types, ranges and defaults.

Each room defines the settings of what it does; here they are put together. ``config/README.md`` lists every key with the
descriptions from here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from ibsgl import attribution
from ibsgl.bottleneck import Bottleneck
from ibsgl.data.sources import DEFAULT, SOURCES, AnySource
from ibsgl.errors import ConfigError
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.guidance.settings import GuidanceSettings
from ibsgl.metrics import MetricSettings
from ibsgl.networks.registry import NetworkSettings
from ibsgl.settings import Positive, Settings
from ibsgl.suppression import SuppressionSettings
from ibsgl.training.settings import ClassifierSettings, TrainingSettings

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]

# Methods that are in every table. The config lists the others.
BUILT_IN_METHODS = ("gradient", "bottleneck")
SANITY_METHODS = ("center", "random", "oracle")
# The group of methods that share one job and its passes.
SINGLE_PASS = "single_pass"
# Sections that ``models.<name>.override`` may change.
OVERRIDABLE = ("classifier", "bottleneck", "suppression", "guidance", "methods")
# Folders of results/<name> beside those of the models.
_FOLDERS = {"benchmarks", "data", "figures", "logs", "records", "tables"}


class Model(NetworkSettings):
    """One network to explain."""

    multilabel: bool = Field(False, exclude=True, repr=False)
    override: dict[str, Any] = Field({}, description="other settings for this network alone")

    @field_validator("multilabel")
    @classmethod
    def _set_for_the_data(cls, value: bool) -> bool:
        raise ValueError("it holds for all networks: set data.multilabel")


class Guidance(GuidanceSettings):
    """Guided training: what it adds to the loss, and its optimiser."""

    training: TrainingSettings = TrainingSettings()


class Tables(Settings):
    """How scores become tables."""

    average: Literal["pairs", "classes"] = Field(
        "pairs", description="mean over (image, class) pairs, or over the classes' means"
    )
    resamples: int = Field(
        10000, ge=100, description="number of bootstrap resamples behind every 95 % interval. Images are resampled"
    )


class Figures(Settings):
    """Figures 2 and 3."""

    examples: Positive = Field(
        4, description="images in Figures 2 and 3. A hash chooses them before any map is computed"
    )


class Config(Settings):
    """A whole run."""

    name: Name = Field(
        description="folder under `results/` and MLflow experiment: a letter, then letters, digits, `_`, `-`"
    )
    seed: int = Field(
        0,
        ge=0,
        description="the one seed. Every other seed is derived from it by name (training, method, image id), so batches, "
        "shards and order never change a draw",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="`auto` takes a GPU if torch finds one; the environment variable `IBSGL_GPU` (0 or 1) overrides this. "
        "Changing the device re-runs nothing. A GPU draws other masks and noise from the same seed",
    )
    threads: Positive = Field(1, description="CPU threads of each heavy job")
    shard_size: Positive = Field(
        512,
        description="test images that one job explains or scores, and that a killed job starts again. No result depends on it",
    )
    batch_size: Positive = Field(
        32, description="images per batch outside of training. It limits the memory. Changing it re-runs nothing"
    )
    data: AnySource = SOURCES[DEFAULT].model_validate({})
    models: dict[Name, Model]
    classifier: ClassifierSettings = ClassifierSettings()
    bottleneck: Bottleneck = Bottleneck()
    suppression: SuppressionSettings = SuppressionSettings()
    guidance: Guidance = Guidance()
    methods: dict[Name, dict[str, Any]]
    metrics: MetricSettings = MetricSettings()
    deletion: DeletionSettings = DeletionSettings()
    figures: Figures = Figures()
    tables: Tables = Tables()

    @field_validator("models")
    @classmethod
    def _one_or_two_models(cls, models: dict[str, Model]) -> dict[str, Model]:
        if not 1 <= len(models) <= 2:
            raise ValueError("give one network (Tables 1 and 3) or two (the second is Tables 2 and 4)")
        for name in models.keys() & _FOLDERS:
            raise ValueError(f"{name!r} is a folder of the results already; call the network something else")
        return models

    @field_validator("methods")
    @classmethod
    def _methods_in_every_table_are_not_listed(cls, methods: dict[str, Any]) -> dict[str, Any]:
        for name in (*BUILT_IN_METHODS, *SANITY_METHODS):
            if name in methods:
                raise ValueError(f"{name} is in every table anyway; remove it here")
        return methods

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_settings(cls, methods: Any) -> Any:
        # YAML reads `gradcam:` with nothing after it as null.
        if not isinstance(methods, Mapping):
            return methods
        return {name: {} if settings is None else settings for name, settings in methods.items()}

    def for_model(self, model: str) -> Config:
        """This config with ``models.<model>.override`` merged in."""
        override = self.models[model].override
        for key in override:
            if key not in OVERRIDABLE:
                raise ConfigError(f"models.{model}.override.{key}: only {', '.join(OVERRIDABLE)} can be overridden")
        return parse(merge(self.model_dump(), override), f"models.{model}.override.") if override else self

    def network(self, model: str) -> NetworkSettings:
        """What it takes to build the network ``model``."""
        chosen = self.models[model].model_dump(exclude={"override"})
        return NetworkSettings(**chosen, multilabel=self.data.multilabel)

    @property
    def data_root(self) -> str:
        """The folder with the images."""
        return self.data.folder or f"results/{self.name}/data/VOCdevkit/VOC2007"

    @property
    def test_images(self) -> int:
        """How many images the test split lists; those that show no object are left out later."""
        return self.data.test_images(Path(self.data_root))

    @property
    def shards(self) -> int:
        """How many pieces the test images are cut into, of ``shard_size`` images at most."""
        return math.ceil(self.test_images / self.shard_size)

    def method_settings(self, method: str) -> dict[str, Any]:
        """Settings of a saliency method, whether the config lists it or every table has it."""
        if method == "bottleneck":
            return self.bottleneck.model_dump()
        return self.methods.get(method, {})

    def evaluations(self) -> list[tuple[str, str]]:
        """Every (variant, method) that a table of this config needs, in the tables' order."""
        return [
            *(("pretrained", method) for method in self.methods),
            ("guided", "gradient"),
            ("pretrained", "gradient"),
            ("control", "gradient"),
            ("pretrained", "bottleneck"),
            *(("guided", method) for method in self.methods),
            *(("pretrained", method) for method in SANITY_METHODS),
        ]

    def groups(self, variant: str) -> dict[str, list[str]]:
        """The methods that the tables need on ``variant``, by the job that makes their maps.

        A method has a job of its own, so that its settings re-run nothing else. Methods of a single pass share one job: to
        start a job costs more than any of them, and they share the pass.
        """
        groups: dict[str, list[str]] = {}
        for where, method in self.evaluations():
            if where == variant:
                groups.setdefault(SINGLE_PASS if attribution.is_single_pass(method) else method, []).append(method)
        return groups


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``override`` on top, key by key at every level; lists are replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse(values: Mapping[str, Any], where: str = "") -> Config:
    """The config of ``values``: keys, types and ranges are checked, files and networks are not.

    Raises:
        ConfigError: one line with the first wrong key, ``where`` before it.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from None


def describe(error: ValidationError, where: str = "") -> str:
    """The first problem of ``error`` as one line that begins with the key, and the number of the others."""
    # A misspelt key usually also leaves its right name missing. The misspelling says more.
    first, *others = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    path = list(first["loc"])
    kind = path.pop(1) if len(path) > 1 and path[0] == "data" and path[1] in SOURCES else None
    if first["type"] == "extra_forbidden":
        reason = "there is no such key" + (f" where data.source is {kind}" if kind else "")
    elif first["type"] == "missing":
        reason = "this key is missing"
    elif first["type"] == "union_tag_invalid":
        path.append("source")
        reason = f"there is no source {first['ctx']['tag']!r}; take one of {', '.join(SOURCES)}"
    elif first["type"] == "union_tag_not_found":
        reason = f"this is a section with keys of its own, such as source: {DEFAULT} (it is {first['input']!r})"
    elif first["type"] == "model_type":
        reason = f"this is a section with keys of its own (it is {first['input']!r})"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        if not isinstance(first["input"], Mapping):
            reason += f" (it is {first['input']!r})"
    more = f" (and {len(others)} more problems)" if others else ""
    key = where + ".".join(map(str, path))
    return f"{key}: {reason}{more}" if key else f"{reason}{more}"
