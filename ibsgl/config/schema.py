"""The config as one typed object: its keys, their types, ranges and defaults.

Each room defines the settings of what it does; here they are put together. ``config/README.md`` lists every key with the
descriptions from here.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from ibsgl import attribution
from ibsgl.bottleneck import Bottleneck
from ibsgl.config.passes import AUTO, Compile, PassSettings, PrecisionSetting, pass_settings
from ibsgl.data.sources import DEFAULT, SOURCES, AnySource
from ibsgl.errors import ConfigError
from ibsgl.evaluation.settings import DeletionSettings
from ibsgl.guidance.registry import NO_LOSS, NO_TEACHER, PAPER, TEACHERS, teacher_requires
from ibsgl.guidance.settings import GuidanceSettings
from ibsgl.metrics import METRICS, MetricSettings
from ibsgl.networks.passes import Precision
from ibsgl.networks.registry import NetworkSettings
from ibsgl.redaction import redacted
from ibsgl.registry import SettingError
from ibsgl.settings import Positive, Settings
from ibsgl.suppression import SuppressionSettings
from ibsgl.training.settings import ClassifierSettings, TrainingSettings
from ibsgl.training.variants import CONTROL, GUIDED, PRETRAINED


def _check_period(name: str) -> str:
    """Refuse what Snakemake takes for an endless recursion: a name that ends with a part repeated twenty times."""
    if found := re.search(r"(.+?)\1{19,}$", name):
        raise ValueError(
            f"{found[1]!r} is repeated twenty times, which Snakemake takes for a recursion; take another name"
        )
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=100), AfterValidator(_check_period)]

# Methods that are in every table. The config lists the others.
BUILT_IN_METHODS = ("gradient", "bottleneck")
SANITY_METHODS = ("center", "random", "oracle")
# Sections that ``models.<name>.override`` may change.
OVERRIDABLE = ("classifier", "bottleneck", "suppression", "guidance", "methods")
# Keys of ``guidance`` that a variant may change. The rest is the same for all variants, so that they differ in one thing.
VARIED = ("teacher", "teacher_settings", "loss", "settings", "mode")
# Columns of the files with maps, beside those of the methods.
_COLUMNS = {"image_id", "target"}
# Folders of results/<name> beside those of the models.
_FOLDERS = {"alternatives", "benchmarks", "claims", "data", "figures", "logs", "records", "tables"}


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


class MethodsOn(Settings):
    """Where methods of many passes are run. Methods of one pass are run on every variant of every replicate."""

    variants: list[Name] = Field(
        ["pretrained", "guided"], description="the variants on which methods of many passes are run"
    )
    replicates: Positive = Field(
        1, description="the number of replicates, from the first, in which methods of many passes are run"
    )


class Tables(Settings):
    """How scores become tables."""

    average: Literal["pairs", "classes"] = Field(
        "pairs", description="mean over (image, class) pairs, or over the classes' means"
    )


class Figures(Settings):
    """Figures 2 and 3."""

    examples: Positive = Field(
        4, description="images in Figures 2 and 3. A hash chooses them before any map is computed"
    )


class Report(Settings):
    """The report."""

    images: Positive = Field(
        300, description="test images in the report's map browser. A hash chooses them before any map is computed"
    )


class FurtherRow(NamedTuple):
    """One row of ``further_metrics``: the registered name of the metric, its settings, and its name in tables, if given."""

    use: str
    settings: dict[str, Any]
    label: str | None


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
    replicates: int = Field(
        1,
        ge=1,
        le=1000,
        description="how often the whole pipeline is trained, each time with a training seed of its own. Data, split, "
        "masks and noise stay the same. A verdict needs at least 5",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="`auto` takes a GPU if torch finds one; the environment variable `IBSGL_GPU` (0 or 1) overrides this. "
        "Changing the device re-runs nothing. A GPU draws other masks and noise from the same seed",
    )
    threads: Positive = Field(1, description="CPU threads of each heavy job")
    precision: PrecisionSetting = Field(
        "float32",
        description="of the passes of RISE, Score-CAM, SISE, Integrated Gradients and Extremal Perturbation. `bfloat16` takes "
        "less time, the first three about half, and changes metrics (docs/speed.md). `auto`: `bfloat16` for the first three "
        "where the processor has it natively; a run writes down what that was, in `results/<name>/passes.json`. All else is "
        "in float32",
    )
    compile: Compile = Field(
        "off",
        description="`auto`: folds batch norm in those passes, and compiles the masked passes of methods that have enough of "
        "them, if there is a C++ compiler. This changes passes by rounding (docs/speed.md)",
    )
    shard_size: int = Field(
        512,
        ge=1,
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
    variants: dict[Name, dict[str, Any]] = Field(
        {},
        description="further variants of each network, and what each changes of `guidance` (`teacher`, `loss`, their settings, "
        "`mode`). `pretrained`, `control` (`loss: none`) and `guided` are always there",
    )
    methods: dict[Name, dict[str, Any]]
    methods_on: MethodsOn = MethodsOn()
    metrics: MetricSettings = MetricSettings()
    further_metrics: dict[Name, dict[str, Any]] = Field(
        {},
        description="metrics beside those of Tables 1–4, of the maps on `methods_on`: a name of your choice, "
        "then `use` (the metric; by default the name), `label` (in tables) and the metric's own settings",
    )
    deletion: DeletionSettings = DeletionSettings()
    figures: Figures = Figures()
    tables: Tables = Tables()
    report: Report = Report()
    alternatives: dict[Name, dict[str, Any]] = Field(
        {},
        description="a sensitivity study: by name, what each alternative changes of this config. Each is compared with the "
        "config itself on the same replicates. A step that an alternative does not change is not run again",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _removed_models(cls, models: Any) -> Any:
        # `vgg: false` removes a network of an earlier file.
        if not isinstance(models, Mapping):
            return models
        return {name: model for name, model in models.items() if model is not False}

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
        for row, settings in methods.items():
            if row in _COLUMNS:
                raise ValueError(f"{row!r} is a column of the files with maps; call the row something else")
            if (use := attribution.method_of(row, settings)) in SANITY_METHODS:
                raise ValueError(f"{row}: {use} is a sanity method, which has no rank; it is in every table anyway")
        return methods

    @field_validator("further_metrics")
    @classmethod
    def _further_metrics_are_named(cls, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for row, settings in rows.items():
            if row in METRICS:
                raise ValueError(f"{row} is in Tables 1–4 anyway; call yours something else")
            for key in ("use", "label"):
                text = settings.get(key, row)
                if not (isinstance(text, str) and text.strip() and text.isprintable()):
                    raise ValueError(f"{row}.{key}: this is a text of one line (it is {text!r})")
        return rows

    @field_validator("methods", "further_metrics", mode="before")
    @classmethod
    def _empty_settings(cls, methods: Any) -> Any:
        # YAML reads `gradcam:` with nothing after it as null. `rise: false` removes a method of an earlier file.
        if not isinstance(methods, Mapping):
            return methods
        return {
            name: {} if settings is None else settings for name, settings in methods.items() if settings is not False
        }

    @model_validator(mode="after")
    def _variants_fit(self) -> Config:
        for name, changes in self.variants.items():
            if name == PRETRAINED:
                raise ValueError(f"variants.{name}: this variant has no guidance; call yours something else")
            if name == "evaluation":
                raise ValueError(
                    f"variants.{name}: this is a folder of the results already; call the variant something else"
                )
            if name in (CONTROL, GUIDED):
                raise ValueError(f"variants.{name}: this variant is always there and is what `guidance` makes it")
            for key in changes:
                if key not in VARIED:
                    raise ValueError(
                        f"variants.{name}.{key}: a variant may change {', '.join(VARIED)} of guidance only"
                    )
            self.guidance_of(name)
        for name in self.methods_on.variants:
            if name not in self.variant_names:
                raise ValueError(
                    f"methods_on.variants: there is no variant {name!r}; take {', '.join(self.variant_names)}"
                )
        if self.methods_on.replicates > self.replicates:
            raise ValueError(
                f"methods_on.replicates: {self.methods_on.replicates} of {self.replicates} replicates; raise `replicates`"
            )
        return self

    @property
    def variant_names(self) -> list[str]:
        """Every variant of a network, in the order of the tables."""
        return [PRETRAINED, CONTROL, GUIDED, *self.variants]

    @property
    def trained_variants(self) -> list[str]:
        """The variants that are trained further from the pretrained one."""
        return self.variant_names[1:]

    def guidance_of(self, variant: str) -> GuidanceSettings:
        """What guidance adds to the loss of ``variant``. With the loss ``none`` it adds nothing."""
        if variant not in self.trained_variants:
            raise ConfigError(f"variants: there is no variant {variant!r}; take {', '.join(self.trained_variants)}")
        changes = {"loss": NO_LOSS} if variant == CONTROL else self.variants.get(variant, {})
        values = self.guidance.model_dump(exclude={"training"})
        for key, settings in (("teacher", "teacher_settings"), ("loss", "settings")):
            # Settings are those of the teacher or the loss that they stand beside.
            if changes.get(key, values[key]) != values[key]:
                values[settings] = {}
        values = merge(values, changes)
        if not _teaches_l_ib(values["teacher"]):
            # Only L^ib of the image itself can be computed as training goes.
            values["bottleneck_network"] = "pretrained"
        try:
            guidance = GuidanceSettings.model_validate(values)
        except ValidationError as error:
            raise ValueError(describe(error, f"variants.{variant}.")) from None
        if guidance.loss in (NO_LOSS, PAPER):
            return guidance
        if "mode" in changes:
            raise ValueError(f"variants.{variant}.mode: the loss {guidance.loss} has no mode; remove it")
        if guidance.takes_a_map:
            return guidance
        if "teacher" in changes:
            raise ValueError(f"variants.{variant}.teacher: the loss {guidance.loss} takes no teacher's map; remove it")
        return guidance.model_copy(
            update={"teacher": NO_TEACHER, "teacher_settings": {}, "bottleneck_network": "pretrained"}
        )

    def alternative(self, name: str) -> Config:
        """The config of the alternative ``name``."""
        if name not in self.alternatives:
            raise ConfigError(f"there is no alternative {name!r}; take one of {', '.join(self.alternatives)}")
        values = merge(self.model_dump(exclude={"alternatives"}), self.alternatives[name])
        return parse(values, f"alternatives.{name}.")

    def for_model(self, model: str) -> Config:
        """This config with ``models.<model>.override`` merged in."""
        override = self.models[model].override
        for key in override:
            if key not in OVERRIDABLE:
                raise ConfigError(f"models.{model}.override.{key}: only {', '.join(OVERRIDABLE)} can be overridden")
        if not override:
            return self
        return parse(merge(self.model_dump(exclude={"alternatives"}), override), f"models.{model}.override.")

    def network(self, model: str) -> NetworkSettings:
        """What it takes to build the network ``model``."""
        chosen = self.models[model].model_dump(exclude={"override"})
        return NetworkSettings(**chosen, multilabel=self.data.multilabel)

    @property
    def data_root(self) -> str:
        """The folder with the images."""
        return self.data.folder or f"results/{self.name}/data/VOCdevkit/VOC2007"

    @property
    def data_name(self) -> str:
        """What people call the data. A folder in VOC layout can be any data set, so the config's name says which."""
        return self.name if self.data.source == "voc" else self.data.source

    @property
    def test_images(self) -> int:
        """How many images the test split lists; those that show no object are left out later."""
        return self.data.test_images(Path(self.data_root))

    @property
    def shards(self) -> int:
        """How many pieces the test images are cut into, of ``shard_size`` images at most."""
        return math.ceil(self.test_images / self.shard_size)

    def method_settings(self, method: str) -> dict[str, Any]:
        """The keys of a row under ``methods``, also of a row that every table has; see :func:`ibsgl.attribution.row`."""
        if method == "bottleneck":
            return self.bottleneck.model_dump()
        return self.methods.get(method, {})

    @property
    def passes(self) -> PassSettings:
        """How the passes of methods of many passes run, with what ``auto`` means in this run."""
        return pass_settings(self)

    def precision_of(self, method: str) -> Precision:
        """The precision of the passes of a row under ``methods``, or of a row that every table has.

        ``auto`` leaves methods in float32 whose metrics bf16 changes by more than the bound in ``docs/speed.md``.
        """
        cost = attribution.mixed_cost(method, self.method_settings(method))
        if cost is None or (self.precision == AUTO and not cost.within_bound):
            return "float32"
        return self.passes.precision

    def is_light(self, method: str) -> bool:
        """Whether maps of a row cost less than to start a job: those of one pass, and those that every table has."""
        use = attribution.method_of(method, self.method_settings(method))
        return method in (*BUILT_IN_METHODS, *SANITY_METHODS) or attribution.is_single_pass(use)

    def further_metric(self, row: str) -> FurtherRow:
        """The further metric that the config calls ``row``."""
        if row not in self.further_metrics:
            known = ", ".join(self.further_metrics) or "none"
            raise ConfigError(f"there is no further metric {row!r}; there are: {known}")
        settings = dict(self.further_metrics[row])
        label = settings.pop("label", None)
        return FurtherRow(settings.pop("use", row), settings, label)

    def methods_of(self, variant: str, replicate: int = 0) -> list[str]:
        """The methods that are run on ``variant`` in ``replicate``, in the tables' order."""
        heavy_too = variant in self.methods_on.variants and replicate < self.methods_on.replicates
        methods = [method for method in self.methods if heavy_too or self.is_light(method)]
        if variant == PRETRAINED:
            return [*methods, *BUILT_IN_METHODS, *SANITY_METHODS]
        return [*methods, "gradient"]

    def light_methods(self, variant: str) -> list[str]:
        """The methods of ``variant`` whose maps are made in the job that scores them."""
        return [method for method in self.methods_of(variant) if self.is_light(method)]

    def evaluations(self) -> list[tuple[int, str, str]]:
        """Every (replicate, variant, method) that is run on each network, in the tables' order."""
        return [
            (replicate, variant, method)
            for replicate in range(self.replicates)
            for variant in self.variant_names
            for method in self.methods_of(variant, replicate)
        ]

    def heavy_methods(self, variant: str, replicate: int = 0) -> list[str]:
        """The methods of ``variant`` that have jobs of their own, so that the settings of one re-run no other."""
        return [method for method in self.methods_of(variant, replicate) if not self.is_light(method)]


