"""What each step of the workflow depends on: one frozen model per step.

A rule's ``params``, the command's ``--settings`` and the digest of a training checkpoint are all made from the same model. So
editing a value or a module re-runs what depends on it, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ibsgl import attribution
from ibsgl.bottleneck import Bottleneck
from ibsgl.config.passes import Compile
from ibsgl.config.schema import Config, Figures, describe
from ibsgl.data.download import Archive
from ibsgl.data.sources import AnySource
from ibsgl.errors import ConfigError
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.guidance.registry import LOSSES, NO_LOSS, NO_TEACHER, PAPER, TEACHERS
from ibsgl.guidance.settings import PAPER_KEYS, GuidanceSettings
from ibsgl.metrics import METRICS, MetricSettings, further
from ibsgl.networks.passes import Precision
from ibsgl.networks.registry import NetworkSettings
from ibsgl.randomness import derive_seed
from ibsgl.settings import Positive, Settings
from ibsgl.source_code import source_digest
from ibsgl.suppression import SuppressionSettings
from ibsgl.training.settings import ClassifierSettings, TrainingSettings
from ibsgl.training.variants import PRETRAINED

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
        """The settings of a job. ``where`` holds its wildcards: those of :data:`WILDCARDS`."""
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


class _TrainingStep(_NetworkStep, ABC):
    seed: int
    replicate: int

    @property
    def training_seed(self) -> int:
        """The seed of the weights and of the order of the images. Every other draw comes from ``seed``."""
        return derive_seed(self.seed, "replicate", self.replicate)


class Classifier(_TrainingStep):
    """Training the classifier."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.training.classifier", "ibsgl.training.scores")
    training: ClassifierSettings

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"replicate": int(where["replicate"]), "training": config.classifier.model_dump()}


class BottleneckMaps(_NetworkStep):
    """Feature statistics of the pretrained variant, and L^ib of the training and held-out pairs."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.precompute",)
    seed: int
    bottleneck: Bottleneck

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"bottleneck": config.bottleneck.model_dump()}


class Guide(_TrainingStep):
    """Training of a variant from the pretrained one: with guidance, or as the control without."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.training.guided", "ibsgl.training.scores")
    training: TrainingSettings
    # ``None``: nothing is added to the loss.
    guidance: GuidanceSettings | None = None
    suppression: SuppressionSettings | None = None
    # Only where L^ib is computed as training goes.
    bottleneck: Bottleneck | None = None

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        paper = self.guidance is not None and self.guidance.loss == PAPER
        current = self.guidance is not None and self.guidance.bottleneck_of == "current"
        for key, needed in {"suppression": paper, "bottleneck": current}.items():
            if needed != (getattr(self, key) is not None):
                raise ValueError(f"{key}: this training {'needs this key' if needed else 'has no such key'}")
        return self

    @property
    def bottleneck_of(self) -> Literal["pretrained", "current"] | None:
        """The network whose L^ib the training needs: made before, or computed as it goes."""
        return None if self.guidance is None else self.guidance.bottleneck_of

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        guidance = config.guidance_of(where["variant"])
        part: dict[str, Any] = {
            "replicate": int(where["replicate"]),
            "training": config.guidance.training.model_dump(),
        }
        if guidance.loss == PAPER:
            part |= {"guidance": guidance.model_dump(), "suppression": config.suppression.model_dump()}
        elif guidance.loss != NO_LOSS:
            # With its defaults: that a config writes one of them changes nothing.
            part |= {"guidance": guidance.model_dump(exclude=set(PAPER_KEYS)) | {"settings": guidance.loss_settings}}
        if guidance.bottleneck_of == "current":
            part |= {"bottleneck": config.bottleneck.model_dump()}
        return part

    def modules(self) -> tuple[str, ...]:
        """With those of the loss and of the teacher."""
        own = []
        if self.guidance is not None:
            own.append(LOSSES.module_of(self.guidance.loss))
            if self.guidance.takes_a_map and self.guidance.teacher != NO_TEACHER:
                own.append(TEACHERS.module_of(self.guidance.teacher))
        return (*super().modules(), *own)


