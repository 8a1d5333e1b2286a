"""Checks before a run: the installation, the machine, the config, its data and weights, and MLflow.

Nothing is downloaded, trained or changed. A *problem* stops a run, now or later. A *note* does not. A check that fails itself
is a problem with the reason, so that the other checks still run.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlsplit

from ibsgl import provenance, tracking
from ibsgl.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console

    from ibsgl.config import Config
    from ibsgl.networks.registry import NetworkSettings

State = Literal["ok", "note", "problem"]
STYLES: dict[State, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}
# Seconds to wait for a tracking server.
PATIENCE = 5.0
_GB, _MB = 1e9, 1e6
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_KEPT = "the run works without it: its records are kept and logged later"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked, in one word.
        found: what is there.
        advice: what to do. Empty if there is nothing to do.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def run_checks(files: Sequence[Path]) -> Iterator[Check]:
    """All checks for the config in ``files``, each as soon as it has run.

    Args:
        files: the config files, each on top of the last.
    """
    yield guarded("python", check_python)
    yield guarded("packages", check_packages)
    yield guarded("code", check_code)
    config, result = _read_config(files)
    yield result
    yield guarded("device", lambda: check_device(config.device if config else "auto"))
    yield guarded("cores", lambda: check_cores(config.threads if config else 1))
    yield guarded("disk", lambda: check_disk(config))
    if config is not None:
        yield guarded("data", lambda: check_data(config))
        for place, network in _networks(config).items():
            yield guarded("weights", lambda place=place, network=network: check_weights(place, network))  # type: ignore[misc]
    yield guarded("mlflow", lambda: check_mlflow(tracking.tracking_uri()))
    if config is not None:
        names = " ".join(f"--config {file}" for file in files)
        yield guarded("records", lambda: check_records(Path(f"results/{config.name}/records"), names))


def show(checks: Iterable[Check], console: Console) -> bool:
    """Print one line per check and a summary. Returns whether there is no problem."""
    from rich.text import Text

    states: Counter[State] = Counter()
    for check in checks:
        states[check.state] += 1
        line = Text.assemble((f"{check.state:<9}", STYLES[check.state]), f"{check.name:<10}{check.found}")
        if check.advice:
            # No full stop: the line may end with a path or a command.
            line.append(f". {check.advice[0].upper()}{check.advice[1:]}")
        console.print(line, soft_wrap=True)
    counts = [f"{states[state]} {state}{'s' if states[state] != 1 else ''}" for state in ("problem", "note")]
    console.print(", ".join(counts), soft_wrap=True)
    return not states["problem"]


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """The result of ``check``, or a problem that says why it failed."""
    try:
        return check()
    except Exception as error:
        # A broken package, driver or file can raise anything, and the next checks may still help.
        return Check(
            name, "problem", f"this check failed ({_reason(error)})", "repair what it names, then run it again"
        )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def check_python() -> Check:
    """The version of Python, compared with that which the package needs."""
    from packaging.specifiers import SpecifierSet

    found = f"{platform.python_version()} at {sys.executable}"
    needed = metadata.metadata("ibsgl")["Requires-Python"] or ""
    if platform.python_version() not in SpecifierSet(needed, prereleases=True):
        return Check("python", "problem", found, f"install Python {needed}")
    return Check("python", "ok", found)


def check_packages() -> Check:
    """The versions of the installed packages, compared with those which the package needs."""
    from packaging.requirements import Requirement

    wrong = []
    for line in metadata.requires("ibsgl") or ():
        requirement = Requirement(line)
        # The requirements of extras have a marker that is false without the extra.
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is not installed")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, needed is {requirement.specifier}")
    if wrong:
        return Check("packages", "problem", "; ".join(wrong), "install again with the command in README.md")
    versions = provenance.package_versions()
    return Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def check_code() -> Check:
    """The commit of the code, and whether files are changed."""
    commit, changed = provenance.own_commit()
    if commit == "unknown":
        return Check("code", "note", "no git commit", "results then name no commit; clone the repository to have one")
    if changed:
        return Check(
            "code", "note", f"commit {commit[:12]} with changed or new files", "commit before a run you report"
        )
    return Check("code", "ok", f"commit {commit[:12]}, nothing changed")


def _read_config(files: Sequence[Path]) -> tuple[Config | None, Check]:
    """The config, without the checks of data and weights, which have lines of their own."""
    names = " + ".join(map(str, files))
    try:
        from ibsgl import config

        loaded = config.read(files, data=False)
    except Exception as error:
        # An own network or method of the user can raise anything when it is imported.
        known = isinstance(error, ValueError)
        found = " ".join(str(error).split()) if known else _reason(error)
        return None, Check("config", "problem", found, f"correct {names}; data, weights and records are not checked")
    return loaded, Check("config", "ok", f"{names}: {loaded.name}, networks {', '.join(loaded.models)}")


def check_device(wanted: str = "auto") -> Check:
    """The device of a run, and the GPUs that torch finds.

    Args:
        wanted: the config's ``device``: ``auto``, ``cpu`` or ``cuda``.
    """
    override = os.environ.get("IBSGL_GPU")
    if override not in (None, "0", "1"):
        return Check("device", "problem", f"IBSGL_GPU is {override!r}", "set it to 0 (CPU) or 1 (GPU), or unset it")
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = Counter(_card(index) for index in range(count))
    gpus = ", ".join(f"{number} × {card}" for card, number in cards.items())
    on_gpu = wanted == "cuda" or (wanted == "auto" and (override == "1" or (override is None and count > 0)))
    why = f"device: {wanted} in the config" if wanted != "auto" else f"IBSGL_GPU={override}"
    if not count:
        if on_gpu:
            found = f"{why} needs a GPU, but torch {torch.__version__} finds none"
            return Check("device", "problem", found, "install a driver and a torch with CUDA, or use the CPU")
        found = f"CPU: {provenance.processor()}; torch finds no GPU"
        if caught or shutil.which("nvidia-smi"):
            reason = " ".join(str(caught[0].message).split())[:200] if caught else "nvidia-smi is installed"
            return Check("device", "note", f"{found} ({reason})", "to use a GPU, install a torch that fits its driver")
        return Check("device", "ok", found)
    if not on_gpu:
        return Check("device", "note", f"CPU, because of {why}; GPUs here: {gpus}", "remove that setting to use a GPU")
    if any("no bf16" in card for card in cards):
        return Check("device", "note", f"GPU: {gpus}", "methods with many masks are slow without bf16")
    if count > 1:
        return Check("device", "note", f"GPU: {gpus}", f"to use all, add --resources gpu={count} to snakemake")
    return Check("device", "ok", f"GPU: {gpus}")


def _card(index: int) -> str:
    import torch

    facts = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return f"{facts.name} ({facts.total_memory / _GB:.0f} GB, {'bf16' if bf16 else 'no bf16'})"


def check_cores(threads: int = 1) -> Check:
    """The CPU cores that this process may use.

    Args:
        threads: the config's ``threads``.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > usable:
        return Check("cores", "note", f"{usable} CPU cores, threads: {threads}", f"set threads to {usable} or less")
    return Check("cores", "ok", f"{usable} CPU core{'s' if usable != 1 else ''}")


