"""The command line. Each command parses its options, calls the library, writes the result and records it."""

from __future__ import annotations

import sys

from ibsgl.cli.app import app

# Each adds its commands to the app. The help lists them in this order.
# isort: off
from ibsgl.cli import data, training, evaluation, results, report, tools, archive  # noqa: F401

# isort: on
from ibsgl.errors import TrainingError

__all__ = ["app", "main"]


def main() -> None:
    """The console script. Errors that a user can fix are one line; all others keep their traceback."""
    try:
        app()
    except FileNotFoundError as error:
        sys.exit(f"ibsgl: error: there is no file {error.filename or error}")
    except OSError as error:
        # Such as a folder instead of a file, missing permissions, or a full disk.
        sys.exit(f"ibsgl: error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except (ValueError, FloatingPointError, TrainingError) as error:
        sys.exit(f"ibsgl: error: {error}")
