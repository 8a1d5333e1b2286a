"""Settings of guided training."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from ibsgl.guidance.registry import (
    LOSS_REQUIREMENTS,
    LOSSES,
    NO_LOSS,
    NO_TEACHER,
    PAPER,
    TEACHER_REQUIREMENTS,
    TEACHERS,
    GuidanceLoss,
    Teacher,
    loss_requires,
    teacher_requires,
)
from ibsgl.settings import LARGEST, NonNegative, Positive, PositiveReal, Settings
from ibsgl.suppression import SuppressionSettings


class DivergenceSettings(Settings):
    """D_KL(A ‖ A') of Eq. 11."""

    normalise: Literal["softmax", "sum"] = Field(
        "softmax", description="how a channel of A becomes a distribution over space"
    )
    reduction: Literal["sum", "mean"] = Field("mean", description="sum or mean over the channels")


class GuidanceSettings(Settings):
    """What guidance adds to the loss of classification: the paper's own loss (Eq. 10–11, Algorithm 1), or another."""

    teacher: str = Field(
        "bottleneck",
        description="the map that L^c is moved to. `bottleneck`: L^ib of the image (the paper). `shuffled`: L^ib of another "
        "image. `uniform`: the same value everywhere. `boxes`: the object's boxes. `none`: no map, suppression alone. Or a "
        "registered teacher",
    )
    teacher_settings: dict[str, Any] = Field(
        {}, validate_default=True, description="the settings of a registered teacher, if it has any"
    )
    loss: str = Field(
        PAPER,
        description="what is added to the loss of classification. `localization`: Eq. 10 (the paper). `energy`, `rrr`, "
        "`saliency_guided`, or a registered loss: see `settings`. `none`: nothing",
    )
    settings: dict[str, Any] = Field(
        {},
        validate_default=True,
        description="the settings of another loss than `localization`, such as its `weight`. Those of `localization` are the "
        "keys below",
    )
    mode: Literal["feature", "end_to_end"] = Field(
        "feature",
        description="`feature`: Algorithm 1. `end_to_end`: the gradient of Eq. 10 goes directly to the weights",
    )
    bottleneck_network: Literal["pretrained", "current"] = Field(
        "pretrained", description="the network that L^ib comes from"
    )
    cross_entropy: Literal["distribution", "binary"] = Field(
        "distribution", description="the form of L_CE(L^c, L^ib) between maps"
    )
    mu: NonNegative = Field(2.0, description="μ of Eq. 11 (published: 2)")
    step_unit: Literal["relative", "absolute"] = Field(
        "relative", description="`step_size` as a fraction of ‖A‖, or as a factor of the raw gradient"
    )
    step_size: PositiveReal = Field(0.1, description="length of an inner step A → A'")
    steps: Positive = Field(5, description="number of inner steps")
    divergence: DivergenceSettings = DivergenceSettings()

    @field_validator("teacher")
    @classmethod
    def _known_teacher(cls, value: str) -> str:
        if value != NO_TEACHER and value not in TEACHERS.names():
            raise ValueError(f"there is no such teacher; take one of {', '.join((*TEACHERS.names(), NO_TEACHER))}")
        if unknown := teacher_requires(value) - TEACHER_REQUIREMENTS:
            raise ValueError(f"this teacher requires {', '.join(sorted(unknown))}, which no teacher gets")
        return value

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        if value != NO_LOSS and value not in LOSSES.names():
            raise ValueError(f"there is no such guidance loss; take one of {', '.join((*LOSSES.names(), NO_LOSS))}")
        if unknown := loss_requires(value) - LOSS_REQUIREMENTS:
            raise ValueError(f"this guidance loss requires {', '.join(sorted(unknown))}, which no loss gets")
        return value

    @field_validator("teacher_settings")
    @classmethod
    def _settings_of_the_teacher(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("teacher", NO_TEACHER)
        if name != NO_TEACHER:
            TEACHERS.get(name, **value)
        elif value and "teacher" in info.data:
            raise ValueError("there is no teacher that could have settings")
        return value

    @field_validator("settings")
    @classmethod
    def _settings_of_the_loss(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("loss", NO_LOSS)
        if name in (NO_LOSS, PAPER):
            if value and "loss" in info.data:
                raise ValueError(f"the loss {name} has none; those of localization are keys of guidance itself")
            return value
        weight = getattr(LOSSES.get(name, **value), "weight", None)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= LARGEST:
            raise ValueError(f"the weight of {name} must be a number from 0 to {LARGEST}, not {weight!r}")
        return value

    @model_validator(mode="after")
    def _teacher_fits(self) -> GuidanceSettings:
        if self.bottleneck_network == "current" and "l_ib" not in teacher_requires(self.teacher):
            raise ValueError(f"bottleneck_network: with the teacher {self.teacher} it must be pretrained")
        return self

    @property
    def takes_a_map(self) -> bool:
        """Whether the loss needs a teacher's map."""
        return "teacher_map" in loss_requires(self.loss)

    @property
    def requires(self) -> frozenset[str]:
        """What the loss needs, and the teacher if the loss takes its map."""
        return loss_requires(self.loss) | (teacher_requires(self.teacher) if self.takes_a_map else frozenset())

    @property
    def sees_boxes(self) -> bool:
        """Whether the training depends on the objects' boxes."""
        return "region" in self.requires

    @property
    def bottleneck_of(self) -> Literal["pretrained", "current"] | None:
        """The network whose L^ib the training needs, if it needs L^ib."""
        return self.bottleneck_network if self.requires & {"l_ib", "shuffled"} else None

    @property
    def loss_settings(self) -> dict[str, Any]:
        """The settings of another loss than ``localization`` with its defaults; empty for ``localization`` and ``none``."""
        if self.loss in (NO_LOSS, PAPER):
            return {}
        loss = LOSSES.get(self.loss, **self.settings)
        if isinstance(loss, BaseModel):
            return loss.model_dump(mode="json")
        return asdict(loss) if is_dataclass(loss) else self.settings

    def build_loss(self, suppression: SuppressionSettings | None) -> GuidanceLoss | None:
        """The loss with its settings; ``None`` for ``none``. Only ``localization`` needs the settings of suppression.

        Raises:
            ValueError: they are missing.
        """
        if self.loss == NO_LOSS:
            return None
        if self.loss != PAPER:
            return LOSSES.get(self.loss, **self.settings)
        if suppression is None:
            raise ValueError("guidance needs the settings of suppression")
        own = {name: getattr(self, name) for name in PAPER_KEYS if name != "mu"}
        return LOSSES.get(PAPER, weight=self.mu, suppression=suppression, **own)

    def build_teacher(self) -> Teacher | None:
        """The teacher with its settings; ``None`` for ``none``, and if the loss takes no map."""
        if self.teacher == NO_TEACHER or not self.takes_a_map:
            return None
        return TEACHERS.get(self.teacher, **self.teacher_settings)


# The settings of the loss ``localization``. No other loss depends on them.
PAPER_KEYS = ("mode", "cross_entropy", "mu", "step_unit", "step_size", "steps", "divergence")