def check_disk(config: Config | None) -> Check:
    """Free space in the working directory, compared with the plan of a run if it is known without building networks."""
    free = shutil.disk_usage(".").free
    found = f"{free / _GB:.1f} GB free in {Path.cwd()}"
    if not os.access(".", os.W_OK):
        return Check("disk", "problem", f"{Path.cwd()} cannot be written to", "run in a folder that you may write to")
    needed = _needed_bytes(config) if config else None
    if config is None or needed is None:
        return Check("disk", "ok", f"{found}; how much the run needs is not known")
    left = max(0, needed - _folder_size(Path(f"results/{config.name}")))
    found += f"; the run needs at most {left / _GB:.1f} GB more"
    return (
        Check("disk", "problem", found, "free space, or work on another disk")
        if left > free
        else Check("disk", "ok", found)
    )


def _needed_bytes(config: Config) -> int | None:
    """The disk space of a run; ``None`` if a network of the user must be built for it, or the images cannot be counted."""
    from ibsgl.plan import make_plan

    if not all(config.network(model).family.builds_on_meta for model in config.models):
        return None
    try:
        sizes = make_plan(config, calibration=False).disk_bytes
    except (ValueError, OSError):
        return None
    here = _has_files(Path(config.data_root))
    return sum(size for what, size in sizes.items() if not (here and what in ("archives", "data, unpacked")))


def _folder_size(folder: Path) -> int:
    files = (Path(path, name) for path, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files if file.is_file())


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def check_data(config: Config) -> Check:
    """The data folder: there, or generated or downloaded by the run."""
    root, download = Path(config.data_root), config.data.archives
    if _has_files(root):
        return Check("data", "ok", f"{root} is there")
    if config.data.generated:
        return Check("data", "ok", f"{root} will be generated")
    if download is None:
        return Check(
            "data", "problem", f"data.root: {root} is empty or not there", "put the images there, or change the key"
        )
    missing, wrong = 0, []
    for archive in download.archives:
        here = [Path(place, archive.name) for place in (download.folder, *download.mirrors) if "://" not in place]
        file = next((file for file in here if file.is_file()), None)
        if file is None:
            part = Path(download.folder, f"{archive.name}.part")
            missing += archive.bytes - (part.stat().st_size if part.is_file() else 0)
        elif (size := file.stat().st_size) != archive.bytes:
            wrong.append(f"{file} has {size} bytes instead of {archive.bytes}")
    if wrong:
        return Check(
            "data", "problem", "; ".join(wrong), "put the right file there, or delete it to have it downloaded"
        )
    if missing:
        found = f"{root} is not there; {max(missing, 0) / _MB:.0f} MB will be downloaded"
        return Check("data", "note", found, f"without a network, put the archives into {download.folder}")
    return Check("data", "ok", f"{root} is not there; the archives are, and will be unpacked")


