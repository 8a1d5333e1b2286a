"""A guidance loss and a teacher of another package: registered, checked in the config, and trained with."""

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError

from ibsgl import registry
from ibsgl.config.schema import Guidance
from ibsgl.guidance import LOSSES, TEACHERS, GuidanceSettings
from ibsgl.networks import build_network
from ibsgl.suppression import SuppressionSettings
from ibsgl.training import epochs
from ibsgl.training.guided import train_guided
from ibsgl.training.settings import TrainingSettings


@dataclass(frozen=True)
class Stillness:
    """The squared features, so that a test can see what the loss was given."""

    requires: ClassVar[frozenset[str]] = frozenset({"generators", "teacher_map"})
    weight: float = 1.0
    power: int = 2
    seen: ClassVar[list] = []

    def __call__(self, batch):
        """(B,)."""
        draws = torch.stack([torch.rand(1, generator=g) for g in batch.generators])[:, 0]
        self.seen.append((batch.targets.tolist(), draws.tolist(), batch.teacher_map))
        return draws * (batch.features**self.power).mean((1, 2, 3))


@dataclass(frozen=True)
class Corner:
    """The upper left cell."""

    requires: ClassVar[frozenset[str]] = frozenset({"region"})
    height: float = 1.0

    def __call__(self, features, targets, region, l_ib):
        """(B,h,w)."""
        assert region.dtype == torch.bool
        assert l_ib is None
        maps = torch.zeros_like(features[:, 0])
        maps[:, 0, 0] = self.height
        return maps


class Weightless:
    """A loss that has no weight."""

    requires = frozenset()


class Greedy(Weightless):
    """A loss that requires what there is not."""

    requires = frozenset({"test_labels"})


@pytest.fixture(autouse=True)
def own_package(monkeypatch):
    module = ModuleType("own_package")
    for value in (Stillness, Corner, Weightless, Greedy):
        setattr(module, value.__name__, value)
    monkeypatch.setitem(sys.modules, "own_package", module)
    real = registry.entry_points
    own = {
        "ibsgl.guidance": {"stillness": "Stillness", "weightless": "Weightless", "greedy": "Greedy"},
        "ibsgl.teachers": {"corner": "Corner"},
    }

    def entry_points(group):
        found = [EntryPoint(name, f"own_package:{value}", group) for name, value in own.get(group, {}).items()]
        return [*real(group=group), *found]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    Stillness.seen.clear()
    for one in (LOSSES, TEACHERS):
        one.__dict__.pop("_entries", None)
    yield
    for one in (LOSSES, TEACHERS):
        one.__dict__.pop("_entries", None)


STILL = {"loss": "stillness", "settings": {"weight": 0.5}, "teacher": "corner", "teacher_settings": {"height": 3.0}}


def train(data, checkpoint, **settings):
    torch.manual_seed(0)
    network = build_network("vgg_small", 6, width=8)
    guidance = Guidance(**settings)
    history = train_guided(
        network,
        data,
        TrainingSettings(epochs=2, batch_size=8, lr=0.01),
        guidance=guidance,
        suppression=SuppressionSettings(),
        l_ib=None,
        name="net",
        seed=3,
        device=torch.device("cpu"),
        checkpoint=checkpoint,
        digest="d",
    )
    return network, history


def test_a_plug_ins_loss_and_teacher_are_trained_with(small_shapes, tmp_path):
    data = small_shapes(trainval=36, test=6)
    _, history = train(data, tmp_path / "a", **STILL)
    for row in history:
        assert row["loss"] == pytest.approx(row["classification"] + 0.5 * row["guidance"], rel=1e-5)
    maps = torch.cat([taught for *_, taught in Stillness.seen])
    assert len(maps) == 2 * len(data.pairs("train"))
    assert (maps[:, 0, 0] == 3).all()
    assert (maps.sum((1, 2)) == 3).all()


def test_draws_differ_between_pairs_and_epochs_and_survive_an_interruption(small_shapes, tmp_path, monkeypatch):
    data = small_shapes(trainval=36, test=6)
    undisturbed, history = train(data, tmp_path / "a", **STILL)
    draws = [value for _, values, _ in Stillness.seen for value in values]
    assert len(set(draws)) == len(draws) == 2 * len(data.pairs("train"))
    save = epochs.save_tensors

    def save_and_die(path, state):
        save(path, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(epochs, "save_tensors", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "b", **STILL)
    monkeypatch.setattr(epochs, "save_tensors", save)
    resumed, again = train(data, tmp_path / "b", **STILL)
    assert again == history
    for one, other in zip(undisturbed.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss": "weightless"}, r"settings\n.*the weight of weightless must be a number from 0 to \d+, not None"),
        ({"loss": "greedy"}, r"loss\n.*this guidance loss requires test_labels, which no loss gets"),
        (
            {"loss": "stillness", "settings": {"weight": -1}},
            r"settings\n.*the weight of stillness must be a number from 0",
        ),
        ({"loss": "stillness", "settings": {"power": "x"}}, r"settings\n.*power: Input should be a valid integer"),
        (
            {"teacher": "corner", "teacher_settings": {"h": 1}},
            r"teacher_settings\n.*no setting 'h'; its settings: height",
        ),
        ({"teacher": "none", "teacher_settings": {"h": 1}}, r"teacher_settings\n.*there is no teacher that could have"),
        ({"loss": "other"}, r"loss\n.*no such guidance loss; take one of .*stillness, .*none"),
    ],
)
def test_a_wrong_plug_in_or_setting_is_an_error_of_the_config(settings, sentence):
    with pytest.raises(ValidationError, match=sentence):
        GuidanceSettings(**settings)


def test_a_teacher_decides_whether_the_training_sees_boxes():
    assert GuidanceSettings(**STILL).sees_boxes
    assert not GuidanceSettings(**STILL | {"teacher": "uniform", "teacher_settings": {}}).sees_boxes
    # Energy sees boxes, whoever teaches.
    assert GuidanceSettings(loss="energy", teacher="none").sees_boxes
    assert not GuidanceSettings(loss="none", teacher="boxes").sees_boxes
