"""The settings of a step are exactly what its result depends on."""

import json
import shutil
from pathlib import Path

import pytest
from shapes_config import JOBS, both, changed, named, values

from ibsgl import config
from ibsgl.config.steps import Guide, step_of
from ibsgl.randomness import derive_seed
from ibsgl.reporting import page

ROOT = Path(__file__).parents[2]


def test_settings_change_with_what_they_depend_on_and_nothing_else():
    def of(**changes):
        return changed(values(), values(**changes))

    guided, sham, control = ("guide", "/guided"), ("guide", "/shuffled"), ("guide", "/control")
    assert of(methods__rise__masks=7) == both(("maps", "/pretrained/rise"))
    assert of(suppression__r=0.2) == both(guided, sham, ("evaluate", ""))
    assert of(suppression__when="never") == both(guided, sham)
    # L^ib is one of the methods.
    assert of(bottleneck__alpha=5) == both(("bottleneck", ""), ("evaluate", ""))
    assert of(metrics__miou__top=0.3) == of(deletion__points=5) == both(("evaluate", ""))
    assert of(guidance__step_size=0.5) == both(guided, sham)
    assert of(guidance__cross_entropy="binary") == both(guided, sham, ("evaluate", ""))
    assert of(guidance__training__epochs=9) == both(guided, sham, control)
    assert of(models__vgg__override={"guidance": {"mu": 1}}) == {"guide/vgg/guided", "guide/vgg/shuffled"}
    assert of(variants__shuffled={"teacher": "boxes"}) == both(sham)
    assert of(variants__shuffled={"loss": "none"}) == both(sham)
    # A variant is one more to evaluate, with the same methods.
    assert of(variants__boxes={"teacher": "boxes"}) == both(("evaluate", ""))
    # Neither the machine, nor the batch, nor the number of replicates shows in a result.
    assert of(device="cpu", threads=4, batch_size=7, replicates=9) == set()
    # Precision and compiler are those of methods of many passes.
    assert (
        of(precision="bfloat16") == of(compile="auto") == {job for job in of(shard_size=48) if job.startswith("maps/")}
    )
    # 96 images in one piece or in two.
    cut = {named(step, where) for step, where in JOBS if step in ("maps", "evaluate")}
    assert of(shard_size=48) == cut
    assert of(shard_size=96) == set()


def test_replicates_differ_in_the_training_seed_alone():
    loaded = config.parse(values())
    for step, where in JOBS:
        if step == "maps":
            continue
        one, other = (step_of(loaded, step, **where | {"replicate": replicate}) for replicate in (0, 1))
        if step in ("classifier", "guide"):
            assert one.training_seed == derive_seed(0, "replicate", 0)
            assert other.training_seed == derive_seed(0, "replicate", 1) != one.training_seed
            assert other.model_copy(update={"replicate": 0}) == one
        else:
            assert one == other


def test_the_settings_of_a_job_are_read_back():
    loaded = config.parse(values(guidance__bottleneck_network="current", variants={}))
    for step, where in JOBS:
        if where.get("variant") != "shuffled":
            made = step_of(loaded, step, **where)
            assert type(made).parse(made.to_json()) == made


def test_a_training_without_guidance_has_no_settings_of_guidance():
    loaded = config.parse(values(variants={"longer": {"loss": "none"}, "boxes": {"teacher": "boxes"}}))
    trained = {
        variant: step_of(loaded, "guide", model="vgg", replicate=0, variant=variant)
        for variant in loaded.trained_variants
    }
    assert trained["control"] == trained["longer"]
    assert trained["control"].guidance is trained["control"].suppression is None
    assert trained["boxes"].guidance == loaded.guidance_of("boxes")
    assert trained["boxes"].guidance.teacher == "boxes"
    with pytest.raises(ValueError, match="suppression: this training needs this key"):
        Guide.model_validate(trained["boxes"].to_dict() | {"suppression": None})


def test_maps_of_a_job_that_there_is_not():
    loaded = config.parse(values())
    for where in ({"variant": "guided", "method": "rise"}, {"variant": "pretrained", "method": "gradcam"}):
        with pytest.raises(config.ConfigError, match=f"there is no job for the maps of '{where['method']}' on"):
            step_of(loaded, "maps", model="vgg", replicate=0, **where)
    with pytest.raises(config.ConfigError, match="there are: none"):
        step_of(loaded, "maps", model="vgg", replicate=1, variant="pretrained", method="rise")


def test_the_reports_code_has_its_template(monkeypatch, tmp_path):
    step = step_of(config.parse(values()), "report")
    before = step.code()
    templates = tmp_path / "reporting" / "page" / "templates"
    shutil.copytree(Path(page.__file__).parent / "templates", templates)
    monkeypatch.setattr("ibsgl.config.steps.files", lambda package: tmp_path)
    assert step.code() == before
    (templates / "style.css").write_text("body {}", encoding="utf-8")
    assert step.code() != before


@pytest.mark.parametrize("name", ["shapes", "voc2007", "demo"])
def test_the_reports_config_makes_the_same_run(name):
    loaded = config.read([ROOT / "config" / f"{name}.yaml"], data=False)
    again = config.parse(json.loads(step_of(loaded, "report").to_json())["config"])
    machine = {"device", "threads", "shard_size", "batch_size"}
    assert again.model_dump(exclude=machine) == loaded.model_dump(exclude=machine)
