"""What is done to a run, and what must be true afterwards. Each function yields its cases as they end."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, contextmanager
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from random import Random

import flips
from clones import (
    CLASSIFIER,
    EVALUATION,
    GOOD,
    GUIDE,
    INDEX,
    MADE,
    MAPS,
    RESULTS,
    TABLES,
    TRACEBACK,
    Case,
    Clone,
    Outcome,
    Run,
    Workplace,
    jobs_in,
    tracker_in,
    wait_until,
)
from workspaces import configured, environment

# Where a run on the small disk begins: with nothing, or in the middle.
BEGUN = (None, CLASSIFIER, GUIDE, MAPS, EVALUATION, TABLES)
# Seconds in which the jobs of a killed Snakemake must end.
ORPHANS = 20
# Megabytes of the small disk. Below 64 MB free the product calls a disk full.
DISK = 256


def ended(case: Case, clone: Clone, outcome: Outcome, said: str) -> Case:
    """The case with its outcome. The folder is deleted, or kept if it shows a defect."""
    case.outcome, case.said = outcome, said
    if outcome in GOOD:
        clone.remove()
    else:
        case.folder = str(clone.folder)
    return case


def stopped(run: Run, *words: str) -> tuple[Outcome, str]:
    """Whether a run that stopped said why: in a line with one of ``words``, if any are given, and without a traceback."""
    said = run.reason()
    if TRACEBACK in run.output():
        return Outcome.UNEXPLAINED, f"a traceback; {said}"
    if not said or (words and not any(word in said for word in words)):
        return Outcome.UNEXPLAINED, said or f"no reason on the console; see {run.console}"
    return Outcome.REPORTED, said


def worse(*found: tuple[Outcome, str]) -> tuple[Outcome, str]:
    """The worst of several outcomes, with what was said."""
    return max(found, key=lambda each: list(Outcome).index(each[0]))


def timed(cases: Callable[..., Iterator[list[Case]]]) -> Callable[..., Iterator[list[Case]]]:
    """Give each case that ``cases`` yields the seconds since the one before, shared by those that end together."""

    @wraps(cases)
    def run(workplace: Workplace, number: int) -> Iterator[list[Case]]:
        began = time.monotonic()
        for together in cases(workplace, number):
            for case in together:
                case.seconds = round((time.monotonic() - began) / len(together), 1)
            yield together
            began = time.monotonic()

    return run


def _kill(run: Run, victim: str, random: Random) -> str:
    """Kill a part of a run; what was killed. Nothing if it ended before."""
    if victim == "a job":
        wait_until(lambda: jobs_in(run.folder) or run.process.poll() is not None, 60)
        if not (jobs := jobs_in(run.folder)):
            return ""
        try:
            job = random.choice(jobs)
            step = Path(f"/proc/{job}/cmdline").read_bytes().split(b"\0")[2].decode()
            os.kill(job, signal.SIGKILL)
        except (OSError, IndexError):
            return ""
        run.ends()
        return f"the job {step}"
    (os.killpg if victim == "the group" else os.kill)(run.process.pid, signal.SIGKILL)
    run.ends()
    return victim


@timed
def kills(workplace: Workplace, number: int) -> Iterator[list[Case]]:
    """SIGKILL at random moments of the whole process group, of Snakemake alone, or of one job; then the same command again.

    A folder gets kills until a run ends before its own. Then it is compared, and a new folder begins.
    """
    random, done = workplace.random, 0
    while done < number:
        clone, cases, problems, run = workplace.clone(random.choice((None, CLASSIFIER, EVALUATION))), [], [], None
        while done < number:
            run, after = clone.start(), random.uniform(2, 0.3 * workplace.seconds)
            victim, at_once = random.choice(["the group", "Snakemake alone", "a job"]), random.random() < 0.5
            if run.ends(after) or not (killed := _kill(run, victim, random)):
                run.ends()
                break
            clone.note(run)
            done += 1
            cases.append(Case("kills", f"SIGKILL of {killed} after {after:.1f} s"))
            if victim == "Snakemake alone" and at_once:
                cases[-1].what += ", and the next start at once"
            elif victim == "Snakemake alone" and not wait_until(lambda c=clone: not jobs_in(c.folder), ORPHANS):
                problems.append((Outcome.LOST, f"jobs did not end within {ORPHANS} s"))
            run = None
        if run:
            clone.note(run)
        if not cases:
            clone.remove()
            continue
        outcome, said = worse(clone.judge(run), clone.nothing_to_do(), *problems)
        ended(cases[-1], clone, outcome, said)
        for case in cases:
            case.outcome, case.said, case.folder = outcome, said, cases[-1].folder
        yield cases


@contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A disk of :data:`DISK` megabytes in memory; ``None`` where it cannot be mounted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(place)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield place if mounted else None
    finally:
        if mounted:
            # Also while a last process still works there.
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def fill(file: Path) -> None:
    """Take all free space with ``file``."""
    with file.open("wb", buffering=0) as filler:
        for size in (2**20, 2**12):
            try:
                while filler.write(bytes(size)):
                    pass
            except OSError:
                continue


@timed
def full_disks(workplace: Workplace, number: int) -> Iterator[list[Case]]:
    """A disk that is full from a random moment on, then is not, and the same command again.

    Without the right to mount one, the kernel limits the size of each file instead.
    """
    random = workplace.random
    for _ in range(number):
        begun = random.choice(BEGUN)
        after = random.uniform(2, workplace.left(begun))
        with small_disk(workplace.place / "disk") as disk:
            clone = workplace.clone(begun, disk)
            if disk:
                case = Case("full disk", f"after {after:.1f} s of a run from {begun_at(begun)}")
                run = clone.start()
                if not run.ends(after):
                    fill(disk / "filler")
                run.ends()
                found = (Outcome.SURVIVED, "")
                if run.code:
                    found = stopped(run, "The disk of", "the disk of")
                (disk / "filler").unlink(missing_ok=True)
            else:
                limit = random.randint(10, 300)
                case = Case("full disk", f"no file above {limit} kB in a run from {begun_at(begun)}")
                run = clone.start(limit=limit)
                run.ends()
                found = stopped(run) if run.code else (Outcome.SURVIVED, "")
            clone.note(run)
            outcome, said = worse(clone.judge(None if run.code else run), found)
            if outcome not in GOOD and disk:
                # The disk ends with the case.
                clone.folder = Path(shutil.copytree(clone.folder, workplace.place / clone.folder.name, symlinks=True))
            yield [ended(case, clone, outcome, said)]


def begun_at(begun: int | None) -> str:
    """Where a run begins, in words."""
    return "the start" if begun is None else f"{MADE[begun]} on"


def _obey(clone: Clone, run: Run, damaged: Path, content: bytes) -> None:
    """Do what the lines of a run that stopped say."""
    for said in re.findall(r"ibsgl: error: (.*)", run.output()):
        file = Path(said.split()[0].rstrip(":"))
        if "put that back" in said or "replace the file" in said:
            (clone.folder / damaged).write_bytes(content)
            continue
        if folder := re.search(r"delete the folder (\S+) and", said):
            file = Path(folder[1])
        elif beside := re.search(r"delete (\S+) beside it", said):
            file = file.with_name(beside[1])
        path = clone.folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def names_of(file: Path) -> tuple[str, str]:
    """What a line about a damaged file may name: the file, without ``.seal``; or its data set, of which lines follow."""
    return file.name.removeprefix(".").removesuffix(".seal"), f"{flips.DATA}: "


def _flip_in_a_run(workplace: Workplace, begun: int, checkpoint: bool) -> Case:
    """A bit that is flipped between two runs, in a file that the second one reads."""
    random = workplace.random
    clone = workplace.clone(begun)
    file = None
    if checkpoint:
        run = clone.start()
        found: list[Path] = []
        wait_until(
            lambda: found.extend(clone.folder.glob(f"{RESULTS}/resnet/0/*/[!.]*.checkpoint")) or found or run.ends(0),
            120,
        )
        run.kill()
        # The job may have finished meanwhile.
        file = next((each.relative_to(clone.folder) for each in found if each.exists()), None)
    if file is None:
        with chdir(clone.folder):
            ((_, file),) = flips.draw(random, flips.commands(clone.folder), 1)
    content = (clone.folder / file).read_bytes()
    bit = flips.flip(clone.folder / file, random)
    case = Case("bit flips, Snakemake", f"{bit} in {file}, before a run from {begun_at(begun)}")
    run, found = clone.run(), (Outcome.SURVIVED, "")
    for _ in range(3):
        if not run.code:
            break
        found = worse(found, stopped(run, *names_of(file)))
        _obey(clone, run, file, content)
        run = clone.run()
    # What was made from a damaged file is made again.
    clone.again.clear()
    return ended(case, clone, *worse(clone.judge(run), found))


@timed
def bit_flips(workplace: Workplace, number: int) -> Iterator[list[Case]]:
    """A bit flipped in a file that a job reads: one in 25 between two runs, the others before one command is called."""
    in_runs = max(1, number // 25) if number else 0
    for each in range(in_runs):
        begun = (TABLES, GUIDE, EVALUATION, INDEX, MAPS)[each % 5]
        yield [_flip_in_a_run(workplace, begun, checkpoint=begun == GUIDE)]
    if number == in_runs:
        return
    clone = workplace.clone(len(MADE))
    made = flips.commands(clone.folder, "--forceall")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        arguments = (clone.folder, made, workplace.random.randrange(2**32), number - in_runs)
        calls = pool.submit(flips.call_with_flips, *arguments).result()
    cases = []
    for call in calls:
        if call["said"]:
            first, *_ = call["said"].splitlines()
            plain = any(name in first for name in names_of(Path(call["file"])))
            outcome = Outcome.REPORTED if plain else Outcome.UNEXPLAINED
        else:
            outcome = Outcome.SURVIVED if call["made"] == "the same" else Outcome.WRONG
        what = f"{call['bit']} in {call['file']}, before ibsgl {call['command']}"
        cases.append(Case("bit flips, command", what, outcome, call["said"] or f"made {call['made']}"))
    clone.remove()
    yield cases


@timed
def pairs(workplace: Workplace, number: int) -> Iterator[list[Case]]:
    """Two runs at once in a folder: the same command twice; or another config, whose Snakemake was killed just before."""
    random = workplace.random
    for each in range(number):
        begun = random.choice((GUIDE, MAPS, EVALUATION))
        if each % 2 == 0:
            clone, after = workplace.clone(begun), random.uniform(0, 3)
            case = Case("two runs", f"the same command again after {after:.1f} s, from {begun_at(begun)}")
            first = clone.start()
            time.sleep(after)
            # Two files, so that the outputs stay apart.
            second = Clone(clone.folder, clone.console.with_suffix(".second.txt"), clone.expected).start()
            first.ends()
            second.ends()
            refused = [run for run in (first, second) if run.code]
            found = [stopped(run) for run in refused]
            if len(refused) == 2:
                found.append((Outcome.LOST, "both runs were refused"))
            finished = next((run for run in (first, second) if not run.code), None)
            outcome, said = worse(clone.judge(finished), clone.nothing_to_do(), *found)
            if outcome in GOOD:
                second.console.unlink()
        else:
            clone, after = workplace.clone(CLASSIFIER), random.uniform(5, 0.4 * workplace.seconds)
            case = Case("two runs", f"another config, whose Snakemake was killed after {after:.1f} s")
            epochs = random.choice((2, 1000))
            other = clone.start(configured(clone.folder, "other", classifier__epochs=epochs))
            if not other.ends(after):
                os.kill(other.process.pid, signal.SIGKILL)
            other.ends()
            run = clone.run()
            gone = wait_until(lambda c=clone: not jobs_in(c.folder), ORPHANS)
            # After the last job of the other run has ended.
            found = clone.judge(run)
            outcome, said = found if gone else (Outcome.LOST, f"jobs did not end within {ORPHANS} s")
        yield [ended(case, clone, outcome, said)]


class Server:
    """An MLflow server with a store of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        store = ["--backend-store-uri", f"sqlite:///{self.place}/store.db", "--artifacts-destination", str(self.place)]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *store]
        with (self.place / "server.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment(), start_new_session=True, stdout=output, stderr=subprocess.STDOUT
            )
        if not wait_until(self._answers, 120):
            self.kill()
            raise RuntimeError(f"the MLflow server did not start; see {self.place}/server.txt")

    def _answers(self) -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """Kill it with its worker."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def logged_once(address: str, folder: Path) -> str:
    """What is wrong in the store: results of ``folder`` that are there not once, or not finished; empty if nothing is."""
    import json

    from mlflow import MlflowClient

    records = [json.loads(file.read_text()) for file in (folder / RESULTS / "records").glob("*.json")]
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("minimal")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    found = Counter(
        run.data.tags["ibsgl.result_id"]
        for run in runs
        if "ibsgl.result_id" in run.data.tags
        and "ibsgl.superseded" not in run.data.tags
        and run.info.status == "FINISHED"
    )
    expected = Counter(record["result_id"] for record in records)
    wrong = sorted((found - expected) + (expected - found))
    return f"not exactly once in MLflow: {', '.join(wrong)}" if wrong or not expected else ""


@timed
def tracking(workplace: Workplace, number: int) -> Iterator[list[Case]]:
    """The MLflow server is killed during a run and comes back; or the process that logs to MLflow is killed."""
    random = workplace.random
    for each in range(number):
        begun = random.choice((MAPS, EVALUATION))
        clone, after = workplace.clone(begun), random.uniform(3, workplace.left(begun))
        server = Server(workplace.place / f"mlflow{each}") if each % 2 == 0 else None
        try:
            if server:
                clone.variables["MLFLOW_TRACKING_URI"] = server.address
            run = clone.start()
            what = f"after {after:.1f} s of a run from {begun_at(begun)}"
            if not run.ends(after):
                if server:
                    server.kill()
                else:
                    wait_until(lambda c=clone, r=run: tracker_in(c.folder) or r.ends(0), 60)
                    for process in tracker_in(clone.folder):
                        os.kill(process, signal.SIGKILL)
            run.ends()
            clone.note(run)
            found = [clone.judge(run)]
            if server and server.process.poll() is not None:
                server.start()
            found.append(clone.nothing_to_do())
            store = server.address if server else f"sqlite:///{clone.folder}/mlflow.db"
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                # MLflow takes memory, and it is not needed here.
                wrong = pool.submit(logged_once, store, clone.folder).result()
            found.append((Outcome.LOST if wrong else Outcome.SURVIVED, wrong))
        finally:
            if server and server.process.poll() is None:
                server.kill()
        outcome, said = worse(*found)
        case = Case("MLflow", f"the {'server' if server else 'logging process'} was killed {what}")
        if server and outcome in GOOD:
            shutil.rmtree(server.place)
        yield [ended(case, clone, outcome, said)]
