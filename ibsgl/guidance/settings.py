"""Settings of guided training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ibsgl.settings import NonNegative, Positive, PositiveReal, Settings


class DivergenceSettings(Settings):
    """D_KL(A ‖ A') of Eq. 11."""

    normalise: Literal["softmax", "sum"] = Field(
        "softmax", description="how a channel of A becomes a distribution over space"
    )
    reduction: Literal["sum", "mean"] = Field("mean", description="sum or mean over the channels")


class GuidanceSettings(Settings):
    """What guidance adds to the loss (Eq. 10–11, Algorithm 1)."""

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
    step_size: PositiveReal = Field(0.05, description="length of an inner step A → A'")
    steps: Positive = Field(5, description="number of inner steps")
    divergence: DivergenceSettings = DivergenceSettings()
