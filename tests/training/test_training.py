"""Training: resumed bit for bit, the same start and order for guided and control, and clear ends."""

from itertools import combinations

import pandas as pd
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ibsgl.bottleneck import Bottleneck, FeatureStatistics
from ibsgl.config.schema import Guidance
from ibsgl.errors import TrainingError
from ibsgl.guidance import DivergenceSettings, classification_loss
from ibsgl.guidance.algorithm import feature_divergence, guidance_target
from ibsgl.guidance.teachers import other_pairs
from ibsgl.networks import build_network
from ibsgl.precompute import bottleneck_maps, feature_statistics, other_targets
from ibsgl.suppression import SuppressionSettings
from ibsgl.training import epochs
from ibsgl.training import guided as guided_training
from ibsgl.training.classifier import train_classifier
from ibsgl.training.guided import collapsed, train_guided
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


def guided(data, path, guidance, *, l_ib=None, statistics=None, bottleneck=None, net=None, digest="d", **seeds):
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
        **{"seed": 3, **seeds},
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


def test_the_loss_none_is_plain_training(data, tmp_path):
    training = TrainingSettings(epochs=2, batch_size=8, lr=0.01)
    plain, rows = guided(data, tmp_path / "a", Guidance(loss="none", teacher="boxes", training=training))
    control, again = guided(data, tmp_path / "b", None)
    assert equal(plain, control)
    assert rows == again
    assert "guidance" not in rows[0]


def test_variants_differ_by_their_teacher(data, tmp_path):
    """All begin with the same network and have the same order, so that what they were taught is the only difference."""
    training = TrainingSettings(epochs=1, batch_size=8, lr=0.01)
    trained = {}
    for teacher in ("bottleneck", "shuffled", "uniform", "boxes", "none"):
        l_ib = None if teacher == "none" else maps(data)
        guidance = Guidance(teacher=teacher, step_size=0.2, training=training)
        trained[teacher], rows = guided(data, tmp_path / teacher, guidance, l_ib=l_ib)
        assert rows[0]["guidance"] > 0
    for one, two in combinations(trained.values(), 2):
        assert not equal(one, two)
    # The maps are those of the teacher, in the order of the pairs.
    pairs = data.pairs("train")
    others = {
        "shuffled": maps(data)[other_pairs(pairs, 3)],
        "boxes": nn.functional.adaptive_avg_pool2d(data.regions(pairs).float(), 2),
    }
    for teacher, taught in others.items():
        again, _ = guided(data, tmp_path / f"{teacher} again", Guidance(step_size=0.2, training=training), l_ib=taught)
        assert equal(again, trained[teacher])


def test_the_noise_of_the_current_bottleneck_has_its_own_seed(data, tmp_path):
    guidance = Guidance(
        step_size=0.2, bottleneck_network="current", training=TrainingSettings(epochs=1, batch_size=1000, lr=0.01)
    )
    net = network().eval()
    arguments = {
        "statistics": FeatureStatistics().update(net.stem(data.images(data.ids("train")))),
        "bottleneck": Bottleneck(steps=2, samples=2),
    }

    def train(name, **seeds):
        return guided(data, tmp_path / name, guidance, **arguments, **seeds)[0]

    assert equal(train("a", noise_seed=7), train("b", noise_seed=7))
    assert not equal(train("c", noise_seed=7), train("d", noise_seed=8))
    with pytest.raises(ValueError, match="current needs the bottleneck's settings and feature statistics"):
        guided(data, tmp_path / "e", guidance, l_ib=maps(data))


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
        classifier(data, tmp_path / "a", lr=1000, weight_decay=1e7, epochs=6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            r"net: the training with guidance has lost 0\.400 .* lower guidance\.step_size, guidance\.mu or guidance\.training",
        ),
        (
            {"loss": "none"},
            r"net: the training without guidance has lost 0\.400 of the .*0\.900; lower guidance\.training\.lr",
        ),
    ],
)
def test_a_collapse_is_recorded_and_stops_nothing(data, tmp_path, monkeypatch, changes, sentence):
    scores = iter([0.9, 0.1, 0.5])
    monkeypatch.setattr(guided_training, "held_out_score", lambda *_: ("accuracy", next(scores)))
    guidance = Guidance(training=TrainingSettings(epochs=2, batch_size=8), **changes)
    with pytest.warns(UserWarning, match=sentence):
        _, rows = guided(data, tmp_path / "a", guidance, l_ib=maps(data))
    assert [row["held_out_accuracy"] for row in rows] == [0.1, 0.5]
    assert collapsed(rows)