class Maps(_NetworkStep):
    """Saliency maps of one method of many passes on one variant."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.maps", "ibsgl.attribution.storage")
    seed: int
    methods: dict[str, dict[str, Any]]
    # By distribution, the version of the library that computes the maps. Without one there is no such key.
    libraries: dict[str, str] = Field({})
    # Only if the method's passes depend on them.
    precision: Precision = "float32"
    compile: Compile = "off"
    shards: Positive

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        variant, method = where["variant"], where["method"]
        methods = config.heavy_methods(variant, int(where["replicate"]))
        if method not in methods:
            known = ", ".join(methods) or "none"
            raise ConfigError(f"there is no job for the maps of {method!r} on {variant}; there are: {known}")
        settings = _without_label(config, method)
        part = {"methods": {method: settings}, "shards": config.shards} | _libraries(config, [method])
        return part | _pass_settings(config, method)

    def modules(self) -> tuple[str, ...]:
        """With the methods' own."""
        return (*super().modules(), *(_module_of(*row) for row in self.methods.items()))


class LightMaps(Maps):
    """Saliency maps of all methods of one pass on one variant, stored for further metrics."""

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        methods = config.light_methods(where["variant"])
        part = {"methods": {method: _without_label(config, method) for method in methods}, "shards": config.shards}
        return part | _libraries(config, methods)


class Metric(_NetworkStep):
    """One further metric of all stored maps of one variant."""

    entry: ClassVar[tuple[str, ...]] = (
        *("ibsgl.evaluation.further", "ibsgl.attribution.storage", "ibsgl.reporting.metric_files"),
    )
    seed: int
    metric: str
    settings: dict[str, Any]
    # Of the library that computes the metric.
    version: str = ""
    # Only if the metric calls them again: by name, the settings of the variant's methods.
    methods: dict[str, dict[str, Any]] | None = None
    # By name, that of the methods' passes.
    precisions: dict[str, Precision] = Field({})
    shards: Positive

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        use, settings, _ = config.further_metric(where["metric"])
        metric = further.get(use, **settings)
        # What only the table reads does not change the values.
        own = {key: value for key, value in settings.items() if key not in getattr(metric, "for_tables", ())}
        part: dict[str, Any] = {"metric": use, "settings": own, "shards": config.shards}
        if hasattr(metric, "version"):
            part |= {"version": metric.version()}
        if metric.requires == "method":
            methods = config.methods_of(where["variant"], int(where["replicate"]))
            part |= {"methods": {method: _without_label(config, method) for method in methods}}
            part |= {"precisions": {method: config.precision_of(method) for method in methods}}
        return part

    def modules(self) -> tuple[str, ...]:
        """With the metric's own, and the methods'."""
        methods = (_module_of(*row) for row in (self.methods or {}).items())
        return (*super().modules(), further.module_of(self.metric), *methods)


class _LightMethodsStep(_NetworkStep, ABC):
    # By variant and name, the settings of the methods whose maps are made here.
    methods: dict[str, dict[str, dict[str, Any]]]
    # By name, the labels that the config gives to the other methods.
    labels: dict[str, str] = Field({})
    # By distribution, the version of the library that computes maps. Without one there is no such key.
    libraries: dict[str, str] = Field({})

    def modules(self) -> tuple[str, ...]:
        """With the methods' own."""
        methods = {_module_of(*row) for methods in self.methods.values() for row in methods.items()}
        return (*super().modules(), *sorted(methods))


class Evaluate(_LightMethodsStep):
    """What is measured on all variants of one replicate: maps of few passes, all scores, losses, deletion curves."""

    # The modules of the metrics, and not their package: it has the further metrics too.
    entry: ClassVar[tuple[str, ...]] = (
        *("ibsgl.evaluation.variants", "ibsgl.evaluation.held_out", "ibsgl.reporting.score_files"),
        *("ibsgl.training.variants", *sorted({metric.__module__ for metric in METRICS.values()})),
    )
    seed: int
    metrics: MetricSettings
    deletion: DeletionSettings
    r: float
    cross_entropy: str
    shards: Positive

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {
            **_light_methods(config),
            "metrics": config.metrics.model_dump(),
            "deletion": config.deletion.model_dump(),
            "r": config.suppression.r,
            "cross_entropy": config.guidance.cross_entropy,
            "shards": config.shards,
        }


class _ConfigStep(Step, ABC):
    """A step that compares nearly all of the config with the published settings."""

    config: dict[str, Any]

    def resolved(self) -> Config:
        """The part of the config that the step depends on."""
        return Config.model_validate(self.config)


# Keys of the machine, and all keys that change no value of a table.
_MACHINE = {"device", "threads", "shard_size", "batch_size"}
_NO_VALUES = _MACHINE | {"figures", "report", "alternatives", "further_metrics"}


def _config_values(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=dict.fromkeys(_NO_VALUES, True) | {"data": {"download"}})


