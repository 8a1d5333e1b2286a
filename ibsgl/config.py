"""The config: one schema, checked before any job starts, and the part of it that each step depends on.

``config/README.md`` explains every key. A step is given exactly the settings that its result depends on
(:meth:`Config.settings`), as the rule's params and on its command line alike, so that editing a value re-runs what depends on
it and nothing else.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]

# Methods that the harness itself adds to every table; the config lists the others.
OWN_METHODS = ("gradient", "bottleneck")
CONTROL_METHODS = ("center", "random", "oracle")
NETWORKS = ("pretrained", "control", "guided")


# Folders of results/<name> beside those of the models.
_FOLDERS = {"benchmarks", "data", "figures", "logs", "records", "tables"}


class ConfigError(ValueError):
    """The config cannot be used; the message is one line naming the key."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers_are_reals(cls, values: Any) -> Any:
        # YAML reads 1000 as an int and 1e-3 (no dot) as a string; both are plain numbers to whoever wrote them.
        if not isinstance(values, Mapping):
            return values
        reals = {n for n, f in cls.model_fields.items() if "float" in str(f.annotation)}
        fixed = dict(values)
        for key in reals & fixed.keys():
            value = fixed[key]
            if isinstance(value, str):
                try:
                    fixed[key] = float(value)
                except ValueError:
                    continue
            elif isinstance(value, int) and not isinstance(value, bool):
                fixed[key] = float(value)
        return fixed


class Splits(_Section):
    """Names of the files in ImageSets/Main, without .txt."""

    train: str = "trainval"
    test: str = "test"


class Shapes(_Section):
    """The built-in data set."""

    trainval: Positive = 960
    test: Positive = 96
    size: Annotated[int, Field(ge=32)] = 96
    tied: Annotated[float, Field(ge=0, le=1)] = 0.5


class Archive(_Section):
    """One tar file, as it must be."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    bytes: Positive


class Download(_Section):
    """Where a data set in VOC layout is fetched from if its folder is not there."""

    mirrors: Annotated[list[str], Field(min_length=1)]
    folder: str = "data"
    archives: Annotated[list[Archive], Field(min_length=1)]
    images: dict[str, Positive]


class ImageNet(_Section):
    """Images per class of ILSVRC 2012 that are used; ``None``: all."""

    train: Positive = 10
    test: Positive | None = None


class Data(_Section):
    """Where the images come from and how they are read."""

    source: Literal["shapes", "voc", "imagenet"] = "shapes"
    root: str | None = None
    shapes: Shapes = Shapes()
    imagenet: ImageNet = ImageNet()
    splits: Splits = Splits()
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    difficult: Literal["keep", "drop"] = "keep"
    multilabel: bool = False
    download: Download | None = None

    @model_validator(mode="after")
    def _download_goes_with_voc(self) -> Data:
        if self.download and self.source != "voc":
            raise ValueError("download: only data in VOC layout can be fetched; remove the key or set source: voc")
        for split in (self.splits.train, self.splits.test) if self.download else ():
            if split not in self.download.images:
                raise ValueError(f"download.images: say how many images the list {split!r} has")
        return self

    @model_validator(mode="after")
    def _root_goes_with_source(self) -> Data:
        if self.source == "voc" and not self.root:
            raise ValueError("root: give the folder that holds JPEGImages, Annotations and ImageSets")
        if self.source == "shapes" and self.root:
            raise ValueError("root: the built-in data set has its own place; remove the key or set source: voc")
        if self.source == "imagenet":
            if not self.root:
                raise ValueError("root: give the folder that holds ImageNet's train and val")
            if self.multilabel:
                raise ValueError("multilabel: ImageNet has one class an image; set it to false")
            if self.classes is not None:
                raise ValueError("classes: ImageNet's are its synsets, in order; remove the key")
        return self


class Model(_Section):
    """One network to explain."""

    arch: str
    source: Literal["torchvision", "torchray"] = "torchvision"
    weights: str | None = None
    options: dict[str, Any] = {}
    image_size: Annotated[int, Field(ge=16)] = 224
    override: dict[str, Any] = {}


class Training(_Section):
    """Optimiser and schedule."""

    optimizer: Literal["adamw", "sgd"] = "sgd"
    lr: PositiveReal = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "one_cycle"] = "constant"
    epochs: Positive = 3
    batch_size: Positive = 16


class Classifier(Training):
    """Training of the classifier; no epochs: the network is explained as it is."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "one_cycle"] = "one_cycle"
    epochs: Annotated[int, Field(ge=0)] = 8


