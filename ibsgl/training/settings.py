"""Settings of training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ibsgl.settings import LARGEST, NonNegative, Positive, Settings


class TrainingSettings(Settings):
    """Optimiser and schedule."""

    optimizer: Literal["adamw", "sgd"] = Field("sgd", description="the optimiser")
    lr: float = Field(
        1e-3, gt=0, le=1000, allow_inf_nan=False, description="learning rate; with `one_cycle` the highest one"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of `sgd`")
    weight_decay: NonNegative = Field(0.0, description="weight decay of the optimiser")
    schedule: Literal["constant", "one_cycle"] = Field("constant", description="schedule of the learning rate")
    epochs: Positive = Field(3, description="passes over the training examples")
    batch_size: Positive = Field(
        16, description="examples in each step. Unlike the run's `batch_size` it changes the result"
    )


class ClassifierSettings(TrainingSettings):
    """Training of the classifier. With no epochs the network is explained as it is."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="the optimiser")
    schedule: Literal["constant", "one_cycle"] = Field("one_cycle", description="schedule of the learning rate")
    epochs: int = Field(
        8,
        ge=0,
        le=LARGEST,
        description="passes over the training images. `0`: the network is explained as its `weights` are",
    )
