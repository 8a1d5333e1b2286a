"""Training: resumed bit for bit, the same start and order for guided and control, and clear ends."""

import pytest
import torch

from ibsgl.bottleneck import Bottleneck, FeatureStatistics
from ibsgl.config.schema import Guidance
from ibsgl.errors import TrainingError
from ibsgl.guidance import DivergenceSettings, classification_loss
from ibsgl.guidance.algorithm import feature_divergence, guidance_target
from ibsgl.networks import build_network
from ibsgl.precompute import feature_statistics
from ibsgl.suppression import SuppressionSettings
from ibsgl.training import epochs
from ibsgl.training import guided as guided_training
from ibsgl.training.classifier import train_classifier
from ibsgl.training.guided import train_guided
from ibsgl.training.settings import ClassifierSettings, TrainingSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(small_shapes):
    return small_shapes(trainval=36, test=12)


def network(multilabel=False):
    torch.manual_seed(0)
    return build_network("vgg_small", 6, width=8, multilabel=multilabel)


def classifier(data, path, epochs=3, net=None, **changes):
    net = net or network()
    settings = ClassifierSettings(epochs=epochs, batch_size=8, **changes)
    history = train_classifier(net, data, settings, name="net", seed=3, device=CPU, checkpoint=path, digest="d")
    return net, history


