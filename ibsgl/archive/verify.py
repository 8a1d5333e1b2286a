"""Checking an archive: is every byte as it was packed, what differs here, and how are the results made again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from ibsgl import provenance
from ibsgl.archive.crate import METADATA
from ibsgl.config import Config, ConfigError, parse
from ibsgl.source_code import source_digest

CONFIG, SOURCE, VERSIONS = "configs/resolved.yaml", "code/source.json", "environment/versions.json"
# What Python's zipfile raises on damaged files, besides OSError.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
    OverflowError,
)


@dataclass(frozen=True)
class Facts:
    """What an archive tells about its run.

    Attributes:
        config: the keys and values of the config.
        made_with: commits of the code, each with ``dirty`` and the number of ``records``.
        digests: by package, the digest of the code.
        versions: by package, the versions that made the results.
        claims: the keys of the claims.
        tables: the numbers of the tables.
    """

    config: dict[str, Any]
    made_with: list[dict[str, Any]]
    digests: dict[str, str]
    versions: dict[str, list[str]]
    claims: list[str]
    tables: list[str]


def problems(archive: Path) -> list[str]:
    """What is wrong with the file ``archive``, one line each; nothing if every file is as it was packed.

    Each file is compared with the SHA-256 in the metadata. The metadata itself have the ZIP's own checksum only, so that a
    person can change both. The SHA-256 of the whole archive shows that, if it was published.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return _problems(opened)
    except FileNotFoundError:
        raise
    except (*_DAMAGE, OSError) as error:
        return [f"{archive}: not readable as a ZIP file ({_line(error)})"]


def _problems(opened: zipfile.ZipFile) -> list[str]:
    names = [name for name in opened.namelist() if not name.endswith("/")]
    found = [f"{name!r} is in the archive {times} times" for name, times in Counter(names).items() if times > 1]
    digests: dict[str, str | None] = {}
    broken = {}
    for name in dict.fromkeys(names):
        digests[name], broken[name] = _digest(opened, name)
    if METADATA not in digests:
        return [*found, f"{METADATA} is missing; this is no archive of `ibsgl archive`"]
    if digests[METADATA] is None:
        return [*found, f"{METADATA!r} is damaged ({broken[METADATA]}), so that no other file can be checked"]
    try:
        expected = _expected(json.loads(opened.read(METADATA)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [*found, f"{METADATA} is not the metadata of an archive of `ibsgl archive`"]
    for name in sorted(expected.keys() | digests.keys() | {CONFIG, SOURCE, VERSIONS}):
        if name == METADATA:
            continue
        if name not in digests:
            found.append(f"{name!r} is missing")
        elif name not in expected:
            found.append(f"{name!r} was added: the metadata do not have it")
        elif digests[name] is None:
            found.append(f"{name!r} is damaged ({broken[name]})")
        elif digests[name] != expected[name]:
            found.append(f"{name!r} was changed: its SHA-256 is {digests[name]}, not {expected[name]}")
    return found


def _digest(opened: zipfile.ZipFile, name: str) -> tuple[str | None, str]:
    """The SHA-256 of a file, or ``None`` and the reason."""
    digest = hashlib.sha256()
    try:
        with opened.open(name) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except (*_DAMAGE, OSError) as error:
        return None, _line(error)
    return digest.hexdigest(), ""


def _expected(metadata: Any) -> dict[str, str]:
    """The SHA-256 of each file, as the metadata have it."""
    types = {"File"}
    return {
        unquote(entity["@id"]): str(entity["sha256"])
        for entity in metadata["@graph"]
        if types & set([entity["@type"]] if isinstance(entity["@type"], str) else entity["@type"])
    }


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_facts(archive: Path) -> Facts:
    """The facts in an archive without :func:`problems`.

    Raises:
        ValueError: a file in it has another form. The message is one line.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            config = yaml.safe_load(opened.read(CONFIG))
            source, versions = json.loads(opened.read(SOURCE)), json.loads(opened.read(VERSIONS))
            folder = f"results/{config['name']}"
            claims = csv.DictReader(io.StringIO(opened.read(f"{folder}/claims/claims.csv").decode()))
            names = opened.namelist()
            return Facts(
                config=config,
                made_with=[{key: row[key] for key in ("commit", "dirty", "records")} for row in source["made_with"]],
                digests=dict(source["digests"]),
                versions={
                    package: sorted({str(row["versions"][package]) for row in versions if package in row["versions"]})
                    for package in dict.fromkeys(package for row in versions for package in row["versions"])
                },
                claims=list(dict.fromkeys(row["claim"] for row in claims)),
                tables=[number for number in "1234" if f"{folder}/tables/table{number}.csv" in names],
            )
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{archive} is no archive of `ibsgl archive` ({_line(error)})") from None


def compare(facts: Facts) -> list[str]:
    """Commit, code and versions of the archive, and what differs here, one line each."""
    here = provenance.collect("cpu")
    lines = [
        f"made with commit {row['commit']!s}{' and changed files' if row['dirty'] else ''}: {row['records']} records"
        for row in facts.made_with
    ]
    lines.append(f"here: commit {here['commit']}{' and changed files' if here['dirty'] else ''}")
    for package, digest in facts.digests.items():
        if (own := _own_digest(package)) != digest:
            lines.append(f"the code of {package!s} {'differs here' if own else 'is not here'}")
    if len(lines) == len(facts.made_with) + 1:
        lines.append("the code that computes values is the same here; comments and layout are not compared")
    different = [
        f"{package} {' and '.join(versions)}, here {here['versions'].get(package, 'none')}"
        for package, versions in facts.versions.items()
        if versions != [str(here["versions"].get(package))]
    ]
    return [*lines, f"other versions here: {'; '.join(different)}" if different else "the same versions here"]


def _own_digest(package: str) -> str | None:
    try:
        return source_digest(package)
    except (ModuleNotFoundError, ValueError, SyntaxError):
        return None


def reproduce(facts: Facts, archive: Path) -> list[str]:
    """How to make the results again: where the images come from, and a command for the claims, each table and the figures."""
    try:
        config = parse(facts.config)
    except ConfigError as error:
        return [f"this version of the benchmark cannot use {CONFIG} ({error}); take the commit of the archive"]
    folder = Path(archive.name).stem
    call = f"--cores all --configfile {folder}/{CONFIG}"
    return [
        _images(config),
        f"unpack: python -m zipfile -e {archive} {folder}",
        f"claims {', '.join(facts.claims)}: snakemake claims {call}",
        *(f"table {number}: snakemake table{number} {call}" for number in facts.tables),
        f"figures: snakemake figures {call}",
    ]


def _images(config: Config) -> str:
    if config.data.generated:
        return "the images are generated again"
    if Path(config.data_root).is_dir():
        return f"the images are in {config.data_root}"
    if config.data.archives:
        return f"the images are downloaded to {config.data_root}"
    return f"the images are not here: put them in a folder and set data.root in {CONFIG} (it is {config.data_root!r})"
