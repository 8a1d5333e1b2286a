"""The plan's times on a device that is not here: estimated from a card's published peak, or read from a device profile."""

import json

import pytest
from plan_configs import TINY, facts, small, voc
from typer.testing import CliRunner

from ibsgl import config
from ibsgl.cli import app
from ibsgl.errors import ConfigError
from ibsgl.plan import CARDS, CardEstimate, DeviceProfile, ProfiledDevice, card_named, make_plan

# FLOPs of VGG-16 for one image of 224 pixels: 15.47 thousand million multiply-adds (torchvision's documentation).
VGG16 = 2 * 15.47e9


@pytest.fixture
def plan_of_vgg16(elsewhere):
    """Plans RISE with 4000 masks and FullGrad on the pairs of VOC 2007 with VGG-16, on a device."""
    settings = voc("gone").model_copy(
        update={
            "models": {"vgg": config.schema.Model(arch="vgg16")},
            "methods": {"rise": {"masks": 4000}, "fullgrad": {}},
            "batch_size": 512,
        }
    )

    def plan(timing):
        planned = make_plan(settings, {"trainval": 5011, "test": 4952}, timing=timing)
        return planned, {step.name: step.work.seconds for step in planned.steps}

    return plan


def test_the_hours_on_a_card_by_hand(plan_of_vgg16):
    plan, seconds = plan_of_vgg16(CardEstimate(card_named("H100"), efficiency={"float32": 0.5, "bfloat16": 0.25}))
    # RISE on two networks in bfloat16, FullGrad on three in float32: a pass and a gradient for each pair.
    assert seconds["RISE"] == pytest.approx(2 * 4952 * 4000 * VGG16 / (0.25 * 989.4e12), rel=0.01)
    assert seconds["FullGrad"] == pytest.approx(3 * 7632 * 2 * VGG16 / (0.5 * 66.9e12), rel=0.01)
    assert plan.total().seconds == pytest.approx(sum(seconds.values()))
    assert plan.estimated
    assert plan.device == "NVIDIA H100 SXM"
    assert plan.networks[0].batch is None
    assert "66.9 TFLOP/s in float32 × 0.5, 989.4 TFLOP/s in bfloat16 × 0.25" in plan.timing


def test_a_card_without_bfloat16_runs_everything_in_float32(plan_of_vgg16):
    with pytest.raises(ConfigError, match=r"NVIDIA T4 has no bfloat16; take the precision float32 or auto"):
        CardEstimate(card_named("t4"), "bfloat16")
    plan, seconds = plan_of_vgg16(CardEstimate(card_named("t4"), efficiency={"float32": 1, "bfloat16": 1}))
    assert seconds["RISE"] == pytest.approx(2 * 4952 * 4000 * VGG16 / 8.1e12, rel=0.01)
    assert "which the card does not have" in plan.timing


def test_float32_is_estimated_for_every_pass():
    for precision, rate in (("float32", 0.6 * 19.5e12), ("bfloat16", 0.2 * 312e12), ("auto", 0.2 * 312e12)):
        seconds, _ = CardEstimate(card_named("a100"), precision).seconds(small("vgg_small"), facts("vgg_small"), 4)
        assert seconds.mixed.stem == pytest.approx(facts("vgg_small").flops.full.stem / rate)
        assert seconds.full.stem_backward == pytest.approx(
            facts("vgg_small").flops.full.stem_backward / (0.6 * 19.5e12)
        )
        assert seconds.training == pytest.approx(facts("vgg_small").flops.training / (0.6 * 19.5e12))


def test_bfloat16_is_never_estimated_slower_than_float32():
    """0.2 of 165.2 TFLOP/s is less than 0.6 of 82.6."""
    seconds, _ = CardEstimate(card_named("rtx4090")).seconds(small("vgg_small"), facts("vgg_small"), 4)
    assert seconds.mixed == seconds.full


