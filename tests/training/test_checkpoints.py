"""A checkpoint is taken up where its training stopped, unless anything that the result depends on has changed since."""

import sys

import pytest
import torch
from typer.testing import CliRunner

from ibsgl import config
from ibsgl.cli import app
from ibsgl.config.steps import step_of
from ibsgl.training import epochs

FACTORY = """
from torch import nn
from ibsgl.networks import SplitNetwork
from helper_of_the_factory import WIDTH

def factory(num_classes):
    stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, stride=4), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes))
    return SplitNetwork(stem, head, "conv1")
"""


class Killed(Exception):
    pass


@pytest.fixture
def run(tmp_path, monkeypatch, small_shapes):
    """``run(kill=False)`` trains a network from the factory in ``tmp_path`` and gives the number of epochs that ran."""
    data = small_shapes(trainval=18, test=6)
    data.index.save(tmp_path / "index.parquet")
    (tmp_path / "planted_factory.py").write_text(FACTORY)
    (tmp_path / "helper_of_the_factory.py").write_text("WIDTH = 8\n")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = config.load(
        {
            "name": "killed",
            "data": {"source": "voc", "root": str(data.root)},
            "models": {"net": {"arch": "planted_factory:factory", "image_size": 32}},
            "classifier": {"epochs": 3, "batch_size": 8},
            "methods": {"gradcam": None},
        }
    )
    save = epochs.save_tensors

    def train(kill=False):
        for module in ("planted_factory", "helper_of_the_factory"):
            sys.modules.pop(module, None)
        saved = []

        def save_and_die(path, state):
            save(path, state)
            saved.append(path)
            if kill:
                raise Killed

        monkeypatch.setattr(epochs, "save_tensors", save_and_die)
        settings = step_of(loaded, "classifier", model="net", replicate=0).to_json()
        arguments = ["classifier", "--model", "net", "--index", tmp_path / "index.parquet", "--root", data.root]
        arguments += ["--settings", settings, "--out", tmp_path / "net.pt"]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert isinstance(result.exception, Killed) if kill else result.exit_code == 0, result.output
        return len(saved)

    return train


def test_a_killed_training_goes_on_from_its_last_epoch(run, tmp_path):
    assert run(kill=True) == 1
    assert (tmp_path / "net.checkpoint").exists()
    assert run() == 2
    assert not (tmp_path / "net.checkpoint").exists()


def test_a_killed_training_starts_anew_when_its_factory_was_edited(run, tmp_path):
    run(kill=True)
    edited = FACTORY.replace("nn.ReLU()", "nn.Softplus()")
    (tmp_path / "planted_factory.py").write_text(edited)
    assert run() == 3
    resumed = torch.load(tmp_path / "net.pt", weights_only=True)
    (tmp_path / "net.pt").unlink()
    run()
    undisturbed = torch.load(tmp_path / "net.pt", weights_only=True)
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)


def test_a_comment_in_the_factory_changes_nothing(run, tmp_path):
    run(kill=True)
    (tmp_path / "planted_factory.py").write_text(FACTORY + "# a comment\n")
    assert run() == 2
