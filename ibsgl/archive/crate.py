"""An archive as an RO-Crate: its metadata, and a ZIP file whose bytes depend on the files alone."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ibsgl.archive.contents import KINDS, Member
from ibsgl.files import written
from ibsgl.provenance import read_records

METADATA = "ro-crate-metadata.json"
# Of the Workflow Run Crate, which contains the other two.
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
_FORMATS = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".md": "text/markdown",
    ".tex": "application/x-tex",
    ".png": "image/png",
    ".pdf": "application/pdf",
    ".html": "text/html",
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".parquet": "application/vnd.apache.parquet",
    ".pt": "application/octet-stream",
}
# The oldest date that a ZIP can have. The date of now would change the bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_archive(out: Path, name: str, members: Sequence[Member]) -> str:
    """Write the archive of the run ``name``. The same members give the same bytes, on every machine.

    Args:
        out: the ZIP file. It appears when it is complete.
        name: the run's name in its config.
        members: those of :func:`ibsgl.archive.collect`.

    Returns:
        The SHA-256 of the archive.

    Raises:
        ValueError: a file changed meanwhile. The message names it.
    """
    members = sorted([*members, Member("README.md", "configs", _readme(name))], key=lambda member: member.name)
    digests = {member.name: _digest(member) for member in members}
    metadata = Member(METADATA, "configs", _metadata(name, members, digests))
    with written(out) as temporary:
        # Without compression: Parquet and PNG have their own, and a compressor's version would change the bytes.
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for member in [metadata, *members]:
                _write(archive, member, digests.get(member.name))
        with temporary.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(member: Member) -> Iterator[bytes]:
    if isinstance(member.content, bytes):
        yield member.content
        return
    with member.content.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def _digest(member: Member) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(member):
        digest.update(chunk)
    return digest.hexdigest()


def _write(archive: zipfile.ZipFile, member: Member, expected: str | None) -> None:
    info = zipfile.ZipInfo(member.name, _DATE)
    # "Unix, a file that all may read": otherwise it would be the system of this machine.
    info.create_system, info.external_attr, info.file_size = 3, 0o100644 << 16, member.size
    digest = hashlib.sha256()
    with archive.open(info, "w") as target:
        for chunk in _chunks(member):
            target.write(chunk)
            digest.update(chunk)
    if expected not in (None, digest.hexdigest()):
        raise ValueError(f"{member.name} changed while it was packed; wait for the end of the run and try again")


def _metadata(name: str, members: Sequence[Member], digests: dict[str, str]) -> bytes:
    """The content of ``ro-crate-metadata.json``. All times come from the records."""
    from rocrate.model import ContextEntity
    from rocrate.rocrate import ROCrate

    records = read_records(Path("results", name, "records"))
    started = min(record["started"] for record in records)
    ended = max(record["started"] + record["seconds"] for record in records)
    newest = max(records, key=lambda record: record["started"] + record["seconds"])
    versions = newest["tags"].get("versions", {})

    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms["sha256"] = "https://w3id.org/ro/terms/workflow-run#sha256"
    crate.name = f"IBSGL Benchmark: the run {name}"
    crate.description = (
        f"Tables, claims and figures of the run {name} of a benchmark that reproduces the paper 'Improving "
        "Interpretability by Information Bottleneck Saliency Guided Localization' (Zhou et al.), with everything that they "
        "were computed from, except the images."
    )
    crate.root_dataset["datePublished"] = _time(ended)
    licence = ContextEntity(crate, "https://spdx.org/licenses/MIT", {"@type": "CreativeWork", "name": "MIT License"})
    licence["description"] = (
        "The licence of the benchmark and of what it writes. The images have a licence of their own."
    )
    crate.add(licence)
    crate.license = licence

    workflow: Any = None
    by_kind: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for member in members:
        facts = _facts(member, digests[member.name])
        if member.name == "code/Snakefile":
            facts |= {"name": "The benchmark's Snakemake workflow", "version": versions.get("ibsgl", "unknown")}
            workflow = crate.add_workflow(
                dest_path=member.name,
                properties=facts,
                main=True,
                lang="snakemake",
                lang_version=versions.get("snakemake"),
            )
            continue
        if member.name == "README.md":
            facts["about"] = crate.root_dataset
        by_kind[member.kind].append(crate.add_file(dest_path=member.name, properties=facts))
    # On the root too: the descriptor alone has it after add_workflow.
    crate.root_dataset["conformsTo"] = [
        crate.add(
            ContextEntity(
                crate, address, {"@type": "CreativeWork", "name": title, "version": address.rsplit("/", 1)[1]}
            )
        )
        for address, title in PROFILES.items()
    ]
    action = crate.add_action(
        workflow,
        "#run",
        object=[file for file in by_kind["configs"] if file.id.startswith("configs/")],
        result=[*by_kind["results"], *by_kind["evaluation"], *by_kind["index"]],
        properties={
            "name": f"The run {name}",
            "description": f"All calls of Snakemake that made the results. The newest record is of the code at commit "
            f"{newest['tags'].get('commit', 'unknown')}; code/source.json and environment/versions.json have the others.",
            "startTime": _time(started),
            "endTime": _time(ended),
            "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        },
    )
    crate.root_dataset["mentions"] = action
    return (json.dumps(crate.metadata.generate(), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _facts(member: Member, digest: str) -> dict[str, Any]:
    description = KINDS[member.kind] if member.name != "README.md" else "what this archive has"
    if member.changed:
        description += ". Absolute paths in it were shortened to <path>"
    return {
        "name": member.name,
        "description": description,
        "contentSize": str(member.size),
        "encodingFormat": _FORMATS.get(Path(member.name).suffix, "text/plain"),
        "sha256": digest,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()


def _readme(name: str) -> bytes:
    kinds = "\n".join(f"- {kind}: {text}" for kind, text in KINDS.items() if kind not in ("images", "other"))
    return f"""# The run {name} of the IBSGL Benchmark

This is an RO-Crate. `{METADATA}` lists each file with its SHA-256. Start with `results/{name}/claims/claims.md`.
`code/source.json` has the commit of the code. `ibsgl verify` checks this archive and prints the commands that make the results
again. An archive has these kinds of files; maps and weights are optional:

{kinds}
""".encode()