@pytest.mark.parametrize(
    ("name", "cores", "gigahertz", "tensor_operations", "tensor_gigahertz"),
    # Float32 cores, and dense multiply-adds of all tensor cores per clock in bfloat16: multiprocessors × 1024 on Ampere, 2048
    # on Hopper, 512 on Ada, half of that on GeForce.
    [
        ("A100", 6912, 1.41, 108 * 1024, 1.41),
        ("H100", 16896, 1.98, 132 * 2048, 1.83),
        ("h200", 16896, 1.98, 132 * 2048, 1.83),
        ("L4", 7424, 2.04, 58 * 512, 2.04),
        ("RTX 4090", 16384, 2.52, 128 * 256, 2.52),
        ("T4", 2560, 1.59, None, None),
        ("V100", 5120, 1.53, None, None),
    ],
)
def test_published_peaks_are_cores_times_clock(name, cores, gigahertz, tensor_operations, tensor_gigahertz):
    """A multiply-add is two operations. Datasheets round to three digits."""
    card = card_named(name)
    assert card.float32 == pytest.approx(2e9 * cores * gigahertz, rel=0.006)
    if tensor_operations is None:
        assert card.bfloat16 is None
    else:
        assert card.bfloat16 == pytest.approx(2e9 * tensor_operations * tensor_gigahertz, rel=0.006)
    assert card.source.startswith("NVIDIA")


def passes(*numbers):
    return dict(zip(("stem", "head", "stem_backward", "head_backward"), numbers, strict=True))


def network(precision="bfloat16", size=32, **changes):
    return {
        **{"arch": "vgg_small", "options": {"width": 8}, "image_size": size, "precision": precision, "batch": 64},
        **{"full": passes(1, 2, 3, 4), "mixed": passes(0.5, 1, 1.5, 2), "training": 10},
        "guidance": {"feature": 1, "end_to_end": 2},
    } | changes


def profile(*networks, **changes):
    return {
        **{"version": 1, "device": "NVIDIA Test", "memory_bytes": 80_000_000_000, "torch": "2.0", "date": "2026-01-31"},
        **{"images": 8, "networks": list(networks), "rows": []},
    } | changes


@pytest.fixture
def written(elsewhere, monkeypatch):
    """Writes a profile. Nothing may be timed on this machine."""

    def refuse(*_):
        raise AssertionError("passes were timed here")

    monkeypatch.setattr("ibsgl.plan.timing.calibrate", refuse)

    def write(*networks, **changes):
        path = elsewhere / "scale.json"
        path.write_text(json.dumps(profile(*networks, **changes)))
        return path

    return write


def seconds_of(path, precision="auto", **changes):
    timing = ProfiledDevice(DeviceProfile.read(path), path, precision)
    plan = make_plan(small("vgg_small", size=32, **changes), timing=timing)
    return plan, {step.name: step.work.seconds for step in plan.steps}


def test_the_times_of_a_profile_are_those_of_the_plan(written):
    path = written(network(size=48), network(), network("float32", mixed=passes(1, 2, 3, 4)))
    plan, seconds = seconds_of(path)
    # 6 images on two networks with 8 masks in bfloat16, and on three a forward pass and the head's gradient in float32.
    assert seconds["RISE"] == pytest.approx(2 * 6 * 8 * 1.5)
    assert seconds["Grad-CAM"] == pytest.approx(3 * 6 * (1 + 2 + 4))
    assert (plan.device, plan.estimated, plan.networks[0].batch) == ("NVIDIA Test", False, 64)
    assert plan.timing == f"measured on NVIDIA Test on 2026-01-31 with torch 2.0 ({path})"
    assert seconds_of(path, "float32")[1]["RISE"] == pytest.approx(2 * 6 * 8 * 3)
    assert seconds_of(path, "bfloat16")[1] == seconds


