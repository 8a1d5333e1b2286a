"""Metrics, one module for each kind. A new :class:`Metric` in one of these modules is found, computed and printed."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, create_model

from ibsgl.metrics.base import Evidence, Metric
from ibsgl.settings import ProperFraction, Settings

_Metric = TypeVar("_Metric", bound=Metric)


def _find() -> dict[str, type[Metric]]:
    found: dict[str, type[Metric]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Metric) and value is not Metric:
                for name in ("key", "label", "higher_is_better", "table"):
                    if not hasattr(value, name):
                        raise TypeError(f"{value.__module__}.{value.__name__}: give the class attribute {name!r}")
                found[value.key] = value
    return dict(sorted(found.items(), key=lambda item: not item[1].in_paper))


METRICS: dict[str, type[Metric]] = _find()


class Kept(Settings):
    """The image that Average Drop and Average Increase show to the network."""

    mode: Literal["top", "scale"] = Field(
        "top", description="`top`: keep the highest pixels. `scale`: multiply the image by the map"
    )
    top: ProperFraction = Field(0.15, description="share of the pixels that `top` keeps")
    fill: Literal["black", "mean"] = Field("black", description="colour of the pixels that are not kept")


class _CommonSettings(Settings):
    """The settings that several metrics share."""

    region: Literal["boxes", "segmentation"] = Field(
        "boxes",
        description="where the target is, for localisation: the union of the class's boxes, or its segmentation mask if there "
        "is one",
    )
    kept: Kept = Kept()

    def metrics(self) -> list[Metric]:
        """Every metric with its settings."""
        return [getattr(self, key) for key in METRICS]

    def metric(self, kind: type[_Metric]) -> _Metric:
        """The metric of the class ``kind`` with its settings."""
        found = getattr(self, kind.key)
        assert isinstance(found, kind), f"{kind.key} is another class"
        return found


if TYPE_CHECKING:
    MetricSettings = _CommonSettings
else:
    # One key under ``metrics`` for each metric.
    MetricSettings = create_model(
        "MetricSettings", __base__=_CommonSettings, **{key: (metric, metric()) for key, metric in METRICS.items()}
    )

__all__ = ["METRICS", "Evidence", "Kept", "Metric", "MetricSettings"]
