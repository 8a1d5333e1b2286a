"""The follower process: ``python -m ibsgl.tracking``. :class:`ibsgl.tracking.Tracker` starts it."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from ibsgl.redaction import RedactedStream
from ibsgl.tracking.follower import follow
from ibsgl.tracking.invocation import Invocation


def main() -> None:
    """Follow the records of one workflow, then print the outcome as JSON."""
    parser = argparse.ArgumentParser(prog="python -m ibsgl.tracking", description="Follow the records of one workflow.")
    parser.add_argument("name", help="name of the config and of the experiment")
    parser.add_argument("directory", type=Path, help="folder with the records")
    parser.add_argument("invocation", type=json.loads, help="settings and targets of the workflow, as JSON")
    arguments = parser.parse_args()
    # MLflow prints the address of each run. Standard output is for the outcome alone.
    # Its errors, and those of the libraries for the network, may name the address with its password.
    log = RedactedStream(sys.stderr)
    with redirect_stderr(log), redirect_stdout(log):
        outcome = follow(Invocation(arguments.name, arguments.directory, **arguments.invocation))
    log.close()
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
