"""The benchmarks run, and their values are of the right kind. No check depends on how long anything takes."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ibsgl import config
from ibsgl.attribution.storage import write_maps
from ibsgl.plan import DeviceProfile, ProfiledDevice, make_plan

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
        # The packages of the dev extra are installed, the others may be.
        if name == "sise":
            assert row["peer"] is row["speedup"] is row["agrees"] is None
        elif row["agreement"] == "not installed":
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
    # RISE, IG, Score-CAM, SISE, EP; FullGrad's passes and speed; CAMs; guidance; metrics; two methods' classes.
    assert len(written["goals"]) >= 12
    for goal in written["goals"]:
        limit = float(goal["goal"].split()[-1])
        assert goal["met"] == (goal["found"] >= limit if "≥" in goal["goal"] else goal["found"] <= limit)


def test_unknown_methods_are_named(speed):
    result = run(speed, "--method", "gradcan")
    assert result.exit_code == 2
    assert "gradcan" in result.output
    assert run(speed, "--help").exit_code == 0


def test_floors_run_the_given_passes(speed):
    """Images through each part, forward and backward, counted by hooks."""
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
    wanted = {"stem": 40, "head": 150, "stem_backward": 3, "head_backward": 143}
    bench.floor(speed.Passes(**wanted))()
    assert passed == wanted


def test_the_reproductions_methods_are_timed_on_any_device(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("ibsgl.plan.calibration.PASS_SECONDS", 0.01)
    import scale

    tiny, out = ROOT / "tests" / "configs" / "tiny.yaml", tmp_path / "scale.json"
    arguments = ["--config", str(tiny), "--device", "cpu", "--images", "2", "--precision", "bfloat16"]
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
        # Only RISE has passes in bfloat16.
        assert (row["agreement"] is not None) == (row["method"] == "RISE")
        if row["agreement"]:
            assert 0.9 < row["agreement"]["min"] <= row["agreement"]["median"] <= 1

    # The plan's times are those in the file.
    profile = DeviceProfile.read(out)
    plan = make_plan(config.read([tiny], data=False), timing=ProfiledDevice(profile, out))
    for network, measured in zip(plan.networks, written["networks"], strict=True):
        assert (network.arch, measured["precision"]) == (measured["arch"], "bfloat16")
        assert vars(network.seconds.full) == measured["full"]
        assert vars(network.seconds.mixed) == measured["mixed"]
        assert network.seconds.training == measured["training"]
    assert plan.device == "CPU"
    assert plan.total().seconds > 0


def test_the_agreement_of_maps_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scale

    exact = torch.arange(4.0).view(1, 2, 2).repeat(3, 1, 1)
    # In the same order, in the reverse order, and constant.
    found = scale.agreement(torch.stack([exact[0] ** 2, -exact[0], torch.ones(2, 2)]), exact)
    assert (found.median, found.min) == (0, -1)


def test_the_logits_are_scaled(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scale

    from ibsgl.networks import build_network

    images = scale.random_images(3, 32)
    assert images.shape == (3, 3, 32, 32)
    assert (images >= 0).all()
    assert (images <= 1).all()
    for arch in ("resnet_small", "vgg_small"):
        network = build_network(arch, 4, width=8).eval()
        scale.scale_logits(network, images)
        with torch.no_grad():
            assert network(images).std().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scale

    done = CliRunner().invoke(scale.app, [])
    assert done.exit_code == 2
    assert "torch sees no GPU here; give --device cpu" in done.output
    done = CliRunner().invoke(scale.app, ["--device", "cpu", "--precision", "float16"])
    assert done.exit_code == 2
    assert "it is one of float32, bfloat16, auto" in done.output


def test_the_parts_of_an_evaluation_are_timed(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scoring

    assert CliRunner().invoke(scoring.app, ["--help"]).exit_code == 0
    small = [
        "--network",
        "resnet_small",
        "--size",
        "32",
        "--images",
        "3",
        "--batch",
        "2",
        "--methods",
        "2",
        "--rounds",
        "1",
    ]
    done = CliRunner().invoke(scoring.app, [*small, "--out", str(tmp_path)])
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads((tmp_path / "scoring.json").read_text())["networks"]["resnet_small"]
    parts = found["ms_per_map"]
    for name in ("decode images", "convert and resize images", "read maps", "keep the top", "metric mIoU", "passes"):
        assert parts[name] > 0
        assert name in done.output
    assert {name for name in parts if scoring.apart(name)} == {
        "maps of Eq. 3",
        "deletion curves",
        "deletion curves: passes",
    }
    own = sum(ms for name, ms in parts.items() if not scoring.apart(name))
    assert found["share_of_passes"] == pytest.approx(parts["passes"] / own)
    assert found["efficiency"] > 0


def test_an_inner_part_does_not_count_for_the_outer_one(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scoring

    clock = iter([0, 1, 4, 10, 20, 22, 25, 30])
    monkeypatch.setattr(scoring.time, "thread_time", lambda: next(clock))
    parts = scoring.Parts()
    with parts.measure("outer"), parts.measure("inner"):
        pass
    with parts.measure("deletion curves"), parts.measure("passes"):
        pass
    assert parts.seconds == {"inner": 3, "outer": 7, "deletion curves: passes": 3, "deletion curves": 7}


def test_the_cores_time_has_three_parts(monkeypatch, tmp_path):
    """Jobs of 4 and 2 seconds on two cores in 5 seconds: 10 core-seconds, 4 without a job, half a second to start each job.

    The server takes another second.
    """
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import overhead

    for name, seconds, end in (("net/0/guided/rise/0", 4, 100), ("tables_net", 2, 101)):
        file = tmp_path / "benchmarks" / f"{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"s\tcpu_time\n{seconds}\t1\n")
        os.utime(file, (end, end))
    monkeypatch.setattr(overhead, "start_seconds", lambda cores: (1.0, 0.5))
    done = CliRunner().invoke(overhead.app, [str(tmp_path)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert [line.split()[-1] for line in done.output.splitlines()[-3:]] == ["40.0%", "20.0%", "40.0%"]


def test_the_guidance_scan_trains_every_setting_on_every_replicate(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import guidance_scan

    out = tmp_path / "new" / "scan.csv"
    # A control that may lose everything is stable, so that the guided trainings are run.
    monkeypatch.setattr(guidance_scan, "STABLE", 1)
    monkeypatch.setattr(guidance_scan, "KEPT", 1)
    arguments = ["--config", str(ROOT / "tests" / "configs" / "minimal.yaml"), "--replicates", "2", "--lr", "1e-3"]
    done = CliRunner().invoke(guidance_scan.app, [*arguments, "--step-size", "0.05", "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.output.splitlines()[-1] == "guidance.training.lr: 0.001, guidance.step_size: 0.05"
    table = pd.read_csv(out)
    assert table[["step_size", "replicate"]].values.tolist() == [[0, 0], [0, 1], [0.05, 0], [0.05, 1]]
    # The training seeds differ, and guidance changes the loss.
    assert table["loss"].nunique() == 4
    assert (table["loss"] == table["l_ce"] + table["l_ss"]).all()


def test_the_scans_rule_on_hand_made_trainings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import guidance_scan

    def training(lr, step_size, lowest, accuracy, loss, model="a"):
        return {
            **{"model": model, "lr": lr, "step_size": step_size, "replicate": 0, "start": 0.9},
            **{"lowest": lowest, "accuracy": accuracy, "loss": loss},
        }

    rows = [
        training(1e-3, 0.0, 0.5, 0.9, 1.0),
        training(1e-4, 0.0, 0.9, 0.9, 1.0),
        training(1e-4, 0.1, 0.9, 0.9, 0.8),
        training(1e-4, 0.2, 0.9, 0.85, 0.1),
        training(1e-5, 0.0, 0.9, 0.9, 1.0),
        training(1e-5, 0.1, 0.9, 0.9, 0.5),
    ]
    table = guidance_scan.summary(pd.DataFrame(rows))
    # The highest rate is unstable, the largest step costs accuracy, and the lowest rate is not asked for.
    assert guidance_scan.choose(table) == (1e-4, 0.1)
    # On another network the control is stable only at the lowest rate.
    more = [training(1e-4, 0.0, 0.5, 0.9, 1.0, "b"), training(1e-5, 0.0, 0.9, 0.9, 1.0, "b")]
    table = guidance_scan.summary(pd.DataFrame([*rows, *more, training(1e-5, 0.1, 0.9, 0.9, 0.9, "b")]))
    assert guidance_scan.choose(table) == (1e-5, 0.1)
    with pytest.raises(ValueError, match="at no learning rate"):
        guidance_scan.choose(table[table["lr"] > 1e-5])


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import memory

    return memory


def test_the_bytes_of_stored_maps_are_those_of_the_file(memory, tmp_path):
    """Small maps of 2×3 numbers take at most their own bytes and Parquet's; plain ones are those of the resized maps."""
    rows = pd.DataFrame({"image_id": [str(number) for number in range(64)], "target": 0})
    maps = {"cam": torch.rand(64, 2, 3), "rise": torch.zeros(64, 32, 32)}
    methods = {name: SimpleNamespace(label=name) for name in maps}
    batches = (
        (rows[start : start + 32], {name: of[start : start + 32] for name, of in maps.items()}) for start in (0, 32)
    )
    write_maps(tmp_path / "0.parquet", batches, methods, 32, {})
    found = memory.bytes_per_pair(tmp_path / "0.parquet")
    assert 0.6 * 2 * 3 * 4 < found["cam"][1] < 2 * 3 * 4 + 4
    assert 0.3 * 32 * 32 * 4 < found["cam"][0] < 32 * 32 * 4
    # Nothing but zeros.
    assert max(found["rise"]) < 10
    result = CliRunner().invoke(memory.app, ["--maps", str(tmp_path / "0.parquet"), "--out", str(tmp_path)])
    assert result.exception is None, result.output
    assert [row["method"] for row in json.loads((tmp_path / "disk.json").read_text())] == ["cam", "rise"]