def _networks(config: Config) -> dict[str, NetworkSettings]:
    """The networks of the run, and those of its alternatives that start from other weights, by place in the config."""
    networks = {f"models.{model}": config.network(model) for model in config.models}
    known = {(network.arch, network.weights) for network in networks.values()}
    for name in config.alternatives:
        other = config.alternative(name)
        for model in other.models:
            network = other.network(model)
            if (network.arch, network.weights) not in known:
                known.add((network.arch, network.weights))
                networks[f"alternatives.{name}.models.{model}"] = network
    return networks


def check_weights(place: str, network: NetworkSettings) -> Check:
    """The weights that the training of ``network`` starts from.

    Args:
        place: the network's place in the config, such as ``models.resnet50``.
    """
    what = f"{place}: {network.family.describe(network.arch)}"
    if network.weights is None:
        return Check("weights", "ok", f"{what}, no file needed")
    if network.weights_file is not None:
        if Path(network.weights_file).is_file():
            return Check("weights", "ok", f"{what}, {network.weights_file}")
        found = f"{place}.weights: there is no file {network.weights_file!r}"
        return Check("weights", "problem", found, "put the file there, or change the key")
    file, megabytes = _download_of(network.arch, network.weights)
    if file.is_file():
        return Check("weights", "ok", f"{what}, {file}")
    size = f" ({megabytes:.0f} MB)" if megabytes else ""
    found = f"{what}, {network.weights}{size} will be downloaded"
    return Check("weights", "note", found, f"without a network, put {file.name} into {file.parent}")


# Not beside the network's code: a change there runs the training again.
def _download_of(arch: str, weights: str) -> tuple[Path, float | None]:
    """Where torch keeps torchvision's weights, and the size of the download in MB if torchvision states it."""
    import torch
    from torchvision import models

    known = models.get_model_weights(arch)
    chosen = known.DEFAULT if weights == "imagenet" else known[weights]
    # torchvision states the size in units of 2**20 bytes.
    size = chosen.meta.get("_file_size")
    file = Path(torch.hub.get_dir(), "checkpoints", chosen.url.rpartition("/")[2])
    return file, None if size is None else size * 2**20 / _MB


def check_mlflow(uri: str) -> Check:
    """Whether the store or server at ``uri`` can be used. A server has :data:`PATIENCE` seconds to answer."""
    printed = redacted(uri)
    if uri.startswith("http"):
        # Its import can take a second, which is not the server's.
        import requests  # noqa: F401
    if fault := _within(PATIENCE, lambda: _fault(uri)):
        return Check("mlflow", "note", f"{printed}: {redacted(fault)}", _KEPT)
    return Check("mlflow", "ok", f"{printed} can be used")


def _within(seconds: float, find_fault: Callable[[], str]) -> str:
    """The fault that ``find_fault`` returns, or that it takes too long.

    It runs in a thread, because no timeout limits the look-up of a server's name.
    """
    faults: list[str] = []

    def run() -> None:
        try:
            faults.append(find_fault())
        except Exception as error:
            faults.append(_reason(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return faults[0] if faults else f"no answer in {seconds:.0f} s"


def _fault(uri: str) -> str:
    """Why the store or server at ``uri`` cannot be used. Empty if it can, or if this kind cannot be checked."""
    file = tracking.store_file(uri)
    if file is not None:
        return _database_fault(file)
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind in ("http", "https"):
        return _server_fault(uri)
    if kind in _DATABASE_PORTS:
        import socket

        socket.create_connection((parts.hostname or "localhost", parts.port or _DATABASE_PORTS[kind]), PATIENCE).close()
        return ""
    return _folder_fault(Path(parts.path)) if kind in ("", "file") else f"{kind}:// cannot be checked here"


def _database_fault(file: Path) -> str:
    if not file.is_file():
        return _folder_fault(file.parent)
    if not os.access(file, os.W_OK):
        return "the file cannot be written to"
    try:
        # mode=ro: a check must not create a file.
        connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=PATIENCE / 2)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)
    return _folder_fault(file.parent)


def _folder_fault(folder: Path) -> str:
    """Why no file can be made in ``folder``, which may not exist yet."""
    there = next((place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()), folder)
    return "" if there.is_dir() and os.access(there, os.W_OK) else f"{there} cannot be written to"


def _server_fault(uri: str) -> str:
    import requests

    with requests.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE, stream=True) as response:
        # A server in front of MLflow may not have this page. It answers all the same.
        refused = response.status_code in (401, 403, 407) or response.status_code >= 500
        return f"the server answers {response.status_code} {response.reason}" if refused else ""


def check_records(directory: Path, options: str) -> Check:
    """Records of finished steps that MLflow does not have yet.

    Args:
        directory: the folder with the records of one config.
        options: the options of ``ibsgl track`` for this config.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pending = len(tracking.pending_records(directory))
    if caught:
        return Check("records", "note", str(caught[0].message), "MLflow does not show the result that it belongs to")
    if pending:
        found = f"{pending} record{'s are' if pending != 1 else ' is'} not logged to MLflow yet"
        return Check("records", "note", found, f"the next run logs them; or run: ibsgl track {options}")
    return Check("records", "ok", "all records are logged to MLflow")
