"""Tiny measurements for the tests of tables."""

import itertools
from pathlib import Path

import pandas as pd

from ibsgl.metrics import METRICS
from ibsgl.reporting.measurements import Measurements
from ibsgl.reporting.tables import build_table

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "published"
METADATA = {"data_digest": "d1", "seed": 0, "class_names": ["cat", "dog"]}
# Three images, the last with two classes.
PAIRS = [("1", "cat"), ("2", "dog"), ("3", "cat"), ("3", "dog")]


def group(variant, method, label="", pairs=PAIRS, replicate=0, scored_on=None, **values):
    """Score rows of one (variant, method, replicate); a metric given as a number is the same on every pair, default 0.5."""
    rows = pd.DataFrame(pairs, columns=["image_id", "class_name"])
    constant = dict.fromkeys([*METRICS, "p_full", "p_kept"], 0.5)
    return rows.assign(
        model="resnet",
        arch="resnet_small",
        variant=variant,
        scored_on=scored_on or variant,
        replicate=replicate,
        method=method,
        label=label,
        target=0,
        **constant | values,
    )


def replicates(variant, method, *values, metric="ebpg", **more):
    """:func:`group` once per replicate, with ``values`` of one metric."""
    return pd.concat(
        [group(variant, method, replicate=place, **{metric: value}, **more) for place, value in enumerate(values)],
        ignore_index=True,
    )


def measurements(*groups, **metadata):
    """The measurements of one network with the scores ``groups`` and nothing else."""
    scores = pd.concat(groups, ignore_index=True)
    others = dict.fromkeys(("losses", "predictions", "curves", "diagnostics"), pd.DataFrame({"variant": []}))
    return Measurements(model="resnet", arch="resnet_small", scores=scores, metadata=METADATA | metadata, **others)


def build(*groups, number=1, deviations=(), **settings):
    """Table ``number`` of the ``groups``, with the published values."""
    return build_table(measurements(*groups), number, PUBLISHED, deviations=list(deviations), **settings)


def cell(table, label, metric):
    """The one row of ``table`` with this label and metric."""
    (row,) = table[(table["row"] == label) & (table["metric"] == metric)].itertuples()
    return row


def many(images, value=0.5, spread=0.1):
    """Pairs of ``images`` images of one class each, and values around ``value``."""
    signs = itertools.cycle((-1, 1))
    return [(str(i), "cat") for i in range(images)], [value + spread * next(signs) for _ in range(images)]
