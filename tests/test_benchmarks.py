"""The speed benchmark runs, and what it writes is what it says; nothing here depends on how long anything takes."""

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.delenv("IBSGL_PEERS", raising=False)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import speed

    return speed


def run(speed, *arguments):
    return CliRunner().invoke(speed.app, [str(argument) for argument in arguments])


def test_the_command_prints_and_writes(speed, tmp_path):
    toy = (
        "--network",
        "vgg_small",
        "--size",
        32,
        "--growth-size",
        32,
        "--growth-limit",
        4,
        "--batch",
        2,
        "--seconds",
        0,
    )
    result = run(speed, *toy, "--out", tmp_path / "new")
    assert result.exception is None, result.output
    written = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")

    rows = {row["name"]: row for row in written["methods"]}
    assert rows.keys() == speed.cases().keys()
    for name, row in rows.items():
        for key in ("seconds", "floor", "efficiency", "forwards"):
            assert 0 < row[key] < math.inf, (name, key)
        assert row["method"] in result.output
        # Packages of the dev extra are here; the others only where somebody has them.
        if row["agreement"] == "not installed":
            assert row["peer"] in ("TorchRay", "IBA")
            assert row["speedup"] is row["agrees"] is None
        else:
            assert row["speedup"] > 0
            assert row["agrees"], row["agreement"]
    for row in written["growth"]:
        assert row["times"][0] == 1
        assert len(row["times"]) == len(row["numbers"])
        assert all(0 < time < math.inf for time in row["times"])
    for kind in ("cams", "guidance", "metrics"):
        assert [row["network"] for row in written[kind]] == ["vgg_small"]
    # RISE, IG, Score-CAM, EP; FullGrad's passes and speed; CAMs; guidance; metrics; two methods' classes.
    assert len(written["goals"]) >= 11
    for goal in written["goals"]:
        limit = float(goal["goal"].split()[-1])
        assert goal["met"] == (goal["found"] >= limit if "≥" in goal["goal"] else goal["found"] <= limit)


def test_unknown_methods_are_named(speed):
    result = run(speed, "--method", "gradcan")
    assert result.exit_code == 2
    assert "gradcan" in result.output
    assert run(speed, "--help").exit_code == 0


def test_floors_run_the_passes_that_were_asked_for(speed):
    """Images through each part, forward and backward, counted where they pass."""
    bench = speed.Bench("resnet_small", 32, speed.Clock(torch.device("cpu"), 0))
    passed = {"stem": 0, "head": 0, "stem_backward": 0, "head_backward": 0}

    def count(part):
        def hook(_, inputs, output):
            passed[part] += len(output)
            if output.requires_grad:
                output.register_hook(
                    lambda gradient: passed.update({f"{part}_backward": passed[f"{part}_backward"] + len(gradient)})
                )

        return hook

    bench.network.stem.register_forward_hook(count("stem"))
    bench.network.head.register_forward_hook(count("head"))
    asked = {"stem": 40, "head": 150, "stem_backward": 3, "head_backward": 143}
    bench.floor(speed.Passes(**asked))()
    assert passed == asked