def test_a_training_that_recovers_has_not_collapsed(data, tmp_path, monkeypatch, recwarn):
    scores = iter([0.9, 0.1, 0.8])
    monkeypatch.setattr(guided_training, "held_out_score", lambda *_: ("accuracy", next(scores)))
    _, rows = guided(data, tmp_path / "a", None)
    assert not collapsed(rows)
    assert not collapsed([])
    assert not [warning for warning in recwarn if "has lost" in str(warning.message)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_configured_momentum_is_the_one_that_runs(data, tmp_path, optimizer):
    """The schedule changes the learning rate, and nothing else."""
    groups = []
    handle = register_optimizer_step_pre_hook(lambda run, *_: groups.append(dict(run.param_groups[0])))
    try:
        classifier(data, tmp_path / "a", optimizer=optimizer, schedule="one_cycle", momentum=0.7, lr=1e-3)
    finally:
        handle.remove()
    assert len({group["lr"] for group in groups}) == len(groups) == 9
    key, value = ("momentum", 0.7) if optimizer == "sgd" else ("betas", (0.9, 0.999))
    assert {group[key] for group in groups} == {value}


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


def test_the_other_target_is_the_likeliest_class_that_is_not_shown(data, monkeypatch):
    net, pairs = network().eval(), data.pairs("held_out")
    with torch.no_grad():
        logits = net(data.images(list(pairs["image_id"])))
    own = logits.argmax(1)
    # Of the likeliest class the second is taken, of any other class the likeliest.
    likeliest = other_targets(net, data, pairs.assign(target=own.numpy()), 5, CPU)
    assert torch.equal(likeliest, logits.topk(2).indices[:, 1])
    last = logits.argmin(1)
    assert torch.equal(other_targets(net, data, pairs.assign(target=last.numpy()), 5, CPU), own)
    # A multi-label image shows both classes here.
    shown = torch.zeros_like(logits).scatter_(1, own[:, None], 1)
    monkeypatch.setattr(data.__class__, "labels", lambda self, split: shown)
    multilabel = network(multilabel=True).eval()
    multilabel.load_state_dict(net.state_dict())
    several = other_targets(multilabel, data, pairs.assign(target=last.numpy()), 5, CPU)
    assert torch.equal(several, logits.topk(2).indices[:, 1])


def test_maps_of_other_targets(data):
    net, pairs = network().eval(), data.pairs("held_out")
    statistics = FeatureStatistics().update(net.stem(data.images(data.ids("train"))))
    method = Bottleneck(steps=2, samples=2)

    def l_ib(rows):
        return bottleneck_maps(net, data, rows, method, statistics, seed=0, batch_size=5, device=CPU)

    other = other_targets(net, data, pairs, 5, CPU)
    both = pd.concat([pairs, pairs.assign(target=other.numpy())])
    torch.testing.assert_close(l_ib(both)[len(pairs) :], l_ib(pairs.assign(target=other.numpy())), rtol=1e-3, atol=1e-4)
    assert not torch.equal(l_ib(pairs), l_ib(pairs.assign(target=other.numpy())))


def test_several_classes_on_an_image_need_a_multilabel_network(data, tmp_path, monkeypatch):
    monkeypatch.setattr(data.__class__, "labels", lambda self, split: torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"data\.multilabel: 2 train images show several classes"):
        classifier(data, tmp_path / "a")
