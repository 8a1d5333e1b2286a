"""What each step of the workflow depends on: one frozen model per step.

A rule's ``params``, the command's ``--settings`` and the digest of a training checkpoint are all made from the same model. So
editing a value or a module re-runs what depends on it, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError, model_validator

from ibsgl import attribution
from ibsgl.bottleneck import Bottleneck
from ibsgl.config.schema import Config, Figures, describe
from ibsgl.data.download import Archive
from ibsgl.data.sources import AnySource
from ibsgl.errors import ConfigError
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.guidance.settings import GuidanceSettings
from ibsgl.metrics import MetricSettings
from ibsgl.networks.registry import NetworkSettings
from ibsgl.settings import Settings
from ibsgl.source_code import source_digest
from ibsgl.suppression import SuppressionSettings
from ibsgl.training.settings import ClassifierSettings, TrainingSettings

# What every step that reads images and builds a network calls.
_NETWORK = ("ibsgl.data.loading", "ibsgl.networks.registry")


class Step(Settings, ABC):
    """The settings that one step's result depends on.

    Attributes:
        entry: the modules whose functions the step's command calls. What they import counts too.
    """

    entry: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(cls, config: Config, **where: Any) -> Self:
        """The settings of a job. ``where`` holds its wildcards: ``model``, ``variant``, ``group``, ``number``."""
        # Plain values everywhere: then all of them are in :meth:`to_json`, defaults too.
        values = cls._values(config, **where)
        if "seed" in cls.model_fields:
            values["seed"] = config.seed
        if "network" in cls.model_fields:
            values["network"] = config.network(where["model"]).model_dump()
        return cls.model_validate(values)

    @staticmethod
    @abstractmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        """The step's own fields: all but the seed and the network."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote; ``ValueError`` is one line that begins with the key."""
        try:
            return cls.model_validate(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"not readable as JSON: {error}") from None
        except ValidationError as error:
            raise ValueError(describe(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_json(self) -> str:
        """The settings as JSON; equal settings give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False)

    def modules(self) -> tuple[str, ...]:
        """The modules that the result depends on, besides what they import."""
        return self.entry

    def code(self) -> str:
        """Digest of the code that the result depends on."""
        return source_digest(*self.modules())

    def digest(self, *inputs: str) -> str:
        """SHA-256 of everything that the result depends on: settings, code, and ``inputs`` (digests of files, the device)."""
        parts = (self.to_json(), self.code(), *inputs)
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


class _NetworkStep(Step, ABC):
    network: NetworkSettings

    def modules(self) -> tuple[str, ...]:
        """With those of a user's own network."""
        return (*self.entry, *_NETWORK, *self.network.modules)


class Data(Step):
    """Generating the images."""

    seed: int
    data: AnySource

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"data": config.data.model_dump(exclude={"held_out", "multilabel", "download"})}

    def modules(self) -> tuple[str, ...]:
        """The source's module."""
        return (type(self.data).__module__,)


class Fetch(Step):
    """Downloading the images."""

    archives: list[Archive]

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        download = config.data.archives
        return {"archives": [archive.model_dump() for archive in download.archives] if download else []}


class Index(Step):
    """Reading the data set's folder."""

    seed: int
    data: AnySource

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"data": config.data.index_settings()}

    def modules(self) -> tuple[str, ...]:
        """The source's module."""
        return (type(self.data).__module__,)


class Classifier(_NetworkStep):
    """Training the classifier."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.training.classifier", "ibsgl.training.scores")
    seed: int
    training: ClassifierSettings

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"training": config.classifier.model_dump()}


class Statistics(_NetworkStep):
    """Feature statistics of one variant."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.precompute",)

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {}


class BottleneckMaps(_NetworkStep):
    """L^ib of the training pairs."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.precompute",)
    seed: int
    bottleneck: Bottleneck

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"bottleneck": config.bottleneck.model_dump()}


class Guide(_NetworkStep):
    """Guided training, or its control: then there is no guidance."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.training.guided", "ibsgl.training.scores")
    seed: int
    variant: Literal["guided", "control"]
    training: TrainingSettings
    guidance: GuidanceSettings | None = None
    suppression: SuppressionSettings | None = None
    # Only where L^ib is computed as training goes.
    bottleneck: Bottleneck | None = None

    @model_validator(mode="after")
    def _settings_of_the_variant(self) -> Self:
        current = self.guidance is not None and self.guidance.bottleneck_network == "current"
        wanted = {"guidance": self.variant == "guided", "suppression": self.variant == "guided", "bottleneck": current}
        for key, needed in wanted.items():
            if needed != (getattr(self, key) is not None):
                raise ValueError(f"{key}: {self.variant} {'needs this key' if needed else 'has no such key'}")
        return self

    @property
    def current_bottleneck(self) -> bool:
        """Whether L^ib is that of the network in training, computed as it goes."""
        return self.bottleneck is not None

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        guidance = config.guidance
        part: dict[str, Any] = {"variant": where["variant"], "training": guidance.training.model_dump()}
        if where["variant"] != "control":
            part |= {
                "guidance": guidance.model_dump(exclude={"training"}),
                "suppression": config.suppression.model_dump(),
            }
            if guidance.bottleneck_network == "current":
                part |= {"bottleneck": config.bottleneck.model_dump()}
        return part


