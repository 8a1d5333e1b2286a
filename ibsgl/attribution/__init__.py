"""Saliency methods: their common interface, the registry of methods by name, and the cost of a method."""

from ibsgl.attribution.cost import Cost, Passes, StageChannels
from ibsgl.attribution.registry import (
    LABEL,
    METHODS,
    USE,
    Attribution,
    Row,
    get,
    is_coarse,
    is_single_pass,
    library_of,
    library_versions,
    method_of,
    mixed_cost,
    module_of,
    names,
    requirements,
    row,
)

__all__ = [
    "LABEL",
    "METHODS",
    "USE",
    "Attribution",
    "Cost",
    "Passes",
    "Row",
    "StageChannels",
    "get",
    "is_coarse",
    "is_single_pass",
    "library_of",
    "library_versions",
    "method_of",
    "mixed_cost",
    "module_of",
    "names",
    "requirements",
    "row",
]