def _teaches_l_ib(teacher: str) -> bool:
    """Whether the map of ``teacher`` is made from L^ib of the image itself. ``False`` if there is no such teacher."""
    return teacher in TEACHERS.names() and "l_ib" in teacher_requires(teacher)


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``override`` on top, key by key at every level; lists are replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


# Letters of a value in a message.
_LONGEST = 200


def parse(values: Mapping[str, Any], where: str = "") -> Config:
    """The config of ``values``: keys, types and ranges are checked, files and networks are not.

    Raises:
        ConfigError: one line with the first wrong key, ``where`` before it.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from None


def _shown(value: object) -> str:
    """``value`` as a person would write it, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


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
        reason = f"there is no source {_shown(first['ctx']['tag'])}; take one of {', '.join(SOURCES)}"
    elif first["type"] == "union_tag_not_found":
        reason = f"this is a section with keys of its own, such as source: {DEFAULT} (it is {_shown(first['input'])})"
    elif first["type"] == "model_type":
        reason = f"this is a section with keys of its own (it is {_shown(first['input'])})"
    elif isinstance(setting := first.get("ctx", {}).get("error"), SettingError):
        path += [setting.key] if setting.key else []
        reason = f"{setting.reason} (it is {_shown(setting.value)})"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        if not isinstance(first["input"], Mapping):
            reason += f" (it is {_shown(first['input'])})"
    more = f" (and {len(others)} more problems)" if others else ""
    key = where + ".".join(
        part if isinstance(part, str) and part.isprintable() and part else repr(part) for part in path
    )
    key = key.rstrip(".")
    # A wrong value may be an address with a password.
    return redacted(f"{key}: {reason}{more}" if key else f"{reason}{more}")