class Bottleneck(_Section):
    """Information-bottleneck attribution (Eq. 4–9)."""

    alpha: NonNegative = 1000.0
    gamma: Annotated[float, Field(allow_inf_nan=False)] = 5.0
    sigma: NonNegative = 1.0
    steps: Positive = 10
    lr: PositiveReal = 1.0
    samples: Positive = 10
    reduction: Literal["mean", "reference", "sum"] = "mean"


class Suppression(_Section):
    """Saliency suppression (Eq. 1)."""

    r: Fraction = 0.35
    beta: NonNegative = 1.0
    when: Literal["always", "misclassified", "correct", "never"] = "always"


class Divergence(_Section):
    """D_KL(A ‖ A') of Eq. 11."""

    normalise: Literal["softmax", "sum"] = "softmax"
    reduction: Literal["sum", "mean"] = "mean"


class Guidance(_Section):
    """Guided training (Eq. 10–11, Algorithm 1)."""

    mode: Literal["feature", "end_to_end"] = "feature"
    bottleneck_network: Literal["pretrained", "current"] = "pretrained"
    cross_entropy: Literal["distribution", "binary"] = "distribution"
    mu: NonNegative = 2.0
    step: Literal["relative", "absolute"] = "relative"
    step_size: PositiveReal = 0.05
    steps: Positive = 5
    divergence: Divergence = Divergence()
    training: Training = Training()


class MIoU(_Section):
    """Threshold of mIoU."""

    mode: Literal["quantile", "value"] = "quantile"
    top: ProperFraction = 0.2


class Kept(_Section):
    """The image that Average Drop and Average Increase show to the network."""

    mode: Literal["top", "scale"] = "top"
    top: ProperFraction = 0.15
    fill: Literal["black", "mean"] = "black"


class Metrics(_Section):
    """Variants of the metrics."""

    region: Literal["boxes", "segmentation"] = "boxes"
    miou: MIoU = MIoU()
    bbox: Literal["strict", "index"] = "strict"
    kept: Kept = Kept()
    average_drop: Literal["relative", "absolute"] = "relative"


class Tables(_Section):
    """How scores become figures."""

    average: Literal["pairs", "classes"] = "pairs"
    resamples: Annotated[int, Field(ge=100)] = 10000


class Deletion(_Section):
    """Figure 4."""

    points: Annotated[int, Field(ge=2)] = 11
    repeats: Positive = 5
    fill: Literal["black", "mean"] = "black"


class Figures(_Section):
    """Figures 2 and 3."""

    examples: Positive = 4


