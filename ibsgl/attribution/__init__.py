"""Saliency methods: their common interface, the registry of methods by name, and the cost of a method."""

from ibsgl.attribution.cost import Cost, Passes, StageChannels
from ibsgl.attribution.registry import Attribution, get, is_single_pass, module_of, names, requirements

__all__ = [
    "Attribution",
    "Cost",
    "Passes",
    "StageChannels",
    "get",
    "is_single_pass",
    "module_of",
    "names",
    "requirements",
]
