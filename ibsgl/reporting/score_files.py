"""Writing the scores of one shard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ibsgl.files import written
from ibsgl.reporting.columns import METADATA_KEY


def with_metadata(table: pa.Table, facts: Mapping[str, Any]) -> pa.Table:
    """``table`` with ``facts`` as JSON in its schema."""
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()})


def write_scores(
    path: str | Path,
    scores: pd.DataFrame,
    *,
    model: str,
    variant: str,
    arch: str,
    labels: Mapping[str, str],
    made_with: Mapping[str, Mapping[str, Any]],
    scored_with: Mapping[str, Any],
    tags: Mapping[str, Any],
    started: float,
) -> None:
    """Write the scores of one shard, with the facts that :mod:`ibsgl.reporting.scores` needs.

    Args:
        path: the Parquet file.
        scores: those of :func:`ibsgl.evaluation.scoring.score_maps`.
        model: the network's name in the config.
        variant: pretrained, control or guided.
        arch: the network's architecture.
        labels: each method's name in tables.
        made_with: by method, the settings of the step that made its maps.
        scored_with: the settings of the step that scored them.
        tags: facts about code, data, weights and machine (:func:`ibsgl.provenance.collect`).
        started: when the step began, in seconds since 1970.
    """
    labelled = scores.assign(model=model, arch=arch, variant=variant, label=scores["method"].map(dict(labels)))
    # A job makes the maps of several methods. The settings that are stored for a method contain only that method.
    settings = {
        method: {**step, "methods": {method: step["methods"][method]}, **scored_with}
        for method, step in made_with.items()
    }
    facts = {
        **tags,
        "seed": next(iter(settings.values()))["seed"],
        "settings": settings,
        "started": started,
        "seconds": time.time() - started,
    }
    table = pa.Table.from_pandas(labelled, preserve_index=False)
    with written(path) as temporary:
        pq.write_table(with_metadata(table, facts), temporary)