def guided(data, path, guidance, *, l_ib=None, statistics=None, bottleneck=None, net=None, digest="d"):
    net = net or network()
    history = train_guided(
        net,
        data,
        guidance.training if guidance else TrainingSettings(epochs=2, batch_size=8, lr=0.01),
        guidance=guidance,
        suppression=SuppressionSettings(),
        l_ib=l_ib,
        bottleneck=bottleneck,
        statistics=statistics,
        name="net",
        seed=3,
        device=CPU,
        checkpoint=path,
        digest=digest,
    )
    return net, history


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def maps(data):
    return torch.rand(len(data.pairs("train")), 2, 2, generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may catch it."""


def test_no_epochs_leave_the_network_as_it_is(data, tmp_path):
    before = network()
    after, rows = classifier(data, tmp_path / "a", epochs=0)
    assert equal(before, after)
    assert rows == []
    assert not (tmp_path / "a").exists()
    for parameter in after.parameters():
        parameter.data.zero_()
    with pytest.raises(TrainingError, match=r"the network has collapsed: .*; check its weights"):
        classifier(data, tmp_path / "a", epochs=0, net=after)


def test_the_same_seed_gives_the_same_network(data, tmp_path):
    first, rows = classifier(data, tmp_path / "a")
    second, again = classifier(data, tmp_path / "b")
    assert equal(first, second)
    assert rows == again
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {"loss", "held_out_accuracy"} <= rows[0].keys()


@pytest.mark.parametrize("kind", ["classifier", "guided"])
def test_resumed_equals_undisturbed_bit_for_bit(data, tmp_path, monkeypatch, kind):
    guidance = Guidance(training=TrainingSettings(epochs=3, batch_size=8, lr=0.01))

    def train(path):
        if kind == "classifier":
            return classifier(data, path)
        return guided(data, path, guidance, l_ib=maps(data))

    undisturbed, rows = train(tmp_path / "a")
    save, seen = epochs.save_tensors, []

    def save_and_die(path, state):
        save(path, state)
        seen.append(path)
        if len(seen) == 2:
            raise Killed

    monkeypatch.setattr(epochs, "save_tensors", save_and_die)
    with pytest.raises(Killed):
        train(tmp_path / "b")
    monkeypatch.setattr(epochs, "save_tensors", save)
    resumed, again = train(tmp_path / "b")
    assert equal(undisturbed, resumed)
    assert rows == again


def test_a_checkpoint_of_other_settings_is_ignored(data, tmp_path):
    guidance = Guidance(training=TrainingSettings(epochs=2, batch_size=8, lr=0.01))
    fresh, _ = guided(data, tmp_path / "a", guidance, l_ib=maps(data), digest="new")
    guided(data, tmp_path / "b", None, digest="old")
    after, _ = guided(data, tmp_path / "b", guidance, l_ib=maps(data), digest="new")
    assert equal(fresh, after)


def test_guidance_of_weight_zero_is_the_control(data, tmp_path):
    """The control sees the same pairs in the same order: with μ = 0 nothing is left of the difference."""
    guidance = Guidance(mu=0.0, training=TrainingSettings(epochs=2, batch_size=8, lr=0.01))
    with_zero, _ = guided(data, tmp_path / "a", guidance, l_ib=maps(data))
    control, _ = guided(data, tmp_path / "b", None)
    for a, b in zip(with_zero.state_dict().values(), control.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    moved, _ = guided(data, tmp_path / "c", guidance.model_copy(update={"mu": 5.0}), l_ib=maps(data))
    assert not equal(moved, control)


def test_one_step_is_eq_11(data, tmp_path):
    """One SGD step of the whole set against Algorithm 1 written out."""
    lr = 0.05
    guidance = Guidance(
        mu=2.0,
        step_size=0.1,
        steps=2,
        divergence=DivergenceSettings(reduction="sum"),
        training=TrainingSettings(epochs=1, batch_size=1000, lr=lr, momentum=0.0),
    )
    net, _ = guided(data, tmp_path / "a", guidance, l_ib=maps(data))

    plain = network().eval()
    pairs = data.pairs("train")
    images, target = data.images(list(pairs["image_id"])), torch.tensor(pairs["target"].to_numpy())
    features = plain.stem(images)
    moved = guidance_target(plain.head, features.detach(), target, maps(data), beta=1.0, r=0.35, step_size=0.1, steps=2)
    loss = torch.nn.functional.cross_entropy(plain.head(features), target)
    loss = loss + 2.0 * feature_divergence(features, moved).mean()
    gradients = torch.autograd.grad(loss, list(plain.parameters()))
    for trained, start, gradient in zip(net.parameters(), plain.parameters(), gradients, strict=True):
        torch.testing.assert_close(trained, start - lr * gradient, rtol=1e-4, atol=1e-5)


def test_batch_norm_statistics_stay_frozen_under_guidance(data, tmp_path):
    before = {k: v.clone() for k, v in network().state_dict().items() if "running" in k}
    after = guided(data, tmp_path / "a", Guidance(training=TrainingSettings(epochs=1)), l_ib=maps(data))[0].state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(
    "changes", [{"mode": "end_to_end"}, {"bottleneck_network": "current"}, {"step_unit": "absolute"}]
)
def test_alternatives_train(data, tmp_path, changes):
    guidance = Guidance(step_size=0.2, training=TrainingSettings(epochs=1, batch_size=16, lr=0.01), **changes)
    net = network().eval()
    current = "bottleneck_network" in changes
    statistics = FeatureStatistics().update(net.stem(data.images(data.ids("train")))) if current else None
    trained, rows = guided(
        data,
        tmp_path / "a",
        guidance,
        l_ib=None if current else maps(data),
        statistics=statistics,
        bottleneck=Bottleneck(steps=2, samples=2) if current else None,
    )
    assert rows[0]["guidance"] > 0
    assert rows[0]["loss"] == pytest.approx(rows[0]["classification"] + 2 * rows[0]["guidance"], rel=1e-5)
    assert not equal(trained, net)


def test_multilabel_is_scored_by_map(data, tmp_path):
    net, rows = classifier(data, tmp_path / "a", epochs=1, net=network(multilabel=True))
    assert "held_out_map" in rows[0]
    _, rows = guided(data, tmp_path / "b", Guidance(training=TrainingSettings(epochs=1)), l_ib=maps(data), net=net)
    assert "held_out_map" in rows[0]


def test_a_diverging_loss_stops_with_a_sentence(data, tmp_path):
    with pytest.raises(TrainingError, match=r"net: the loss became (nan|inf) in epoch \d; lower the learning rate"):
        classifier(data, tmp_path / "a", lr=1e30, weight_decay=1e30, epochs=6)


def test_a_collapse_stops_with_a_sentence(data, tmp_path, monkeypatch):
    scores = iter([0.9, 0.5])
    monkeypatch.setattr(guided_training, "held_out_score", lambda *_: ("accuracy", next(scores)))
    with pytest.raises(TrainingError, match=r"accuracy fell from 0.900 to 0.500.*guidance\.step_size"):
        guided(data, tmp_path / "a", Guidance(training=TrainingSettings(epochs=1)), l_ib=maps(data))


def test_a_dead_classifier_is_noticed(data, tmp_path):
    net = network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    with pytest.raises(TrainingError, match="collapsed"):
        classifier(data, tmp_path / "a", epochs=1, net=net, lr=1e-12)


def test_losses():
    logits, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(classification_loss(logits, labels, False)[0], log2)
    torch.testing.assert_close(classification_loss(logits, labels, True)[0], 2 * log2)


def test_statistics_are_of_the_training_images(data):
    net = network().eval()
    features = net.stem(data.images(data.ids("train"))).detach()
    statistics = feature_statistics(net, data, 7, CPU)
    assert statistics.count == len(data.ids("train")) == 24
    torch.testing.assert_close(statistics.mean, features.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics.std, features.std(0), rtol=1e-4, atol=1e-5)


def test_several_classes_on_an_image_need_a_multilabel_network(data, tmp_path, monkeypatch):
    monkeypatch.setattr(data.__class__, "labels", lambda self, split: torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"data\.multilabel: 2 train images show several classes"):
        classifier(data, tmp_path / "a")