class Tables(_ConfigStep):
    """The tables of one network: two of Tables 1–4, the comparisons of its variants, classification, diagnostics."""

    entry: ClassVar[tuple[str, ...]] = (
        *("ibsgl.reporting.measurements", "ibsgl.reporting.tables", "ibsgl.reporting.comparisons"),
        *("ibsgl.reporting.classification", "ibsgl.reporting.notes", "ibsgl.reporting.formats"),
    )
    model: str

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        model = where["model"]
        values = _config_values(config.for_model(model))
        return {"model": model, "config": values}


# Their order is that of the table's columns and lines.
_ORDERED = ("further_metrics", "methods")


class Metrics(_ConfigStep):
    """The further metrics of one network: the table, and how far their rankings agree.

    JSON sorts the keys, and the table has columns and lines in the order of the config. So the order is a field.
    """

    entry: ClassVar[tuple[str, ...]] = (
        *("ibsgl.reporting.metric_table", "ibsgl.reporting.metric_files", "ibsgl.reporting.measurements"),
        *("ibsgl.reporting.formats", "ibsgl.reporting.figures", "ibsgl.reporting.notes"),
    )
    model: str
    # By key of the config.
    order: dict[str, list[str]]

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        model = where["model"]
        own = config.for_model(model)
        values = _config_values(own) | {"further_metrics": own.further_metrics}
        return {"model": model, "config": values, "order": {key: list(getattr(own, key)) for key in _ORDERED}}

    def resolved(self) -> Config:
        """The part of the config that the step depends on, with the rows in their order."""
        rows = {key: {name: self.config[key][name] for name in self.order[key]} for key in _ORDERED}
        return Config.model_validate(self.config | rows)

    @model_validator(mode="after")
    def _order_is_that_of_the_rows(self) -> Self:
        for key in _ORDERED:
            if sorted(self.order.get(key, ())) != sorted(self.config.get(key) or ()):
                raise ValueError(f"order.{key}: this has each name of config.{key} once")
        return self

    def modules(self) -> tuple[str, ...]:
        """With those of the metrics, which have labels and directions."""
        config = self.resolved()
        return (*self.entry, *(further.module_of(config.further_metric(row).use) for row in config.further_metrics))


class Claims(_ConfigStep):
    """The verdicts on the paper's claims, on all networks of the run."""

    entry: ClassVar[tuple[str, ...]] = (
        "ibsgl.reporting.claims",
        "ibsgl.reporting.claim_texts",
        "ibsgl.reporting.tables",
    )

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"config": _config_values(config)}


class Sensitivity(_ConfigStep):
    """The change of the effects behind the claims with every alternative."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.reporting.sensitivity", "ibsgl.reporting.figures")

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {"config": _config_values(config) | {"alternatives": config.alternatives}}


class _FigureStep(Step, ABC):
    networks: dict[str, NetworkSettings]

    def settings_of(self, model: str) -> NetworkSettings:
        """The network ``model``, a name that was read from a file's path; ``ValueError`` if there is none."""
        if model not in self.networks:
            raise ValueError(f"networks: a file is of the model {model!r}, not of {', '.join(self.networks)}")
        return self.networks[model]


class Figure(_FigureStep):
    """Figure 2 or 3."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.reporting.figures", *_NETWORK)
    seed: int
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

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {
            "networks": {model: config.network(model).model_dump() for model in config.models},
            "r": _r_of_models(config),
            "deletion": config.deletion.model_dump(),
        }


class Thumbnails(_LightMethodsStep):
    """The pictures of the report's map browser, of the first replicate of one network."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.reporting.page.thumbnails",)
    seed: int
    shards: Positive
    images: int

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        return {
            **_light_methods(config),
            "shards": config.shards,
            "images": config.report.images,
        }


class Report(_ConfigStep):
    """The report: what a run has found, as a page."""

    entry: ClassVar[tuple[str, ...]] = ("ibsgl.reporting.page", "ibsgl.reporting.figures")

    @staticmethod
    def _values(config: Config, **where: Any) -> dict[str, Any]:
        # The page offers the config for another run. Where that runs is no part of it.
        return {"config": config.model_dump(mode="json", exclude=_MACHINE)}

    def code(self) -> str:
        """With the page's template, styles and scripts."""
        templates = files("ibsgl") / "reporting" / "page" / "templates"
        texts = {file.name: file.read_bytes() for file in templates.iterdir() if file.is_file()}
        digest = hashlib.sha256(super().code().encode())
        for name in sorted(texts):
            digest.update(f"{name}\0{len(texts[name])}\n".encode() + texts[name])
        return digest.hexdigest()[:16]


