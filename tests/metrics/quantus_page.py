"""Which metrics of Quantus work: ``python -m tests.metrics.quantus_page`` writes the table in docs/metrics.md."""

import inspect
import re
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from ibsgl import attribution
from ibsgl.metrics.further import Objects, PairEvidence
from ibsgl.metrics.further import quantus as adapter
from ibsgl.networks import build_network
from ibsgl.networks.split import evaluating
from ibsgl.randomness import generator

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
TABLE = re.compile(r"(<!-- table: quantus -->\n).*?(<!-- end of table -->)", re.DOTALL)
SIZE = 32
# With Quantus' defaults some metrics make a pass per pixel.
SMALL = {
    "features_in_step": 128,
    "nr_samples": 2,
    "nr_runs": 3,
    "subset_size": 64,
    "nr_steps": 3,
    "n_perturb_samples": 2,
    "patch_size": 16,
    "regions_evaluation": 3,
    "perturb_patch_sizes": [8],
    "percentages": [20, 50],
    "num_classes": 4,
    "k": 100,
}


# Not when the module is imported: it takes seconds.
@cache
def metrics():
    """Quantus' metrics by class."""
    import quantus

    return {kind.__name__: kind for group in quantus.AVAILABLE_METRICS.values() for kind in group.values()}


def arguments(kind):
    """Small arguments of a metric."""
    known = inspect.signature(kind).parameters
    return {key: value for key, value in SMALL.items() if key in known}


@contextmanager
def nothing_refused():
    """Inside, the adapter lets every metric pass, and gives it the method."""
    kept = adapter.WORKING, adapter.REFUSED
    adapter.WORKING = adapter.WORKING | {name: adapter._Facts(True, "method") for name in adapter.REFUSED}
    adapter.REFUSED = {}
    try:
        yield
    finally:
        adapter.WORKING, adapter.REFUSED = kept


def evidence(pairs=(0, 1, 2)):
    """Maps of FullGrad on an untrained network for the images ``pairs`` of three, and how often the method is called."""
    torch.manual_seed(0)
    network, calls = build_network("resnet_small", 4, width=8).eval(), []
    images, targets = torch.rand(3, 3, SIZE, SIZE)[list(pairs)], torch.tensor([1, 2, 3])[list(pairs)]
    method = attribution.get("fullgrad")

    def explain(network, images, classes=None, places=None):
        calls.append(len(images))
        where = slice(None) if places is None else places
        return method(network, images, targets[where] if classes is None else classes)

    region = torch.zeros(len(images), SIZE, SIZE, dtype=torch.bool)
    region[:, 8:20, 8:20] = True
    # The highest pixel of one map.
    region[torch.tensor(pairs) == 1, 15, 0] = True
    found = PairEvidence(
        method(network, images, targets),
        region,
        targets,
        (Objects((), SIZE, SIZE),) * len(images),
        tuple(generator(0, "quantus", place) for place in pairs),
        images=images,
        network=network,
        explain=explain,
    )
    return found, calls


def call(name, kind, pairs=(0, 1, 2)):
    """The values of a metric, and whether it has called the method."""
    found, calls = evidence(pairs)
    with warnings.catch_warnings(), evaluating(found.network):
        warnings.simplefilter("ignore")
        return adapter.Quantus(name, arguments(kind))(found), bool(calls)


def table():
    """The table of the page."""
    lines = ["| metric | better | requires | |", "|---|---|---|---|"]
    for name in metrics():
        if name in adapter.WORKING:
            facts = adapter.WORKING[name]
            lines.append(f"| `{name}` | {'higher' if facts.higher_is_better else 'lower'} | {facts.requires} | works |")
        else:
            lines.append(f"| `{name}` | | | refused: {adapter.REFUSED[name]} |")
    return "\n".join(lines)


def rewritten(text):
    """``text`` of the page with the table made anew."""
    return TABLE.sub(lambda match: f"{match[1]}\n{table()}\n\n{match[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
