"""What ``ibsgl plan`` prints and writes."""

import io
import json

import pytest
from plan_configs import TINY, small
from rich.console import Console
from typer.testing import CliRunner

from ibsgl import attribution
from ibsgl.cli import app
from ibsgl.plan import make_plan, show
from ibsgl.plan.show import duration, with_prefix


def printed(plan):
    console = Console(markup=False, highlight=False, width=200, record=True, file=io.StringIO())
    show(plan, console)
    return console.export_text()


def test_a_method_that_does_not_state_its_cost_is_unknown(elsewhere, monkeypatch):
    get = attribution.get

    class Silent:
        label, requires = "Silent", frozenset()

    # Its answer is kept. It must not be that about the other method.
    assert attribution.is_single_pass("gradcam")
    monkeypatch.setattr(
        attribution.registry, "get", lambda name, **settings: Silent() if name == "gradcam" else get(name, **settings)
    )
    plan = make_plan(small("resnet_small", size=32), calibration=False)
    (step,) = [step for step in plan.steps if step.name == "Silent"]
    assert step.work is None
    text = printed(plan)
    assert "unknown" in next(line for line in text.splitlines() if line.startswith("Silent"))
    assert "Methods marked unknown are not included." in text
    assert plan.total().flops == sum(step.work.flops for step in plan.steps if step.work)
    json.dumps(plan.as_dict())


def test_networks_and_alternatives_are_printed(elsewhere):
    settings = small(
        "resnet_small",
        size=32,
        replicates=2,
        alternatives={"half": {"suppression": {"beta": 0.5}}, "classes": {"tables": {"average": "classes"}}},
    )
    plan = make_plan(settings, calibration=False)
    lines = printed(plan).splitlines()
    assert "replicates: 2" in lines
    (control,) = [line.split() for line in lines if line.startswith("control training")]
    assert control[2] == "2"
    place = lines.index("Alternatives: what each adds to the run")
    assert [line.split()[0] for line in lines[place + 2 : place + 5]] == ["half", "classes", "total"]
    assert lines[place + 3].split()[1:] == ["0", "0", "0", "0", "0", "FLOP", "–"]
    assert json.loads(json.dumps(plan.as_dict()))["alternatives"]["half"]["flops"] > 0


def test_the_command_prints_and_writes(elsewhere, monkeypatch):
    # Nothing here depends on how well the passes are timed.
    monkeypatch.setattr("ibsgl.plan.calibration.PASS_SECONDS", 0.01)

    def run(*arguments):
        result = CliRunner().invoke(app, ["plan", "--config", str(TINY), *map(str, arguments)])
        assert result.exception is None, result.exception
        return result.output

    text = run("--json", elsewhere / "new" / "plan.json")
    written = json.loads((elsewhere / "new" / "plan.json").read_text())
    for name in ("gradcam", "rise", "gradient", "bottleneck", "center"):
        assert text.count(f"\n{attribution.get(name).label} ") == 2, name
    assert written["device"] == "CPU, 1 thread(s)"
    assert written["total"]["seconds"] > 0
    assert written["total"]["flops"] == sum(step["work"]["flops"] for step in written["steps"])
    assert all(network["seconds"]["training"] > 0 for network in written["networks"])
    # No box drawing and no colours in a pipe.
    assert not set("│─┃━\x1b") & set(text)
    assert "time not measured" not in text
    text = run("--no-calibrate")
    assert "time not measured" in text
    assert max(map(len, text.splitlines())) <= 200


def test_the_command_refuses_in_one_line(elsewhere):
    result = CliRunner().invoke(app, ["plan", "--config", str(TINY), "--images", "test=many"])
    assert result.exit_code == 2
    assert "'test=many' is not <list>=<number>, like test=4952" in result.output


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 FLOP"), (999, "999 FLOP"), (999.7, "1.00 kFLOP"), (8.178e9, "8.18 GFLOP"), (1.2345e20, "123 EFLOP")],
)
def test_numbers_have_three_digits_and_a_unit(number, text):
    assert with_prefix(number, "FLOP") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0123, "12.3 ms"), (59, "59.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (129600, "1.5 d")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
