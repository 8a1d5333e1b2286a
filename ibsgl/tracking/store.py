"""The client of MLflow. Only this module imports MLflow, and only when a store is opened."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ibsgl.tracking.ledger import store_file, tracking_uri


class Store:
    """A client of MLflow and the experiment that it logs to.

    Args:
        experiment: the name of the experiment, which is created if it is not there.
    """

    def __init__(self, experiment: str) -> None:
        # With MLflow's default of 7 retries of 120 s, the workflow would not end for minutes if the server is not reached.
        for key, value in (
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ):
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.uri = tracking_uri()
        self.name = experiment
        with self.locked():
            self.client = MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                try:
                    self.experiment_id = self.client.create_experiment(experiment)
                except MlflowException:
                    # Another client of the same server has created it meanwhile.
                    found = self.client.get_experiment_by_name(experiment)
                    if found is None:
                        raise
            if found is not None:
                self.experiment_id = found.experiment_id

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock an SQLite store. If two processes open a new store at once, they break its migrations."""
        file = store_file(self.uri)
        if file is None:
            yield
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            yield

    def create(self, name: str, started: float, settings: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """Start a run with its params and tags; returns its id."""
        from mlflow.entities import Param, RunTag
        from mlflow.utils.validation import (
            MAX_ENTITY_KEY_LENGTH,
            MAX_PARAM_VAL_LENGTH,
            MAX_PARAMS_TAGS_PER_BATCH,
            MAX_TAG_VAL_LENGTH,
        )

        run = self.client.create_run(self.experiment_id, start_time=int(1000 * started), run_name=name)
        kept = [RunTag(key, str(value)[:MAX_TAG_VAL_LENGTH]) for key, value in tags.items()]
        self.client.log_batch(run.info.run_id, tags=kept)
        params = [
            Param(_name(key, MAX_ENTITY_KEY_LENGTH), value[:MAX_PARAM_VAL_LENGTH]) for key, value in _flat(settings)
        ]
        for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            self.client.log_batch(run.info.run_id, params=params[start : start + MAX_PARAMS_TAGS_PER_BATCH])
        return run.info.run_id

    def log(self, record: Mapping[str, Any], parent: str) -> str:
        """Log one record as a finished run below ``parent``; earlier runs of the same result are tagged as superseded."""
        from mlflow.entities import Dataset, DatasetInput, Metric
        from mlflow.utils.validation import (
            MAX_DATASET_DIGEST_SIZE,
            MAX_ENTITY_KEY_LENGTH,
            MAX_METRICS_PER_BATCH,
        )

        facts = dict(record["tags"])
        tags = {"mlflow.parentRunId": parent, "ibsgl.result_id": record["result_id"], "ibsgl.kind": record["kind"]}
        run = self.create(record["result_id"], record["started"], record["settings"], tags | run_tags(facts))
        ended = int(1000 * (record["started"] + record["seconds"]))
        steps = [int(row["epoch"]) for row in record["history"]]
        metrics = [
            Metric(_name(key, MAX_ENTITY_KEY_LENGTH), value, ended, step)
            for step, row in zip(steps, record["history"], strict=True)
            for key, value in row.items()
            if key != "epoch"
        ]
        metrics += [
            Metric(_name(key, MAX_ENTITY_KEY_LENGTH), value, ended, max(steps, default=0))
            for key, value in record["metrics"].items()
        ]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])
        if digest := facts.get("data_digest"):
            source = json.dumps({"tags": {"digest": digest}})
            data = Dataset(self.name, digest[:MAX_DATASET_DIGEST_SIZE], source_type="code", source=source)
            self.client.log_inputs(run, [DatasetInput(data)])
        for artifact in map(Path, record["artifacts"]):
            # The run is logged also if the result's file was removed.
            if artifact.exists():
                self.client.log_artifact(run, str(artifact), artifact.parent.name or None)
        self.client.set_terminated(run, "FINISHED", ended)
        self._supersede(record["result_id"], run)
        return run

    def _supersede(self, result_id: str, newest: str) -> None:
        same = self.client.search_runs([self.experiment_id], f"tags.`ibsgl.result_id` = '{result_id}'")
        for run in same:
            if run.info.run_id == newest or run.data.tags.get("ibsgl.superseded"):
                continue
            self.client.set_tag(run.info.run_id, "ibsgl.superseded", "true")
            if run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "KILLED")


def run_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts of :func:`ibsgl.provenance.collect` as tags, with MLflow's own names where there are some."""
    facts = dict(facts)
    tags = {"mlflow.source.name": "ibsgl", "mlflow.source.type": "PROJECT"}
    commit = facts.pop("commit", "unknown")
    if commit != "unknown":
        tags["mlflow.source.git.commit"] = commit
    tags["git.dirty"] = str(facts.pop("dirty", True)).lower()
    tags |= {f"version.{package}": str(version) for package, version in facts.pop("versions", {}).items()}
    return tags | {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _name(key: str, limit: int) -> str:
    """``key`` as a valid name of a param or a metric in MLflow."""
    return re.sub(r"[^\w\-. /]", "_", key)[:limit]