class Maps(_NetworkStep):
    """Saliency maps of one group of methods on one variant."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.maps", "ibsgl.attribution.storage")
    seed: int
    methods: dict[str, dict[str, Any]]
    shards: int

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        groups, group = config.groups(where["variant"]), where["group"]
        if group not in groups:
            raise ConfigError(f"there is no group {group!r} on {where['variant']}; take one of {', '.join(groups)}")
        return {
            "methods": {method: config.method_settings(method) for method in groups[group]},
            "shards": config.shards,
        }

    def modules(self) -> tuple[str, ...]:
        """With the methods' own."""
        return (*super().modules(), *map(attribution.module_of, self.methods))


class Scores(_NetworkStep):
    """Scores of all maps of one variant."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.evaluation.scoring", "ibsgl.metrics", "ibsgl.reporting.score_files")
    metrics: MetricSettings
    shards: int

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"metrics": config.metrics.model_dump(), "shards": config.shards}


class Evaluation(Step):
    """Putting the shards' scores together."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.reporting.scores",)

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {}


class Effect(_NetworkStep):
    """The effect of guidance on what it optimises."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.evaluation.effect", "ibsgl.reporting.effect", "ibsgl.reporting.formats")
    seed: int
    r: float
    cross_entropy: str
    resamples: int

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {
            "r": config.suppression.r,
            "cross_entropy": config.guidance.cross_entropy,
            "resamples": config.tables.resamples,
        }


class Deletion(_NetworkStep):
    """Deletion curves of every variant."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.evaluation.deletion",)
    seed: int
    r: float
    deletion: DeletionSettings
    shards: int

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {
            "r": config.suppression.r,
            "deletion": config.deletion.model_dump(),
            "shards": config.shards,
        }


class Table(Step):
    """One of Tables 1–4. Its caption compares nearly all of the config with the published settings."""

    entry: ClassVar[tuple[str, ...]] = (
        *("ibsgl.reporting.scores", "ibsgl.reporting.tables"),
        *("ibsgl.reporting.notes", "ibsgl.reporting.formats"),
    )
    number: int
    model: str
    config: dict[str, Any]

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        number = int(where["number"])
        model = list(config.models)[(number - 1) % 2]
        resolved = config.for_model(model)
        left_out = {"device", "threads", "shard_size", "batch_size", "figures", "deletion", "models"}
        whole = resolved.model_dump(mode="json", exclude=dict.fromkeys(left_out, True) | {"data": {"download"}})
        network = resolved.models[model].model_dump(mode="json", exclude={"override"})
        return {"number": number, "model": model, "config": whole | {"models": {model: network}}}

    def resolved(self) -> Config:
        """The part of the config that the table depends on."""
        return Config.model_validate(self.config)


class _FigureStep(Step, ABC):
    seed: int
    networks: dict[str, NetworkSettings]

    def settings_of(self, model: str) -> NetworkSettings:
        """The network ``model``, a name that was read from a file's path; ``ValueError`` if there is none."""
        if model not in self.networks:
            raise ValueError(f"networks: a file is of the model {model!r}, not of {', '.join(self.networks)}")
        return self.networks[model]


class Figure(_FigureStep):
    """Figure 2 or 3."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.reporting.figures", *_NETWORK)
    number: Literal[2, 3]
    figures: Figures
    # Figure 3 shows no L_SS, so it depends on no r.
    r: dict[str, float] | None = None

    @model_validator(mode="after")
    def _figure_2_needs_r(self) -> Self:
        if self.number == 2 and (self.r is None or self.r.keys() != self.networks.keys()):
            raise ValueError("r: Figure 2 needs it for every network")
        return self

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        number = int(where["number"])
        if number not in (2, 3):
            raise ConfigError(f"this step draws Figure 2 or 3, not {number}; figure4 draws Figure 4")
        part: dict[str, Any] = {
            "number": number,
            "networks": {model: config.network(model).model_dump() for model in config.models},
            "figures": config.figures.model_dump(),
        }
        if number == 2:
            part |= {"r": _r_of_models(config)}
        return part

    def modules(self) -> tuple[str, ...]:
        """With those of users' own networks."""
        return (*self.entry, *(module for network in self.networks.values() for module in network.modules))


class Figure4(_FigureStep):
    """Figure 4, from deletion curves that are computed already."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.reporting.figures", "ibsgl.reporting.formats")
    r: dict[str, float]
    deletion: DeletionSettings
    resamples: int

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {
            "networks": {model: config.network(model).model_dump() for model in config.models},
            "r": _r_of_models(config),
            "deletion": config.deletion.model_dump(),
            "resamples": config.tables.resamples,
        }


def _r_of_models(config: Config) -> dict[str, float]:
    return {model: config.for_model(model).suppression.r for model in config.models}


# By the name of the command.
STEPS: dict[str, type[Step]] = {
    "data": Data,
    "fetch": Fetch,
    "index": Index,
    "classifier": Classifier,
    "statistics": Statistics,
    "bottleneck": BottleneckMaps,
    "guide": Guide,
    "maps": Maps,
    "scores": Scores,
    "evaluation": Evaluation,
    "effect": Effect,
    "deletion": Deletion,
    "table": Table,
    "figure": Figure,
    "figure4": Figure4,
}
# The wildcards that a step's settings depend on.
WILDCARDS: dict[str, tuple[str, ...]] = {
    "classifier": ("model",),
    "statistics": ("model",),
    "bottleneck": ("model",),
    "guide": ("model", "variant"),
    "maps": ("model", "variant", "group"),
    "scores": ("model",),
    "effect": ("model",),
    "deletion": ("model",),
    "table": ("number",),
    "figure": ("number",),
}


def step_of(config: Config, name: str, **where: Any) -> Step:
    """The settings of a job of the step ``name``; ``where`` holds its wildcards."""
    model = where.get("model")
    return STEPS[name].from_config(config.for_model(model) if model else config, **where)
