"""Configs of small networks for the tests of the plan."""

from functools import cache
from pathlib import Path

import yaml

from ibsgl import config
from ibsgl.plan import NetworkFacts, network_facts

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "configs" / "tiny.yaml"
SIZE = 48
# With fewer channels oneDNN writes outside of its memory on some CPUs.
WIDTH = 8


def shipped(name):
    """A config of the folder config/."""
    return config.parse(yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text()))


def tiny(**changes):
    return config.parse(yaml.safe_load(TINY.read_text()) | changes)


def small(arch, size=SIZE, **changes):
    """One network ``net``, two listed methods."""
    model = {"arch": arch, "image_size": size, "options": {"width": WIDTH}}
    return tiny(models={"net": model}, methods={"gradcam": {}, "rise": {"masks": 8}}, **changes)


def voc(root, **changes):
    section = {"source": "voc", "root": str(root), "multilabel": True, "held_out": 0.25} | changes
    return tiny(data=section)


@cache
def facts(arch, size=SIZE) -> NetworkFacts:
    """Of 4 classes. They do not change, so the tests share them."""
    return network_facts(small(arch, size), "net", 4)
