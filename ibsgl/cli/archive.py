"""Commands that pack a finished run and check what was packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ibsgl.cli.app import app
from ibsgl.cli.options import DEFAULT_CONFIG, ConfigFiles

if TYPE_CHECKING:
    from ibsgl.archive import Member


@app.command()
def archive(
    configfiles: ConfigFiles = DEFAULT_CONFIG,
    out: Annotated[Path | None, typer.Option("--out", help="The ZIP file.  [default: results/<name>.zip]")] = None,
    weights: Annotated[bool, typer.Option("--with-weights", help="Pack the networks and L^ib maps too.")] = False,
    maps: Annotated[bool, typer.Option("--with-maps", help="Pack the stored saliency maps too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the sizes, and write nothing.")] = False,
) -> None:
    """Pack a finished run into one file: results, configs, records, versions and logs, without the images."""
    from ibsgl import config
    from ibsgl.archive import collect, write_archive

    loaded = config.read(configfiles, data=False)
    members, left_out = collect(loaded, configfiles, maps=maps, weights=weights)
    _list(members, left_out)
    if dry_run:
        return
    out = out or Path("results", f"{loaded.name}.zip")
    digest = write_archive(out, loaded.name, members)
    typer.echo(f"{out}: {len(members)} files, SHA-256 {digest}")


def _list(members: Sequence[Member], left_out: Sequence[Member]) -> None:
    """Print, by kind, the number and size of the files, and what is left out."""
    from rich.filesize import decimal

    from ibsgl.archive import KINDS
    from ibsgl.archive.contents import OPTIONAL

    for kind, text in KINDS.items():
        for files, note in ((members, text), (left_out, f"left out; {OPTIONAL.get(kind, 'never packed')}: {text}")):
            of_kind = [member for member in files if member.kind == kind]
            if of_kind:
                size = decimal(sum(member.size for member in of_kind))
                typer.echo(f"{kind:<12} {len(of_kind):>6} files {size:>10}  {note}")


@app.command()
def verify(archive: Annotated[Path, typer.Argument(help="A file of `ibsgl archive`.")]) -> None:
    """Check each file of an archive against its SHA-256, and print how its results are made again."""
    from ibsgl.archive import compare, problems, read_facts, reproduce
    from ibsgl.provenance import digest_file

    if found := problems(archive):
        for problem in found:
            typer.echo(problem, err=True)
        raise typer.Exit(1)
    facts = read_facts(archive)
    typer.echo(f"{archive}: every file is as it was packed, SHA-256 {digest_file(archive)}")
    for line in [*compare(facts), *reproduce(facts, archive)]:
        # The text of an archive must not control the terminal.
        typer.echo("".join(letter if letter.isprintable() else "?" for letter in line))
