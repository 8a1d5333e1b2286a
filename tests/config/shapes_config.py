"""config/shapes.yaml with changes, and the jobs of its workflow."""

from pathlib import Path

import yaml

from ibsgl import config
from ibsgl.config.steps import step_of

SHAPES = Path(__file__).parents[2] / "config" / "shapes.yaml"


def values(**changes):
    """config/shapes.yaml with changes given as dotted keys."""
    tree = yaml.safe_load(SHAPES.read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        node[last] = value
    return tree


# Step, and wildcards.
JOBS = [
    ("data", {}),
    ("index", {}),
    *[
        (step, {"model": model, "replicate": 0, **where})
        for model in ("resnet", "vgg")
        for step, where in [
            ("classifier", {}),
            ("bottleneck", {}),
            ("guide", {"variant": "guided"}),
            ("guide", {"variant": "control"}),
            ("guide", {"variant": "shuffled"}),
            ("maps", {"variant": "pretrained", "method": "rise"}),
            ("maps", {"variant": "pretrained", "method": "score_cam"}),
            ("evaluate", {}),
        ]
    ],
]


def named(step, where):
    """A job as a short name: its step and its wildcards, without the replicate."""
    return "/".join([step, *(value for key, value in where.items() if key != "replicate")])


def changed(before, after):
    """The jobs whose settings differ between two configs, as short names."""
    one, other = config.parse(before), config.parse(after)
    return {
        named(step, where)
        for step, where in JOBS
        if step_of(one, step, **where).to_json() != step_of(other, step, **where).to_json()
    }


def both(*steps):
    """The names of jobs on both networks, from pairs of step and further wildcards."""
    return {f"{step}/{model}{rest}" for step, rest in steps for model in ("resnet", "vgg")}
