"""Tiny score frames for the tests of score files and tables."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ibsgl.metrics import METRICS
from ibsgl.reporting.tables import build_table

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "published"
METADATA = {"data_digest": "d1", "seed": 0, "class_names": ["cat", "dog"], "weights_digest": "w1", "commit": "c1"}
# Three images, the last with two classes.
PAIRS = [("1", "cat"), ("2", "dog"), ("3", "cat"), ("3", "dog")]


def group(variant, method, label="", pairs=PAIRS, **values):
    """Score rows of one (variant, method); a metric given as a number is the same on every pair, default 0.5."""
    rows = pd.DataFrame(pairs, columns=["image_id", "class_name"])
    constant = dict.fromkeys([*METRICS, "p_full", "p_kept"], 0.5)
    return rows.assign(
        model="resnet", arch="resnet_small", variant=variant, method=method, label=label, target=0, **constant | values
    )


def build(*groups, number=1, deviations=(), **settings):
    """Table ``number`` of the ``groups``, with the published values."""
    scores = pd.concat(groups, ignore_index=True)
    return build_table(scores, number, PUBLISHED, seed=0, deviations=list(deviations), **settings)


def cell(table, label, metric):
    """The one row of ``table`` with this label and metric."""
    (row,) = table[(table["row"] == label) & (table["metric"] == metric)].itertuples()
    return row


def write(path, rows, **metadata):
    """Write ``rows`` as the score file ``path``, which is returned."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({b"ibsgl": json.dumps(METADATA | metadata).encode()}), path)
    return path