def test_one_quantity_grows_at_a_time_and_larger_passes_are_full(memory):
    case = memory.Case("rise", "resnet50")
    assert memory.quantities("rise") == ["images", "classes", "passes", "chunk"]
    assert memory.quantities("gradcam") == ["images", "classes"]
    assert memory.grown(case, "images") == memory.Case("rise", "resnet50", images=4 * case.images)
    larger = memory.grown(case, "chunk")
    assert (larger.chunk, larger.passes, larger.images) == (4 * case.chunk, 4 * case.passes, case.images)


def test_unknown_steps_are_named(memory):
    result = CliRunner().invoke(memory.app, ["--step", "trainings"])
    assert result.exit_code == 2
    assert "there is no 'trainings'" in " ".join(result.output.split())


@pytest.mark.slow
def test_memory_of_steps_is_measured(memory, tmp_path):
    steps = ("guided training", "sise", "tables")
    arguments = [part for step in steps for part in ("--step", step)]
    result = CliRunner().invoke(memory.app, ["--network", "resnet_small", *arguments, "--out", str(tmp_path)])
    assert result.exception is None, result.output
    rows = json.loads((tmp_path / "memory.json").read_text())
    assert [row["step"] for row in rows] == ["guided training", "sise", "tables"]
    for row in rows:
        measured = {quantity for quantity in memory.QUANTITIES if row[f"{quantity}_mb"]}
        assert measured == set(memory.quantities(row["step"]))
        # Python and torch alone take so much.
        assert row["base_mb"] > 100


def test_what_bf16_changes_by_hand(monkeypatch, tmp_path):
    """The mean over two trainings, and a bound of one pair for Average Increase."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    import precision

    def training(full, half):
        return {"metrics": {key: {"float32": full, "bfloat16": half} for key in precision.METRICS}}

    row = {"trainings": [training(40.0, 40.3), training(50.0, 49.9)]}
    changes = precision.changes(row)
    assert list(changes) == list(precision.METRICS)
    for change in changes.values():
        # Student's t with one degree of freedom is 12.706; the standard error of the mean of two is half their distance.
        assert (change.mean, change.low, change.high) == pytest.approx((0.1, 0.1 - 2.5412, 0.1 + 2.5412), abs=1e-4)
    assert precision.limit("ebpg", 50) == precision.limit("average_drop", 5000) == 0.2
    assert precision.limit("average_increase", 50) == pytest.approx(2)
    assert precision.limit("average_increase", 5000) == 0.2
    done = CliRunner().invoke(precision.app, ["--config", str(ROOT / "config" / "shapes.yaml")])
    assert done.exit_code == 2
    assert "there is no results/shapes/resnet/0/pretrained/network.pt" in " ".join(done.output.split())