def test_a_measurement_in_bfloat16_has_the_float32_passes_too(written):
    assert seconds_of(written(network()), "float32")[1]["RISE"] == pytest.approx(2 * 6 * 8 * 3)
    path = written(network("float32", mixed=passes(1, 2, 3, 4)))
    assert seconds_of(path)[1]["RISE"] == seconds_of(path, "float32")[1]["RISE"]
    with pytest.raises(ConfigError, match=r"no times of .* at 32 px in bfloat16\. It has: .* in float32"):
        seconds_of(path, "bfloat16")


def test_a_profile_without_a_network_lists_what_it_has(written):
    path = written(network(arch="resnet50", options={}, image_size=224))
    with pytest.raises(ConfigError) as caught:
        seconds_of(path)
    assert str(caught.value) == (
        f"{path} has no times of vgg_small with {{'width': 8}} at 32 px. It has: resnet50 at 224 px in bfloat16. "
        "Measure them on that device: python benchmarks/scale.py --config <this config>"
    )


def test_a_guidance_loss_that_was_not_measured_is_named(written):
    path = written(network())
    with pytest.raises(ConfigError, match=r"networks\.0\.guidance: energy was not measured"):
        seconds_of(path, variants={"energy": {"loss": "energy"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: "),
        ({"date": "yesterday"}, "date: "),
        ({"networks": []}, "networks: "),
        ({"colour": "red"}, "colour: there is no such key"),
        ({"networks": [network(training=-1)]}, "networks.0.training: "),
        ({"networks": [network(full={"stem": 1})]}, "networks.0.full.head: this key is missing"),
        ({"networks": [network("float16")]}, "networks.0.precision: "),
        ({"rows": [{"model": "a"}]}, "rows.0.method: this key is missing"),
    ],
)
def test_a_damaged_profile_is_one_line_with_file_and_key(written, change, message):
    path = written(network(), **change)
    with pytest.raises(ConfigError) as caught:
        DeviceProfile.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: {message}")
    assert "\n" not in text


def test_a_file_that_is_no_profile_is_one_line(elsewhere):
    path = elsewhere / "scale.json"
    with pytest.raises(ConfigError, match="there is no file"):
        DeviceProfile.read(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="byte 0 is not UTF-8"):
        DeviceProfile.read(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"scale\.json: not readable as JSON"):
        DeviceProfile.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        DeviceProfile.read(elsewhere)


def run(*arguments):
    return CliRunner().invoke(app, ["plan", "--config", str(TINY), *map(str, arguments)])


def test_the_command_marks_an_estimate(elsewhere):
    out = elsewhere / "plan.json"
    done = run("--card", "rtx-4090", "--efficiency", "0.5", "--json", out)
    assert done.exception is None, done.exception
    assert "Times: an estimate, not measured: FLOPs / (peak × efficiency)" in done.output
    assert "time (estimate)" in done.output
    assert "an estimate of " in done.output.splitlines()[-2]
    assert "on NVIDIA GeForce RTX 4090, one job at a time" in done.output
    plan = json.loads(out.read_text())
    assert plan["estimated"] is True
    assert plan["total"]["seconds"] > 0
    rate = plan["networks"][0]["flops"]["training"] / plan["networks"][0]["seconds"]["training"]
    assert rate == pytest.approx(0.5 * 82.6e12)


def test_the_command_reads_a_profile(written):
    sizes = [network(), network(arch="resnet_small")]
    done = run("--device-profile", written(*sizes))
    assert done.exception is None, done.exception
    assert "Times: measured on NVIDIA Test on 2026-01-31" in done.output
    assert "time on NVIDIA Test, 64 at a time" in done.output
    assert "estimate" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card", "b100"], f"the card 'b100' is unknown; take one of {', '.join(CARDS)}"),
        (["--card", "h100", "--device-profile", "x.json"], "give --card or --device-profile, not both"),
        (["--efficiency", "0.5"], "it is that of a --card"),
        (["--card", "h100", "--efficiency", "0"], "must be above 0 and at most 1, not 0.0"),
        (["--device-profile", "x.json"], "there is no file x.json"),
    ],
)
def test_the_command_refuses_in_one_line(elsewhere, arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.output