class Config(_Section):
    """A whole run. See ``config/README.md``."""

    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive = 1
    shard_size: Positive = 512
    batch_size: Positive = 32
    data: Data = Data()
    models: dict[Name, Model]
    classifier: Classifier = Classifier()
    bottleneck: Bottleneck = Bottleneck()
    suppression: Suppression = Suppression()
    guidance: Guidance = Guidance()
    methods: dict[Name, dict[str, Any]]
    metrics: Metrics = Metrics()
    deletion: Deletion = Deletion()
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
    def _harness_methods_are_not_listed(cls, methods: dict[str, Any]) -> dict[str, Any]:
        for name in (*OWN_METHODS, *CONTROL_METHODS):
            if name in methods:
                raise ValueError(f"{name} is in every table anyway; remove it here")
        return methods

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_settings(cls, methods: Any) -> Any:
        # `gradcam:` with nothing after it reads as null.
        if not isinstance(methods, Mapping):
            return methods
        return {name: {} if settings is None else settings for name, settings in methods.items()}

    def for_model(self, model: str) -> Config:
        """This config with ``models.<model>.override`` merged in."""
        override = self.models[model].override
        for key in override:
            if key not in _OVERRIDABLE:
                raise ConfigError(f"models.{model}.override.{key}: only {', '.join(_OVERRIDABLE)} can be overridden")
        return parse(merge(self.model_dump(), override), f"models.{model}.override.") if override else self

    def network(self, model: str) -> dict[str, Any]:
        """What it takes to build network ``model``."""
        return self.network_section(model) | {"multilabel": self.data.multilabel}

    def network_section(self, model: str) -> dict[str, Any]:
        """``models.<model>`` without its overrides, which have been merged in."""
        return self.models[model].model_dump(exclude={"override"})

    @property
    def data_root(self) -> str:
        """The VOC-layout folder."""
        return self.data.root or f"results/{self.name}/data/VOCdevkit/VOC2007"

    def settings(self, step: str, **where: Any) -> str:
        """The settings that a job of ``step`` depends on, as canonical JSON.

        ``where`` holds the job's wildcards: ``model``, ``network`` (pretrained, control, guided), ``group``, ``number``.
        """
        model = where.get("model")
        config = self.for_model(model) if model else self
        part = _STEPS[step](config, **where)
        return json.dumps(part, sort_keys=True, ensure_ascii=False)

    def method_settings(self, method: str) -> dict[str, Any]:
        """Settings of a saliency method, whether the config lists it or the harness adds it."""
        if method == "bottleneck":
            return self.bottleneck.model_dump()
        return self.methods.get(method, {})

    def comparable_settings(self, model: str) -> dict[str, Any]:
        """This run's side of ``results/published/settings.yaml``, with every method's defaults filled in."""
        from dataclasses import asdict, is_dataclass

        from ibsgl import attribution

        methods = {name: attribution.get(name, **settings) for name, settings in self.methods.items()}
        spec = self.models[model]
        return {
            "split": self.data.splits.test,
            "image_size": spec.image_size,
            "arch": spec.arch,
            "r": self.suppression.r,
            "beta": self.suppression.beta,
            "mu": self.guidance.mu,
            "when": self.suppression.when,
            "difficult": self.data.difficult,
            "average": self.tables.average,
            "metrics": self.metrics.model_dump(),
            "alpha": self.bottleneck.alpha,
            "gamma": self.bottleneck.gamma,
            "sigma": self.bottleneck.sigma,
            # As YAML would hold them: tuples are lists there.
            **{
                name: json.loads(json.dumps(asdict(method))) for name, method in methods.items() if is_dataclass(method)
            },
        }

    def variants(self, model: str) -> list[str]:
        """The variants in force of every metric and of the guidance, a line each, for under a table."""
        metrics, guidance = self.metrics, self.guidance
        miou = {
            "quantile": f"the top {metrics.miou.top:g} of the pixels, strictly above the quantile",
            "value": "values above half of the map's range",
        }[metrics.miou.mode]
        kept = {
            "top": f"the top {metrics.kept.top:g} of the pixels kept, the rest {metrics.kept.fill}",
            "scale": f"the image times the map scaled to [0, 1], on {metrics.kept.fill}",
        }[metrics.kept.mode]
        bbox = {"strict": "strictly above the N-th value", "index": "exactly N pixels, ties by index"}[metrics.bbox]
        from ibsgl.network import TORCHVISION_NETWORKS

        network = self.models[model]
        whose = f", {network.source}'s" if network.arch in TORCHVISION_NETWORKS else ""
        return [
            f"Network: {network.arch}{whose}. The published baseline figures are of TorchRay's networks.",
            f"Region: the class's {metrics.region}, difficult objects: {self.data.difficult}. "
            f"mIoU: {miou}. Bbox: {bbox}.",
            f"AD and AI: {kept}; {metrics.average_drop} drop.",
            f"Guidance: {guidance.mode}, {guidance.steps} {guidance.step} step(s) of {guidance.step_size:g}, "
            f"D_KL {guidance.divergence.normalise}, {guidance.divergence.reduction} over channels, "
            f"{guidance.training.epochs} epochs of {guidance.training.optimizer} at {guidance.training.lr:g}; "
            f"suppression {self.suppression.when}; bottleneck reduction {self.bottleneck.reduction}.",
        ]

    @property
    def shards(self) -> int:
        """How many pieces the test images are cut into, of ``shard_size`` images at most."""
        return math.ceil(self.test_images / self.shard_size)

    @property
    def test_images(self) -> int:
        """How many images the test split lists; those that show no object are left out later."""
        if self.data.source == "shapes":
            return self.data.shapes.test
        if self.data.source == "imagenet":
            # Of 1000 classes with 50 images each; fewer leave a shard small or empty, which does no harm.
            return 1000 * (self.data.imagenet.test or 50)
        listed = Path(self.data_root, "ImageSets", "Main", f"{self.data.splits.test}.txt")
        if not listed.is_file() and self.data.download:
            return self.data.download.images[self.data.splits.test]
        # What is wrong with a list that is missing or empty is the index's to say.
        return max(1, len(listed.read_text().split()) if listed.is_file() else 1)

    def groups(self, network: str) -> dict[str, list[str]]:
        """The methods that the tables need on ``network``, by the job that makes their maps.

        A method has a job of its own, so that its settings re-run nothing else, unless it is light: those share one,
        whose start would cost more than any of them, and its passes.
        """
        from ibsgl import attribution

        groups: dict[str, list[str]] = {}
        for where, method in self.cells():
            if where == network:
                groups.setdefault("light" if attribution.is_light(method) else method, []).append(method)
        return groups

    def cells(self) -> list[tuple[str, str]]:
        """Every (network, method) that a table of this config needs, in the tables' order."""
        return [
            *(("pretrained", method) for method in self.methods),
            ("guided", "gradient"),
            ("pretrained", "gradient"),
            ("control", "gradient"),
            ("pretrained", "bottleneck"),
            *(("guided", method) for method in self.methods),
            *(("pretrained", method) for method in CONTROL_METHODS),
        ]

    def check(self, data: bool = True) -> Config:
        """Everything that a schema cannot see: networks, methods, their settings, with ``data`` its folder and files too.

        Raises :class:`ConfigError`.
        """
        from ibsgl import attribution
        from ibsgl.network import check_arch, check_options, is_torchvision_weights

        for name, model in self.models.items():
            try:
                check_arch(model.arch)
            except ValueError as error:
                raise ConfigError(f"models.{name}.arch: {error}") from error
            named = is_torchvision_weights(model.weights)
            if data and model.weights is not None and not named and not Path(model.weights).is_file():
                raise ConfigError(f"models.{name}.weights: there is no file {model.weights!r}")
            if model.source == "torchray":
                if model.weights is None:
                    raise ConfigError(f"models.{name}.weights: give the file of TorchRay's network")
                if not self.data.multilabel:
                    raise ConfigError("data.multilabel: TorchRay's networks are multi-label; set it to true")
            try:
                check_options(model.arch, model.weights, model.options, model.source)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"models.{name}: {error}") from error
            resolved = self.for_model(name)
            for method, settings in resolved.methods.items():
                try:
                    attribution.get(method, **settings)
                except (ValueError, TypeError) as error:
                    raise ConfigError(f"methods.{method}: {error}") from error
            if set(resolved.methods) != set(self.methods):
                raise ConfigError(f"models.{name}.override.methods: may change settings, not add methods")
        if data and self.data.source != "shapes" and not self.data.download and not Path(self.data_root).is_dir():
            hint = "; give data.download to have it fetched" if self.data.source == "voc" else ""
            raise ConfigError(f"data.root: there is no folder {self.data_root!r}{hint}")
        return self


