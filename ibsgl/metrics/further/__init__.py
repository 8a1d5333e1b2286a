"""Further metrics: those that a config adds to the paper's five, by name. Another package may add some by an entry point."""

from ibsgl.metrics.further.base import FurtherMetric, Objects, PairEvidence
from ibsgl.metrics.further.registry import get, module_of, names

__all__ = ["FurtherMetric", "Objects", "PairEvidence", "get", "module_of", "names"]
