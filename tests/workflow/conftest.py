"""Snakemake and the commands in forks of a process that has imported torch and Snakemake already."""

import re
from multiprocessing import get_context

import pytest
from workspaces import snakemake


def _answer(connection, function, arguments):
    connection.send(function(*arguments))


@pytest.fixture(scope="session")
def fork():
    """Call a function in a fresh process that has torch and Snakemake imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["ibsgl.cli", "ibsgl.config.steps", "ibsgl.tracking", "torch", "snakemake.cli"])

    def call(function, *arguments):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
        process.start()
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            raise AssertionError(f"{function.__name__} failed; its traceback is on standard error") from None
        finally:
            process.join()

    return call


@pytest.fixture(scope="session")
def dry_run(fork):
    """(jobs, output) of a dry run in a folder; a job is its rule and wildcards, as ``maps resnet/guided/rise/0``."""

    def run(folder, configfile, *arguments):
        code, output = fork(snakemake, folder, [*arguments, "--dry-run", "--configfile", configfile])
        assert code == 0, output
        blocks = re.findall(r"^rule (\w+):\n((?:    .*\n)+)", output, re.M)
        jobs = []
        for rule, facts in blocks:
            wildcards = re.search(r"^    wildcards: (.*)$", facts, re.M)
            values = [pair.split("=")[1] for pair in wildcards[1].split(", ")] if wildcards else []
            jobs.append(" ".join([rule, "/".join(values)]).strip())
        assert len(jobs) == len(set(jobs)), jobs
        assert jobs or "Nothing to be done" in output, output
        return set(jobs) - {"all"}, output

    return run