_OVERRIDABLE = ("classifier", "bottleneck", "suppression", "guidance", "methods")


def _data(config: Config, **_: Any) -> dict[str, Any]:
    return {"seed": config.seed, "shapes": config.data.shapes.model_dump()}


def _fetch(config: Config, **_: Any) -> dict[str, Any]:
    # Wherever an archive comes from, it is the same file.
    return {"archives": config.data.download.model_dump()["archives"] if config.data.download else []}


def _index(config: Config, **_: Any) -> dict[str, Any]:
    if config.data.source == "imagenet":
        return {"seed": config.seed} | config.data.model_dump(include={"imagenet", "held_out"})
    return {"seed": config.seed} | config.data.model_dump(include={"splits", "classes", "held_out", "difficult"})


def _classifier(config: Config, model: str, **_: Any) -> dict[str, Any]:
    return {"seed": config.seed, "network": config.network(model), "training": config.classifier.model_dump()}


def _statistics(config: Config, model: str, **_: Any) -> dict[str, Any]:
    return {"network": config.network(model)}


def _bottleneck(config: Config, model: str, **_: Any) -> dict[str, Any]:
    return {"seed": config.seed, "network": config.network(model), "bottleneck": config.bottleneck.model_dump()}


def _guide(config: Config, model: str, network: str, **_: Any) -> dict[str, Any]:
    part = {"seed": config.seed, "network": config.network(model), "training": config.guidance.training.model_dump()}
    if network == "control":
        return part
    part |= {"guidance": config.guidance.model_dump(exclude={"training"})}
    part |= {"suppression": config.suppression.model_dump()}
    if config.guidance.bottleneck_network == "current":
        part |= {"bottleneck": config.bottleneck.model_dump()}
    return part


