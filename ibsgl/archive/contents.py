"""What goes into an archive: the files of a finished run, its configs, and facts about code and environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from ibsgl import attribution
from ibsgl.archive.private import shortened, without_path_values
from ibsgl.config import Config
from ibsgl.config.steps import step_of
from ibsgl.guidance.registry import LOSSES, TEACHERS
from ibsgl.metrics import further
from ibsgl.provenance import read_records
from ibsgl.source_code import source_digest

# By kind, what it is. The listing and the metadata have this order.
KINDS = {
    "results": "the paper's tables, claims and figures, and what belongs to them",
    "report": "the page to look at, with small pictures of some test images",
    "evaluation": "what was measured, one row per variant, method, image and class",
    "index": "the images by name and class, without the images",
    "configs": "the config files, and the config that they make together",
    "records": "one record per training, evaluation, table and figure",
    "environment": "the pinned packages, and the versions that made the results",
    "code": "the workflow, and commit and digest of the code",
    "logs": "what each job printed, its time and its memory",
    "maps": "stored saliency maps: of methods of many passes, and others for further metrics",
    "weights": "networks, L^ib maps and feature statistics",
    "images": "images of the data set",
    "other": "files that this command does not pack, such as MLflow's log",
}
# These are packed only with an option.
OPTIONAL = {"maps": "--with-maps", "weights": "--with-weights"}
_CLONE = ("constraints.txt", "environment.yml", "Snakefile")
_EVALUATION = ("scores", "losses", "predictions", "curves", "diagnostics")


@dataclass(frozen=True)
class Member:
    """One file of an archive, or a file of the run that is left out.

    Attributes:
        name: its path in the archive, with ``/``.
        kind: one of :data:`KINDS`.
        content: its bytes, or the file that has them.
        changed: whether absolute paths were shortened in it.
    """

    name: str
    kind: str
    content: Path | bytes
    changed: bool = False

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


def collect(
    config: Config, configfiles: Sequence[Path], *, maps: bool = False, weights: bool = False
) -> tuple[list[Member], list[Member]]:
    """What goes into the archive of a run, and what of the run's folder is left out. Both are sorted by name.

    Args:
        config: the config of the run. Its results are in ``results/<name>`` of the working directory, which is a clone.
        configfiles: the files that the config was read from.
        maps, weights: whether these kinds go in.

    Raises:
        ValueError: a result is missing or does not belong to this config. The message names the file and the command.
    """
    folder = Path("results", config.name)
    for needed in _CLONE:
        if not Path(needed).is_file():
            raise ValueError(
                f"there is no {needed} here; call this in the clone of the benchmark that made the results"
            )
    command = " ".join(map(str, configfiles))
    for file in _required(config, folder):
        if not file.is_file():
            raise ValueError(
                f"there is no {file}; the run has not finished: "
                f"snakemake {_target(file, folder)} --cores all --configfile {command}"
            )
    _check_settings(config, folder, command)
    inside, outside = _outside_results(config, configfiles, folder), []
    for path, kind in _files(folder):
        name = path.as_posix()
        if kind in ("images", "other") or (kind == "maps" and not maps) or (kind == "weights" and not weights):
            outside.append(Member(name, kind, path))
        else:
            inside.append(_member(name, kind, path))
    return sorted(inside, key=lambda member: member.name), sorted(outside, key=lambda member: member.name)


def _required(config: Config, folder: Path) -> Iterator[Path]:
    """The files of a finished run: those of the workflow's default target, and what they are made from."""
    yield folder / "index.parquet"
    for model in config.models:
        for replicate in range(config.replicates):
            shards = folder / model / str(replicate) / "evaluation"
            yield shards / "0" / "scores.parquet"
            for shard in range(_shards(shards / "0" / "scores.parquet")):
                yield from (shards / str(shard) / f"{name}.parquet" for name in _EVALUATION)
    for place, model in enumerate(config.models):
        for number in (place + 1, place + 3):
            yield from (folder / "tables" / f"table{number}.{kind}" for kind in ("csv", "md", "tex"))
        yield from (folder / "tables" / f"comparisons_{model}.{kind}" for kind in ("csv", "md"))
        if config.further_metrics:
            yield from (folder / "tables" / f"metrics_{model}.{kind}" for kind in ("csv", "md"))
            yield from (folder / "figures" / f"metric_agreement_{model}.{kind}" for kind in ("png", "pdf", "csv"))
        yield from (
            folder / "tables" / f"{name}_{model}.csv" for name in ("classification", "cross_scoring", "diagnostics")
        )
    yield from (folder / "figures" / f"figure{number}.{kind}" for number in (2, 3, 4) for kind in ("png", "pdf"))
    yield from (folder / "claims" / f"claims.{kind}" for kind in ("csv", "md"))
    yield folder / "records" / "claims.json"
    yield folder / "report" / "index.html"


def _target(file: Path, folder: Path) -> str:
    """What Snakemake makes ``file`` with. It does not look for a file in an output folder, or for a record."""
    if "evaluation" in file.parts:
        return f"{file.parent} --force"
    return f"{folder / 'claims' / 'claims.csv'} --force" if "records" in file.parts else str(file)


