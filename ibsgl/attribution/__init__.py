"""Saliency methods: their common interface, the registry of methods by name, and the cost of a method."""

from ibsgl.attribution.cost import Cost, Passes
from ibsgl.attribution.registry import Attribution, get, is_single_pass, module_of, names, requirements

__all__ = ["Attribution", "Cost", "Passes", "get", "is_single_pass", "module_of", "names", "requirements"]
