"""The five figures of Tables 1–4 and what is to be known about each: its heading, its direction and its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """Facts about one metric, so that whoever prints or ranks it needs no case of its own.

    Attributes:
        key: column in the score files, where the values are fractions in [0, 1].
        label: heading in the paper's tables.
        higher_is_better: the direction that ranks follow.
        kind: ``localization`` (Tables 1 and 2) or ``faithfulness`` (Tables 3 and 4).
    """

    key: str
    label: str
    higher_is_better: bool
    kind: Literal["localization", "faithfulness"]


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("ebpg", "EBPG", True, "localization"),
        Metric("miou", "mIoU", True, "localization"),
        Metric("bbox", "Bbox", True, "localization"),
        Metric("average_drop", "AD(%)", False, "faithfulness"),
        Metric("average_increase", "AI(%)", True, "faithfulness"),
    )
}