def _shards(scores: Path) -> int:
    """In how many pieces the images were measured. The images themselves may be gone."""
    facts = json.loads((pq.read_schema(scores).metadata or {}).get(b"ibsgl", b"{}"))
    return max((settings.get("shards", 1) for settings in facts.get("settings", {}).values()), default=1)


def _check_settings(config: Config, folder: Path, command: str) -> None:
    record = folder / "records" / "claims.json"
    made = next((found["settings"] for found in read_records(record.parent) if found["result_id"] == "claims"), None)
    if made is None:
        raise ValueError(f"{record} is no record of this benchmark; make it again: snakemake {_target(record, folder)}")
    if (key := _difference(made, json.loads(step_of(config, "claims").to_json()))) is not None:
        raise ValueError(
            f"{record}: the results were made with another value of {key}; give the config files of that run with "
            f"--config, or make the results again: snakemake --cores all --configfile {command}"
        )


def _difference(first: Any, second: Any, key: str = "") -> str | None:
    """The first key whose values differ, or ``None``."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in [*first, *(name for name in second if name not in first)]:
            found = _difference(first.get(name), second.get(name), f"{key}.{name}" if key else name)
            if found is not None:
                return found.removeprefix("config.")
        return None
    return None if first == second else key


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each file of a run's folder with its kind."""
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            yield path, _kind(path.relative_to(folder))


def _kind(path: Path) -> str:
    """The kind of a file, by its path in the run's folder or in that of an alternative."""
    parts = path.parts[2:] if path.parts[0] == "alternatives" else path.parts
    if any(part.startswith(".") for part in path.parts) or not parts:
        return "other"
    if parts in (("data.json",), ("passes.json",)):
        return "records"
    if parts == ("index.parquet",):
        return "index"
    top = {"tables": "results", "claims": "results", "figures": "results", "report": "report", "data": "images"}
    top |= {"records": "records", "logs": "logs", "benchmarks": "logs"}
    if len(parts) > 1 and parts[0] in top:
        # It is about the tracking server, whose address may be private, and not about the results.
        return "other" if parts == ("logs", "mlflow.log") else top[parts[0]]
    if path.suffix == ".pt":
        return "weights"
    folders = {"evaluation": "evaluation", "metrics": "evaluation", "maps": "maps", "light_maps": "maps"}
    for name, kind in folders.items():
        if path.suffix == ".parquet" and name in parts:
            return kind
    return "other"


def _member(name: str, kind: str, path: Path) -> Member:
    content = shortened(path, kind)
    return Member(name, kind, path) if content is None else Member(name, kind, content, changed=True)


def _outside_results(config: Config, configfiles: Sequence[Path], folder: Path) -> list[Member]:
    """The members that are no files of the run's folder."""
    resolved = without_path_values(config.model_dump(mode="json"))
    members = [Member("configs/resolved.yaml", "configs", _yaml(resolved))]
    members += [_member(f"configs/{n}_{file.name}", "configs", file) for n, file in enumerate(configfiles, 1)]
    members += [
        _member(f"environment/{name}", "environment", Path(name)) for name in ("constraints.txt", "environment.yml")
    ]
    workflow = [Path("Snakefile"), *sorted(Path("workflow", "rules").glob("*.smk"))]
    members += [_member(f"code/{file.as_posix()}", "code", file) for file in workflow]
    made = _made_with(folder)
    versions = [{key: facts[key] for key in ("versions", "device", "platform", "records")} for facts in made]
    commits = [{key: facts[key] for key in ("commit", "dirty", "records")} for facts in made]
    members.append(Member("environment/versions.json", "environment", _json(_summed(versions))))
    members.append(
        Member("code/source.json", "code", _json({"made_with": _summed(commits), "digests": source_digests(config)}))
    )
    return members


def _made_with(folder: Path) -> list[dict[str, Any]]:
    """Code, versions and machine of each record, oldest first. Unlike those of now, they are the results' own."""
    facts = {"commit": "unknown", "dirty": True, "versions": {}, "device": "unknown", "platform": "unknown"}
    return [
        facts | {key: record["tags"].get(key, facts[key]) for key in facts} | {"records": 1}
        for record in read_records(folder / "records")
    ]


def _summed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Equal rows as one, with the number of records."""
    summed: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = json.dumps(row, sort_keys=True)
        summed[key] = row | {"records": summed[key]["records"] + 1 if key in summed else 1}
    return list(summed.values())


def source_digests(config: Config) -> dict[str, str]:
    """By package, a digest of the code: the benchmark's, and that of a user's own networks, methods, metrics and guidance."""
    own = {module for model in config.models for module in config.network(model).modules}
    own |= {attribution.module_of(attribution.method_of(*row)) for row in config.methods.items()}
    own |= {further.module_of(config.further_metric(row).use) for row in config.further_metrics}
    for variant in config.trained_variants:
        guidance = config.guidance_of(variant)
        own |= {LOSSES.module_of(guidance.loss)} if guidance.loss in LOSSES.names() else set()
        own |= {TEACHERS.module_of(guidance.teacher)} if guidance.teacher in TEACHERS.names() else set()
    modules = {"ibsgl", "baselines"} | {name for name in own if name.partition(".")[0] not in ("ibsgl", "baselines")}
    return {module: source_digest(module) for module in sorted(modules)}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _yaml(content: Any) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
