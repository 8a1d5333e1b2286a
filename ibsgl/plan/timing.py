"""Where the seconds of a plan come from: measured on this machine, or given for another device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ibsgl.config import Config
from ibsgl.plan.calibration import calibrate
from ibsgl.plan.networks import NetworkFacts, UnitCosts

HERE = "measured here"


class Timing(Protocol):
    """A source of the seconds that one image takes on a device."""

    @property
    def device(self) -> str:
        """The device's name."""
        ...

    @property
    def origin(self) -> str:
        """How the times were made, for people: "measured here", …"""
        ...

    @property
    def estimated(self) -> bool:
        """Whether the times are computed and not measured."""
        ...

    def seconds(self, config: Config, network: NetworkFacts, classes: int) -> tuple[UnitCosts, int | None]:
        """The seconds of one image on ``network`` of ``config``, and the number of images at a time, if it is known."""
        ...


@dataclass(frozen=True)
class MeasuredHere:
    """Seconds that are measured now, on ``where``, with random weights."""

    where: torch.device
    device: str
    origin: str = HERE
    estimated: bool = False

    def seconds(self, config: Config, network: NetworkFacts, classes: int) -> tuple[UnitCosts, int]:
        """See :func:`ibsgl.plan.calibrate`."""
        return calibrate(config, network.model, classes, self.where, config.passes.precision)
