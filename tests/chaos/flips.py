"""Single bits flipped in the files that jobs read."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from random import Random

from workspaces import SNAKEMAKE, environment, inputs

DATA = Path("results", "minimal", "data", "VOCdevkit", "VOC2007")


def commands(folder: Path, *arguments: str) -> list[list[str]]:
    """The ``ibsgl`` commands that a run would call now, in an order in which every file is made before it is read."""
    shown = subprocess.run(
        [SNAKEMAKE, "--dry-run", "--configfile", "minimal.yaml", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"^Shell command: (ibsgl .*)$", shown.stdout + shown.stderr, re.M)
    return [shlex.split(line)[1:-2] for line in found]


def kind_of(file: Path) -> str:
    """What a file is, without the numbers and names of its variant and image."""
    kind = re.sub(r"\d|resnet/|(pretrained|guided|control|shuffled)/|_(test|trainval|further)_", "", file.as_posix())
    # Those of all files are one kind.
    return "seal" if kind.endswith(".seal") else kind.removeprefix("results/minimal/")


def read_by(command: Sequence[str]) -> list[Path]:
    """The files that a command reads, in the folder where this process works: results, their seals, images, annotations."""
    files = inputs(command)
    if command[0] == "report":
        files += Path("results/minimal/report/maps/resnet").glob("[!.]*")
    seals = [file.with_name(f".{file.name}.seal") for file in files]
    files += seals
    if command[0] == "index":
        files += [file for file in DATA.rglob("*") if file.suffix in (".jpg", ".png", ".xml", ".txt")]
    elif command[0] in ("classifier", "guide", "maps", "evaluate"):
        files += DATA.glob(f"JPEGImages/*{'test' if '--shard' in command else 'trainval'}*.jpg")
    return [file for file in files if file.is_file()]


def draw(random: Random, made: Sequence[Sequence[str]], number: int) -> Iterator[tuple[Sequence[str], Path]]:
    """So many commands, each with a file that it reads: in turns, one of every kind."""
    kinds: dict[str, list[tuple[Sequence[str], Path]]] = {}
    for command in made:
        for file in read_by(command):
            kinds.setdefault(kind_of(file), []).append((command, file))
    order = random.sample(sorted(kinds), len(kinds))
    for each in range(number):
        yield random.choice(kinds[order[each % len(order)]])


def flip(file: Path, random: Random) -> str:
    """Flip one bit of ``file``, and leave its date; which bit."""
    content, facts = bytearray(file.read_bytes()), file.stat()
    place, bit = random.randrange(len(content)), random.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    return f"bit {bit} of byte {place}"


@contextmanager
def flipped(file: Path, random: Random) -> Iterator[str]:
    """One bit of ``file`` is flipped within the block."""
    content, facts = file.read_bytes(), file.stat()
    try:
        yield flip(file, random)
    finally:
        file.write_bytes(content)
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def made_by(command: Sequence[str]) -> str:
    """Digest of what a command has made."""
    out = Path(command[list(command).index("--out") + 1])
    files = sorted(out.rglob("[!.]*")) if out.is_dir() else [out]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def call_with_flips(folder: Path, made: list[list[str]], seed: int, number: int) -> list[dict[str, str]]:
    """Call commands in this process, each with one bit flipped in a file that it reads.

    Returns:
        for each call the file, the bit, the command, what it said, and whether what it made is the ``same`` or ``other``.
    """
    import torch

    from ibsgl.cli import app

    os.chdir(folder)
    # As Snakemake starts a job with one thread; more of them add numbers in another order.
    torch.set_num_threads(1)
    results, kept = Path("results", "minimal"), Path("kept")
    shutil.copytree(results, kept)
    random, found = Random(seed), []
    for command, file in draw(random, made, number):
        before, said = made_by(command), ""
        with flipped(file, random) as bit, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            try:
                app(command, standalone_mode=False)
            except (ValueError, OSError) as error:
                said = str(error)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
        same = made_by(command) == before
        found.append(
            {
                "file": file.as_posix(),
                "bit": bit,
                "command": command[0],
                "said": said,
                "made": "the same" if same else "other results",
            }
        )
        if not said:
            # The next call must not start from what this one has made.
            shutil.rmtree(results)
            shutil.copytree(kept, results)
    return found
