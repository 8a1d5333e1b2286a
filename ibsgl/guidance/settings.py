"""Settings of guided training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ibsgl.settings import NonNegative, Positive, PositiveReal, Settings


class DivergenceSettings(Settings):
    """D_KL(A ‖ A') of Eq. 11."""

    normalise: Literal["softmax", "sum"] = Field(
        "softmax", description="how a channel of A becomes a distribution over space"
    )
    reduction: Literal["sum", "mean"] = Field("mean", description="sum or mean over the channels")


class GuidanceSettings(Settings):
    """What guidance adds to the loss (Eq. 10–11, Algorithm 1)."""

    teacher: Literal["bottleneck", "shuffled", "uniform", "none", "boxes"] = Field(
        "bottleneck",
        description="the map that L^c is moved to. `bottleneck`: L^ib of the image (the paper). `shuffled`: L^ib of another "
        "image. `uniform`: the same value everywhere. `boxes`: the object's boxes. `none`: no map, suppression alone",
    )
    loss: Literal["localization", "none"] = Field(
        "localization", description="what is added to the loss of classification: Eq. 10 (the paper), or nothing"
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

    @model_validator(mode="after")
    def _teacher_fits(self) -> GuidanceSettings:
        if self.bottleneck_network == "current" and self.teacher != "bottleneck":
            raise ValueError(f"bottleneck_network: with the teacher {self.teacher} it must be pretrained")
        return self