def _maps(config: Config, model: str, network: str, group: str, **_: Any) -> dict[str, Any]:
    if group not in (groups := config.groups(network)):
        raise ConfigError(f"there is no group {group!r} on {network}; take one of {', '.join(groups)}")
    return {
        "seed": config.seed,
        "network": config.network(model),
        "methods": {method: config.method_settings(method) for method in groups[group]},
        "shards": config.shards,
    }


def _scores(config: Config, model: str, **_: Any) -> dict[str, Any]:
    return {"network": config.network(model), "metrics": config.metrics.model_dump(), "shards": config.shards}


def _effect(config: Config, model: str, **_: Any) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "network": config.network(model),
        "r": config.suppression.r,
        "cross_entropy": config.guidance.cross_entropy,
        "resamples": config.tables.resamples,
    }


def _deletion(config: Config, model: str, **_: Any) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "network": config.network(model),
        "r": config.suppression.r,
        "deletion": config.deletion.model_dump(),
        "shards": config.shards,
    }


def _table(config: Config, number: int, **_: Any) -> dict[str, Any]:
    model = list(config.models)[(int(number) - 1) % 2]
    resolved = config.for_model(model)
    left_out = {"device", "threads", "shard_size", "batch_size", "figures", "deletion"}
    whole = resolved.model_dump(exclude=dict.fromkeys(left_out | {"models"}, True) | {"data": {"download"}})
    return {
        "number": int(number),
        "model": model,
        "config": whole | {"models": {model: resolved.network_section(model)}},
    }


def _figure(config: Config, number: int, **_: Any) -> dict[str, Any]:
    part = {"number": int(number), "seed": config.seed, "networks": {m: config.network(m) for m in config.models}}
    # Figure 3 shows no L_SS and deletes nothing: it depends on no r.
    if int(number) != 3:
        part["suppressions"] = {m: {"r": config.for_model(m).suppression.r} for m in config.models}
    if int(number) == 4:
        return part | {"deletion": config.deletion.model_dump(), "resamples": config.tables.resamples}
    return part | {"figures": config.figures.model_dump()}


_STEPS = {
    "data": _data,
    "fetch": _fetch,
    "index": _index,
    "classifier": _classifier,
    "statistics": _statistics,
    "bottleneck": _bottleneck,
    "guide": _guide,
    "maps": _maps,
    "scores": _scores,
    "effect": _effect,
    "deletion": _deletion,
    "table": _table,
    "figure": _figure,
}


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``override`` on top, key by key at every level; lists are replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse(values: Mapping[str, Any], where: str = "") -> Config:
    """The schema's half of :func:`load`: keys, types and ranges; ``where`` goes before the key in the message."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # A misspelt key usually also leaves its right name missing: say the misspelling.
        first, *others = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        key = where + ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            reason = "there is no such key"
        elif first["type"] == "missing":
            reason = "this key is missing"
        else:
            reason = first["msg"].removeprefix("Value error, ")
            if not isinstance(first["input"], Mapping):
                reason += f" (it is {first['input']!r})"
        more = f" (and {len(others)} more problems)" if others else ""
        raise ConfigError(f"{key}: {reason}{more}") from None


def load(values: Mapping[str, Any], data: bool = True) -> Config:
    """Validate ``values`` (a parsed YAML file, or Snakemake's ``config``); :class:`ConfigError` names the first bad key.

    Without ``data`` its folder may be missing.
    """
    return parse(values).check(data)
