"""The further metrics by name: the entry-point group ``ibsgl.metrics``."""

from __future__ import annotations

from ibsgl.metrics.further.base import FurtherMetric
from ibsgl.registry import Registry

GROUP = "ibsgl.metrics"
_ATTRIBUTES = ("label", "higher_is_better", "range", "requires")

FURTHER: Registry[FurtherMetric] = Registry(GROUP, "further metric")


def names() -> list[str]:
    """Every registered further metric, sorted."""
    return FURTHER.names()


def module_of(name: str) -> str:
    """The module in which the further metric ``name`` is defined. It is not imported."""
    return FURTHER.module_of(name)


def get(name: str, **settings: object) -> FurtherMetric:
    """The further metric ``name`` with its settings.

    Raises:
        ValueError: the metric or a setting is unknown, a value is wrong, or the metric's class lacks an attribute.
    """
    metric = FURTHER.get(name, **settings)
    for attribute in _ATTRIBUTES:
        if not hasattr(metric, attribute):
            raise ValueError(f"{type(metric).__name__}: give the class attribute {attribute!r}")
    if metric.requires not in ("maps", "network", "method"):
        raise ValueError(f"{type(metric).__name__}.requires must be maps, network or method, not {metric.requires!r}")
    return metric
