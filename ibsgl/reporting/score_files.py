"""Writing what one job has measured: five Parquet files in one folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ibsgl.reporting.columns import METADATA_KEY
from ibsgl.seals import sealed


def with_metadata(table: pa.Table, facts: Mapping[str, Any]) -> pa.Table:
    """``table`` with ``facts`` as JSON in its schema."""
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()})


def method_settings(
    step: Mapping[str, Any], stored: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """By ``<variant>/<method>``, the settings that the maps and their scores depend on.

    Args:
        step: the settings of the step ``evaluate``, as plain values.
        stored: by variant and method, the settings of the step that made the stored maps.
    """
    scored_with = {key: step[key] for key in ("seed", "network", "metrics", "shards")}
    made = {
        f"{variant}/{method}": {"methods": {method: dict(chosen)}, **scored_with}
        for variant, methods in step["methods"].items()
        for method, chosen in methods.items()
    }
    return made | {
        f"{variant}/{method}": {**other, "methods": {method: other["methods"][method]}, **scored_with}
        for variant, methods in stored.items()
        for method, other in methods.items()
    }


def write_evaluation(
    folder: str | Path,
    *,
    scores: pd.DataFrame,
    losses: pd.DataFrame,
    predictions: pd.DataFrame,
    curves: pd.DataFrame,
    diagnostics: pd.DataFrame,
    model: str,
    replicate: int,
    arch: str,
    labels: Mapping[str, str],
    settings: Mapping[str, Mapping[str, Any]],
    seed: int,
    tags: Mapping[str, Any],
    started: float,
) -> None:
    """Write the measurements of one shard as ``<folder>/<name>.parquet``, with the columns ``model`` and ``replicate``.

    The metadata of the scores has, under the key ``ibsgl``, JSON with ``tags``, ``model``, ``replicate``, ``seed``, ``labels``,
    ``settings``, ``started`` and ``seconds``.

    Args:
        folder: created if it is missing.
        scores, predictions, curves: those of :class:`ibsgl.evaluation.variants.Measured`.
        losses: those of :func:`ibsgl.evaluation.held_out.held_out_losses`.
        diagnostics: those of :func:`ibsgl.evaluation.held_out.diagnostics`.
        model: the network's name in the config.
        replicate: number of the replicate.
        arch: the network's architecture.
        labels: each method's name in tables.
        settings: those of :func:`method_settings`.
        seed: the root seed.
        tags: facts about code, data, weights and machine (:func:`ibsgl.provenance.collect`).
        started: when the step began, in seconds since 1970.
    """
    folder = Path(folder)
    identity = {"model": model, "replicate": replicate}
    labelled = scores.assign(arch=arch, label=scores["method"].map(dict(labels)).astype(str))
    others = {"losses": losses, "predictions": predictions, "curves": curves, "diagnostics": diagnostics}
    tables = {
        name: pa.Table.from_pandas(frame.assign(**identity), preserve_index=False)
        for name, frame in {**others, "scores": labelled}.items()
    }
    facts = {
        **tags,
        **identity,
        "seed": seed,
        "labels": dict(labels),
        "settings": dict(settings),
        "started": started,
        "seconds": time.time() - started,
    }
    tables["scores"] = with_metadata(tables["scores"], facts)
    for name, table in tables.items():
        with sealed(folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary)
