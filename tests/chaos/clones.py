"""Folders like a clone with the minimal config, runs in them, and how a case ended."""

import atexit
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random

from workspaces import SNAKEMAKE, configured, environment, workspace

# What is deleted from a copy of a finished run, from one of these places to the end, so that a run starts in the middle.
MADE = (
    "index.parquet",
    "resnet/0/pretrained/network.pt",
    "resnet/0/pretrained/*.pt",
    "resnet/0/*/network.pt",
    "resnet/0/*/maps",
    "resnet/0/evaluation",
    "tables",
    "claims",
    "figures",
    "report",
)
INDEX, CLASSIFIER, BOTTLENECK, GUIDE, MAPS, EVALUATION, TABLES = range(7)
RESULTS = Path("results", "minimal")
TRACEBACK = "Traceback (most recent call last)"


class Outcome(StrEnum):
    """How a case ended."""

    # Without help, and with the same tables.
    SURVIVED = "survived"
    # It stopped with a line that names the file or the reason. After doing what that says, the tables are the same.
    REPORTED = "reported"
    # It stopped without such a line, or with a traceback. The tables are the same in the end.
    UNEXPLAINED = "unexplained"
    # Finished work was lost, or the tables could not be made again.
    LOST = "lost"
    # It did not stop, and the tables are others.
    WRONG = "silently wrong"


# With any other outcome the folder is kept.
GOOD = (Outcome.SURVIVED, Outcome.REPORTED)


@dataclass
class Case:
    """One disturbance: what was done, how it ended, and what was said."""

    disturbance: str
    what: str
    outcome: Outcome | None = None
    said: str = ""
    seconds: float = 0.0
    folder: str = ""


class Run:
    """Snakemake in ``folder``, as the leader of a process group. Its output is added to ``console``, outside the folder.

    Args:
        limit: kilobytes of the largest file that it can write.
    """

    def __init__(
        self, folder: Path, console: Path, config: str, variables: Mapping[str, str], limit: int | None = None
    ):
        self.folder, self.console = folder, console
        self._before = console.stat().st_size if console.exists() else 0
        command = [str(SNAKEMAKE), "--configfile", config]
        if limit is not None:
            # The output goes through a pipe, because the limit would hold for its file too.
            script = f'set -o pipefail; (ulimit -f {limit}; exec "$@") 2>&1 | cat'
            command = ["bash", "-c", script, "bash", *command]
        with console.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment() | dict(variables),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        # After Ctrl-C: the run is in another process group.
        atexit.register(self.kill)

    def kill(self) -> None:
        """Kill the whole process group, if Snakemake is still alive."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def ends(self, seconds: float | None = None) -> bool:
        """Wait so many seconds, or to the end of the run; whether it has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def code(self) -> int:
        """The exit status, at the end of the run."""
        return self.process.wait()

    def output(self) -> str:
        """What the run has printed."""
        return self.console.read_bytes()[self._before :].decode(errors="replace")

    def reason(self) -> str:
        """The lines in which the run says why it stopped; empty if there are none."""
        found = re.findall(
            r"^.*(?:ibsgl: error|[Tt]he disk of|No space left|File too large|cannot be locked).*$", self.output(), re.M
        )
        return "\n".join(dict.fromkeys(line.strip() for line in found))

    def jobs(self) -> tuple[set[str], set[str]]:
        """The log files of the jobs that were started, and of those that have finished."""
        output, logs = self.output(), {}
        for block in re.findall(r"^(?:local)?rule \w+:\n((?:    .*\n)+)", output, re.M):
            log, number = re.search(r"^    log: (\S+)", block, re.M), re.search(r"^    jobid: (\d+)", block, re.M)
            if log and number:
                logs[number[1]] = log[1]
        finished = re.findall(r"^Finished jobid: (\d+) ", output, re.M)
        return set(logs.values()), {logs[number] for number in finished if number in logs}


def processes(folder: Path, word: str = "") -> Iterator[tuple[int, list[str]]]:
    """Number and command line of every process that works in ``folder`` and has ``word`` in its command line."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")) == folder:
                command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if word in " ".join(command):
                    yield int(process.name), command
        except OSError:
            # It has ended meanwhile.
            continue


def jobs_in(folder: Path) -> list[int]:
    """The processes of the jobs that work in ``folder``, without the shells that started them."""
    return [number for number, command in processes(folder) if len(command) > 1 and command[1].endswith("/bin/ibsgl")]


def tracker_in(folder: Path) -> list[int]:
    """The processes that log the records in ``folder``."""
    return [number for number, _ in processes(folder, "-m ibsgl.tracking")]


def wait_until(condition, seconds: float) -> bool:
    """Whether ``condition()`` holds within so many seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(found)