def _light_methods(config: Config) -> dict[str, Any]:
    """By variant and name, the settings of the methods that have no job of their own; labels of the others, if any."""
    methods = {
        variant: {method: config.method_settings(method) for method in config.light_methods(variant)}
        for variant in config.variant_names
    }
    labels = {
        method: settings[attribution.LABEL]
        for method, settings in config.methods.items()
        if attribution.LABEL in settings and not config.is_light(method)
    }
    used = {method for of_variant in methods.values() for method in of_variant}
    return {"methods": methods} | ({"labels": labels} if labels else {}) | _libraries(config, used)


def _libraries(config: Config, methods: Iterable[str]) -> dict[str, Any]:
    """By distribution, the versions of the libraries that compute the maps of ``methods``; no key without any."""
    found: dict[str, str] = {}
    for method in methods:
        found |= attribution.library_versions(attribution.method_of(method, config.method_settings(method)))
    return {"libraries": found} if found else {}


def _pass_settings(config: Config, method: str) -> dict[str, Any]:
    """Precision and compiler, if the passes of the row ``method`` depend on them; otherwise no keys."""
    mixed = attribution.mixed_cost(method, config.method_settings(method))
    return {"precision": config.precision_of(method), "compile": config.passes.compile} if mixed else {}


def _without_label(config: Config, method: str) -> dict[str, Any]:
    """The settings that the maps of a row depend on: not its name in tables, which is given where they are read."""
    return {key: value for key, value in config.method_settings(method).items() if key != attribution.LABEL}


def _module_of(method: str, settings: Mapping[str, Any]) -> str:
    """The module of what computes a row's maps."""
    return attribution.module_of(attribution.method_of(method, settings))


def _r_of_models(config: Config) -> dict[str, float]:
    return {model: config.for_model(model).suppression.r for model in config.models}


# By the name of the command.
STEPS: dict[str, type[Step]] = {
    "data": Data,
    "fetch": Fetch,
    "index": Index,
    "classifier": Classifier,
    "bottleneck": BottleneckMaps,
    "guide": Guide,
    "maps": Maps,
    "evaluate": Evaluate,
    "lightmaps": LightMaps,
    "metric": Metric,
    "tables": Tables,
    "metrics": Metrics,
    "claims": Claims,
    "sensitivity": Sensitivity,
    "figure": Figure,
    "figure4": Figure4,
    "thumbnails": Thumbnails,
    "report": Report,
}
# The wildcards that a step's settings depend on.
WILDCARDS: dict[str, tuple[str, ...]] = {
    "classifier": ("model", "replicate"),
    "bottleneck": ("model",),
    "guide": ("model", "replicate", "variant"),
    "maps": ("model", "replicate", "variant", "method"),
    "evaluate": ("model",),
    "lightmaps": ("model", "variant"),
    "metric": ("model", "replicate", "variant", "metric"),
    "tables": ("model",),
    "metrics": ("model",),
    "figure": ("number",),
    "thumbnails": ("model",),
}


def step_of(config: Config, name: str, **where: Any) -> Step:
    """The settings of a job of the step ``name``; ``where`` holds its wildcards."""
    model = where.get("model")
    return STEPS[name].from_config(config.for_model(model) if model else config, **where)


def lineage(config: Config, name: str, **where: Any) -> tuple[str, ...]:
    """The settings of the job of the step ``name``, and of every job that it depends on.

    Jobs of two configs with the same lineage have the same result, so that one of them is enough.

    Args:
        config: of the run.
        name: ``index``, ``classifier``, ``bottleneck``, ``guide``, ``maps`` or ``evaluate``.
        where: the job's wildcards. The job ``guide`` of the pretrained variant is its classifier.
    """
    own = {key: where[key] for key in WILDCARDS.get(name, ()) if key in where}
    if name == "index":
        return (step_of(config, "data").to_json(), step_of(config, "index").to_json())
    if name == "guide" and where["variant"] == PRETRAINED:
        return lineage(config, "classifier", **where)
    settings = step_of(config, name, **own).to_json()
    if name == "classifier":
        return (settings, *lineage(config, "index"))
    if name == "bottleneck":
        return (settings, *lineage(config, "classifier", **where))
    if name == "guide":
        needs = Guide.parse(settings).bottleneck_of
        return (settings, *lineage(config, "bottleneck" if needs else "classifier", **where))
    if name == "maps":
        return (settings, *lineage(config, "guide", **where))
    networks = [
        part
        for variant in config.variant_names
        for part in (
            *lineage(config, "guide", **(where | {"variant": variant})),
            *(
                part
                for method in config.heavy_methods(variant, int(where["replicate"]))
                for part in lineage(config, "maps", **(where | {"variant": variant, "method": method}))
            ),
        )
    ]
    return (settings, *lineage(config, "bottleneck", **where), *networks)
