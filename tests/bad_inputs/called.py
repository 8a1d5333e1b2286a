"""What happens when ``ibsgl`` is called with a bad input, and the table of it in the documentation."""

import os
import shutil
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from ibsgl import cli, seals
from tests.bad_inputs.cases import CASES, KINDS
from tests.bad_inputs.finished import MINIMAL, finish
from tests.workflow.workspaces import workspace

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bad-inputs.md"
# Letters of a message in the table.
LONGEST = 220


def make_base(folder):
    """A clone with a finished run, in which each bad input is put."""
    workspace(folder)
    shutil.copy(MINIMAL, folder)
    with chdir(folder):
        finish()
    return folder


def contents(folder):
    """The bytes of all files in ``folder``, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(case, base, folder):
    """Call ``ibsgl`` with the bad input ``case`` in ``folder``, a copy of ``base``.

    Returns:
        the exit status; the lines of the error, without those of the usage; and the files before and after.
    """
    shutil.copytree(base, folder, symlinks=True)
    said = StringIO()
    with chdir(folder):
        arguments = case.make()
        before = contents(folder)
        sys.argv = ["ibsgl", *arguments]
        seals.begin()
        try:
            with redirect_stderr(said), redirect_stdout(StringIO()):
                cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
    after = contents(folder)
    shutil.rmtree(folder)
    if isinstance(status, str):
        # As Python does with the argument of sys.exit.
        return 1, status.splitlines(), before, after
    lines = said.getvalue().splitlines()
    return status, lines[lines.index("") + 1 :] if "" in lines else lines, before, after


def row(case, lines):
    """The case's row of the table."""
    said = " ".join(line.strip() for line in lines).removeprefix("ibsgl: error: ").removeprefix("Error: ")
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
    cells = (f"{case.what}{' †' if case.snakemake else ''}", said)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def page(rows):
    """The page of the documentation, from each case's row."""
    through = sum(case.snakemake for case in CASES)
    parts = [
        f"""# Bad inputs

What the benchmark says to {len(CASES)} bad inputs. The tests make each of them and write this page. For each they check that
the command ends with an exit status other than 0, that it says this and shows no traceback, and that no file that was there
is changed. With those marked † ({through}) they call Snakemake too.
"""
    ]
    for kind, (heading, when) in KINDS.items():
        of_kind = [text for case, text in zip(CASES, rows, strict=True) if case.kind == kind]
        parts.append(
            f"## {heading}\n\nFound {when}.\n\n| input | what is said |\n|---|---|\n" + "\n".join(of_kind) + "\n"
        )
    return "\n".join(parts)


def main():
    """Write the page."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        base = make_base(Path(name, "base"))
        rows = [row(case, call(case, base, Path(name, "case"))[1]) for case in CASES]
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
