"""The base class of metrics, and the values that a metric is computed from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ibsgl.settings import Settings

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Evidence:
    """The values that a metric is computed from: B maps on one network.

    Attributes:
        saliency: (B,H,W), finite and ≥ 0.
        region: (B,H,W) bool, where the target is. No region is empty.
        p_full: (B,) the target's probability on the whole image.
        p_kept: (B,) the target's probability on the part of the image that the map keeps (``metrics.kept``).
    """

    saliency: torch.Tensor
    region: torch.Tensor
    p_full: torch.Tensor
    p_kept: torch.Tensor


class Metric(Settings, ABC):
    """A metric. Its fields are keys under ``metrics.<key>`` in the config.

    Subclasses in the modules of :mod:`ibsgl.metrics` are found by their ``key``, computed for every map, and printed in their
    tables.

    Attributes:
        key: the column in the score files.
        label: the heading in tables.
        higher_is_better: whether the best value is the highest.
        table: ``localization`` (Tables 1 and 2) or ``faithfulness`` (Tables 3 and 4).
        range: the lowest and the highest value.
        in_paper: whether the paper's tables have it. These come first in ours.
    """

    key: ClassVar[str]
    label: ClassVar[str]
    higher_is_better: ClassVar[bool]
    table: ClassVar[Literal["localization", "faithfulness"]]
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    in_paper: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, evidence: Evidence) -> torch.Tensor:
        """The metric's value (B,) for each map."""