def tables(folder: Path) -> dict[str, bytes]:
    """The tables of the run in ``folder``: name → content."""
    results = folder / RESULTS
    kinds = (".csv", ".md", ".tex")
    return {
        path.relative_to(results).as_posix(): path.read_bytes()
        for path in results.glob("*/[!.]*")
        if path.suffix in kinds and path.is_file()
    }


@dataclass
class Clone:
    """A folder in which the minimal config runs, and what its tables must be."""

    folder: Path
    console: Path
    expected: Mapping[str, bytes]
    variables: dict[str, str] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)

    def start(self, config: str = "minimal.yaml", limit: int | None = None) -> Run:
        """Start the run."""
        return Run(self.folder, self.console, config, self.variables, limit)

    def run(self) -> Run:
        """The run from its start to its end."""
        run = self.start()
        run.ends()
        self.note(run)
        return run

    def note(self, run: Run) -> None:
        """Remember which jobs have finished in a run that has ended, and which of them had finished before."""
        started, finished = run.jobs()
        self.again |= started & self.finished
        self.finished |= finished

    def judge(self, run: Run | None = None) -> tuple[Outcome, str]:
        """How it ends without a further disturbance, and why. ``run`` is such a run; without it there is one now."""
        run = run or self.run()
        if run.code:
            return Outcome.LOST, run.reason() or f"the run ended with {run.code}; see {self.console}"
        found = tables(self.folder)
        if found != self.expected:
            names = [name for name in sorted({*found, *self.expected}) if found.get(name) != self.expected.get(name)]
            return Outcome.WRONG, f"other tables: {', '.join(names)}"
        if TRACEBACK in run.output():
            return Outcome.UNEXPLAINED, f"a traceback; see {self.console}"
        if self.again:
            return Outcome.LOST, f"finished jobs ran again: {', '.join(sorted(self.again))}"
        return Outcome.SURVIVED, ""

    def nothing_to_do(self) -> tuple[Outcome, str]:
        """Whether one more call has nothing to do."""
        if "Nothing to be done" in self.run().output():
            return Outcome.SURVIVED, ""
        return Outcome.LOST, "a second call had something to do"

    def remove(self) -> None:
        """Delete the folder, as soon as nothing works in it."""
        if not wait_until(lambda: not list(processes(self.folder)), 90):
            for number, _ in processes(self.folder):
                os.kill(number, signal.SIGKILL)
        shutil.rmtree(self.folder)
        self.console.unlink(missing_ok=True)


@dataclass
class Workplace:
    """Where the clones are, and the run that nothing disturbed."""

    place: Path
    random: Random = field(default_factory=Random)
    expected: Mapping[str, bytes] = field(default_factory=dict)
    seconds: float = 60.0
    _number: int = 0

    @property
    def reference(self) -> Path:
        """The folder of the run that nothing disturbed."""
        return self.place / "reference"

    def run_reference(self) -> None:
        """Run without disturbance. All other runs must end with the same tables."""
        began = time.monotonic()
        folder = workspace(self.reference).resolve()
        configured(folder, "minimal")
        run = Run(folder, self.place / "reference.txt", "minimal.yaml", {})
        if run.code:
            raise SystemExit(f"the undisturbed run failed; see {run.console}")
        self.seconds = time.monotonic() - began
        self.expected = tables(folder)
        # A copy would log to this folder: MLflow's store has absolute paths. Without it, a copy makes its own.
        for name in ("mlflow.db", "mlflow.db.lock", "mlruns", RESULTS / "records" / ".logged"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def clone(self, begun: int | None = None, place: Path | None = None) -> Clone:
        """A new folder.

        Args:
            begun: without it nothing is there. Otherwise it is a copy of the undisturbed run, without what that made from
                ``MADE[begun]`` on; ``len(MADE)``: with everything.
            place: where the folder is made, if not beside the others.
        """
        self._number += 1
        name = f"{self._number:03d}"
        folder = (place or self.place) / name
        if begun is None:
            configured(workspace(folder), "minimal")
        else:
            shutil.copytree(self.reference, folder, symlinks=True)
            for pattern in MADE[begun:]:
                for path in (folder / RESULTS).glob(pattern):
                    if begun > CLASSIFIER and path.match("pretrained/network.pt"):
                        continue
                    path.with_name(f".{path.name}.seal").unlink(missing_ok=True)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Clone(folder.resolve(), self.place / f"{name}.txt", self.expected)

    def left(self, begun: int | None) -> float:
        """About how many seconds a run takes from there."""
        return 5 + (self.seconds - 5) * (1 - (begun + 1 if begun is not None else 0) / (TABLES + 2))
