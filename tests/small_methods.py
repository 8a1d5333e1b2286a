"""Every method of this repository at small settings. A new method needs an entry only if its defaults are slow in a test.

The methods of other libraries are in tests/other_libraries.py.
"""

from ibsgl import attribution

_SMALL = {
    "bottleneck": {"steps": 3, "samples": 2},
    "score_cam": {"chunk": 5},
    "sise": {"chunk": 5},
    "rise": {"masks": 24, "cells": 3, "chunk": 5},
    "extremal_perturbation": {"iterations": 3},
    "integrated_gradients": {"steps": 5, "chunk": 4},
}
METHODS = {
    name: _SMALL.get(name, {})
    for name in attribution.names()
    if attribution.module_of(name).partition(".")[0] in ("ibsgl", "baselines")
    and not attribution.module_of(name).startswith("ibsgl.attribution.adapters.")
}
