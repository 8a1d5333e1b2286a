"""The client of MLflow. Only this module imports MLflow, and only when a store is opened."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ibsgl.tracking.ledger import store_file, tracking_uri


class Store:
    """A client of MLflow and the experiment that it logs to.

    Args:
        experiment: the name of the experiment, which is created if it is not there.
        data: the name of the data set that its runs use.
    """

    def __init__(self, experiment: str, data: str) -> None:
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
        self.data = data
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
        facts, result_id = dict(record["tags"]), _result_id(record)
        tags = {"mlflow.parentRunId": parent, "ibsgl.result_id": result_id} | _groups(record)
        run = self.create(result_id, record["started"], record["settings"], tags | run_tags(facts))
        ended = record["started"] + record["seconds"]
        steps = [int(row["epoch"]) for row in record["history"]]
        metrics = [
            (key, value, step)
            for step, row in zip(steps, record["history"], strict=True)
            for key, value in row.items()
            if key != "epoch"
        ]
        metrics += [(key, value, max(steps, default=0)) for key, value in record["metrics"].items()]
        self.log_metrics(run, metrics, ended)
        if digest := facts.get("data_digest"):
            self.log_data(run, digest, "training" if record["kind"] == "training" else "evaluation")
        for artifact in map(Path, record["artifacts"]):
            # The run is logged also if the result's file was removed.
            if artifact.exists():
                self.client.log_artifact(run, str(artifact), artifact.parent.name or None)
                if record["kind"] == "table" and artifact.suffix == ".csv":
                    self._log_table(run, artifact)
        self.client.set_terminated(run, "FINISHED", int(1000 * ended))
        self._supersede(result_id, run)
        return run

    def log_metrics(self, run: str, metrics: Sequence[tuple[str, float, int]], when: float) -> None:
        """Log metrics, each as name, value and step, with the time ``when`` in seconds since 1970."""
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_METRICS_PER_BATCH

        made = [
            Metric(_name(key, MAX_ENTITY_KEY_LENGTH), value, int(1000 * when), step) for key, value, step in metrics
        ]
        for start in range(0, len(made), MAX_METRICS_PER_BATCH):
            self.client.log_batch(run, metrics=made[start : start + MAX_METRICS_PER_BATCH])

    def log_data(self, run: str, digest: str, context: str) -> None:
        """Log which data set a run used, and for what. MLflow shows the data set's name with the start of its digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
        from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE, MAX_DATASET_NAME_SIZE

        # This is what MLflow's MetaDataset becomes. Its own class would import the libraries that load data.
        source = json.dumps({"tags": {"digest": digest}})
        data = Dataset(
            self.data[:MAX_DATASET_NAME_SIZE], digest[:MAX_DATASET_DIGEST_SIZE], source_type="code", source=source
        )
        self.client.log_inputs(run, [DatasetInput(data, [InputTag(MLFLOW_DATASET_CONTEXT, context)])])

    def log_summary(self, run: str, note: Callable[[int], str], page: str) -> None:
        """Log the note of a run, as a function of its largest length, and its page ``summary.html``."""
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
        from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

        self.client.set_tag(run, MLFLOW_RUN_NOTE, note(MAX_TAG_VAL_LENGTH))
        self.client.log_text(run, page, "summary.html")

    def _log_table(self, run: str, csv: Path) -> None:
        """Log a table for MLflow's table viewer too."""
        import pandas as pd

        try:
            # Without NaN: "not run" and an empty cell are shown as they are in the file.
            table = pd.read_csv(csv, keep_default_na=False)
        except ValueError:
            # A file that is no table stays an artifact.
            return
        self.client.log_table(run, table, f"{csv.stem}.json")

    def _supersede(self, result_id: str, newest: str) -> None:
        same = self.client.search_runs([self.experiment_id], f"tags.`ibsgl.result_id` = '{result_id}'")
        for run in same:
            if run.info.run_id == newest or run.data.tags.get("ibsgl.superseded"):
                continue
            self.client.set_tag(run.info.run_id, "ibsgl.superseded", "true")
            if run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "KILLED")


def _result_id(record: Mapping[str, Any]) -> str:
    """The record's result id. That of an alternative's record starts with the alternative's folder."""
    alternative = record.get("alternative")
    return f"alternatives/{alternative}/{record['result_id']}" if alternative else record["result_id"]


def _groups(record: Mapping[str, Any]) -> dict[str, str]:
    """The tags by which runs are grouped and filtered."""
    tags = {"kind": record["kind"]}
    if record["kind"] in ("training", "evaluation"):
        tags |= zip(("model", "replicate", "variant", "method"), record["result_id"].split("/"), strict=False)
    elif model := record["settings"].get("model"):
        tags["model"] = model
    if alternative := record.get("alternative"):
        tags["alternative"] = alternative
    return tags


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
