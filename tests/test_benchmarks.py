"""The speed benchmark runs, and what it writes is what it says; nothing here depends on how long anything takes."""

import json
import math
import os
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


def test_the_reproductions_methods_are_timed_on_any_device(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scale

    out = tmp_path / "scale.json"
    arguments = ["--config", str(ROOT / "tests" / "configs" / "tiny.yaml"), "--device", "cpu", "--images", "2"]
    done = CliRunner().invoke(scale.app, [*arguments, "--batch", "2", "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    written = json.loads(out.read_text())
    assert [(row["model"], row["method"]) for row in written["rows"]] == [
        (model, method)
        for model in ("resnet", "vgg")
        for method in ("Grad-CAM", "RISE", "Eq. 3 (HiResCAM)", "Information bottleneck (L^ib)")
    ]
    for row in written["rows"]:
        assert row["hours"] == pytest.approx(row["seconds_per_image"] * 4952 / 3600)
        assert row["flops_per_second"] > 0
        assert row["method"] in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_in_one_line(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scale

    done = CliRunner().invoke(scale.app, [])
    assert done.exit_code == 2
    assert "torch sees no GPU here; give --device cpu" in done.output


def test_the_cores_time_is_shared_out(monkeypatch, tmp_path):
    """Two jobs of 4 and 2 seconds on two cores within 5: 10 core-seconds, 4 without a job, half a second to start each."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import overhead

    for name, seconds, end in (("net/maps/guided/rise/0", 4, 100), ("table1", 2, 101)):
        file = tmp_path / "benchmarks" / f"{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"s\tcpu_time\n{seconds}\t1\n")
        os.utime(file, (end, end))
    monkeypatch.setattr(overhead, "start_seconds", lambda modules, cores: 0.5)
    assert [overhead.kind(name) == overhead.HEAVY for name in overhead.jobs_of(tmp_path)["name"]] == [True, False]
    done = CliRunner().invoke(overhead.app, [str(tmp_path)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert [line.split()[-1] for line in done.output.splitlines()[-3:]] == ["50.0%", "10.0%", "40.0%"]
