"""Other forms of maps: each against a computation of its own, and the command on a small finished run."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from skimage.transform import resize
from torch import nn
from typer.testing import CliRunner

from baselines.fullgrad import FullGrad
from baselines.gradcam_pp import GradCAMPlusPlus
from baselines.integrated_gradients import IntegratedGradients
from baselines.rise import RISE
from ibsgl import attribution, bottleneck, config
from ibsgl.bottleneck import Bottleneck, FeatureStatistics, bottleneck_saliency
from ibsgl.maps import compute_maps
from ibsgl.metrics.localization import ebpg
from ibsgl.networks.split import SplitNetwork, upsample
from ibsgl.precompute import feature_statistics
from ibsgl.randomness import generator
from ibsgl.seals import save_tensors

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "docs" / "measured" / "forms.csv"


@pytest.fixture
def forms(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import forms

    return forms


def other_form(forms, name, ours, network=None, data=None):
    return forms.FORMS[name].make(ours, network, data)


def statistics_of(network, images):
    with torch.no_grad():
        return FeatureStatistics().update(network.stem(images))


class _Flat(nn.Module):
    """Two logits that depend on every feature in its own way, through a ReLU."""

    def __init__(self, size):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(size, 5, generator=g, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(5, 2, generator=g, dtype=torch.float64))

    def forward(self, features):
        return (features.flatten(1) @ self.first).relu() @ self.second


def test_active_neurons_are_counted_over_the_training_images(forms):
    # 200 images of 4 neurons: active in none, in 1 % (which is not enough), in 1.5 %, and in all of them.
    images = torch.zeros(200, 3, 2, 2)
    images[:, 1:] = 1
    for place, count in enumerate((0, 2, 3, 200)):
        images[:count, 0].flatten(1)[:, place] = 1
    data = SimpleNamespace(
        ids=lambda split: [split] * 200, batches=lambda ids, size: ((ids, part) for part in images.split(size))
    )
    network = SplitNetwork(nn.Identity(), nn.Flatten())
    found = forms.active_neurons(network, data)
    assert found[0].tolist() == [[False, False], [True, True]]
    assert found[1:].all()


def test_inactive_neurons_contribute_nothing(forms, monkeypatch):
    """Without the third channel, the map is that of a network that has only the first two."""
    monkeypatch.setattr(bottleneck, "_draw", lambda drawn, generators: drawn.zero_())
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([0, 1])
    head = _Flat(3 * 4 * 5)
    network = SplitNetwork(nn.Identity(), head)
    ours = Bottleneck(alpha=0.1, steps=6, samples=1, reduction="sum")
    active = torch.tensor([True, True, False])[:, None, None].expand(3, 4, 5)
    method = forms.ActiveBottleneck(ours, active)
    found = method(network, images, targets, statistics=statistics_of(network, images))

    small = _Flat(2 * 4 * 5)
    small.first.data, small.second.data = head.first.data[: 2 * 4 * 5], head.second.data
    two = images[:, :2]
    expected = bottleneck_saliency(small, two, targets, FeatureStatistics().update(two), **ours.model_dump())
    torch.testing.assert_close(found, expected)
    everything = forms.ActiveBottleneck(ours, torch.ones(3, 4, 5, dtype=torch.bool))
    arguments = (network, images, targets)
    statistics = statistics_of(network, images)
    assert torch.equal(everything(*arguments, statistics=statistics), ours(*arguments, statistics=statistics))
    assert not torch.allclose(found, ours(*arguments, statistics=statistics))


@pytest.mark.parametrize("name", ["resnet", "multilabel"])
def test_the_map_before_the_last_step(forms, networks, images, targets, name, monkeypatch):
    """It is the information in the last pass of the loop, whose gradient the last step follows."""
    network, passes, original = networks[name], [], bottleneck.kl_slope

    def record(*arguments):
        passes.append(bottleneck.kl_to_prior(*arguments))
        return original(*arguments)

    ours, statistics = Bottleneck(steps=4, samples=3), statistics_of(network, images)
    generators = [[generator(0, "bottleneck", i) for i in range(3)] for _ in range(2)]
    with monkeypatch.context() as patches:
        patches.setattr(bottleneck, "kl_slope", record)
        last = ours(network, images, targets, generators[0], statistics=statistics)
    other = other_form(forms, "bottleneck_before_last_step", ours)
    found = other(network, images, targets, generators[1], statistics=statistics)
    assert len(passes) == 4
    assert torch.equal(found, upsample(passes[3].sum(1).clamp_min(0), images.shape[-2:]))
    assert not torch.equal(found, last)


def test_normalised_alphas_by_hand(forms):
    # As in the test of our Grad-CAM++: in channel 1, α is 1/4 at g = 1 and 1/6 at g = 2, with the sum 5/12. w = 7/12 / (5/12).
    # In channel 2, α is 1/4 at g = ½, which is also the sum. w = ½.
    # 7/5 [[1,0],[0,1]] + ½ [[0,2],[1,1]] = [[1.4, 1], [0.5, 1.9]]
    image = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 2], [1, 1]], [[0, 0], [0, 0]]]])
    linear = nn.Linear(12, 1, bias=False)
    linear.weight.data = torch.tensor([[1, -1, 0, 2, -0.5, 0.5, 0, -2, 3, -3, 0, 0]])
    network = SplitNetwork(nn.Identity(), nn.Sequential(nn.Flatten(), linear))
    method = other_form(forms, "gradcam_pp_normalised", GradCAMPlusPlus())
    expected = torch.tensor([[[1.4, 1], [0.5, 1.9]]])
    torch.testing.assert_close(method(network, image, torch.tensor([0])), expected)


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_normalised_alphas_as_in_the_authors_code(forms, networks, images, targets, name):
    network, images = networks[name].double(), images.double()
    features = network.stem(images).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network.head(features).gather(1, targets[:, None]).sum(), features)
    a, g = features.detach().numpy(), gradient.numpy()
    denominator = 2 * g**2 + g**3 * a.sum((2, 3), keepdims=True)
    alpha = g**2 / np.where(denominator != 0, denominator, 1)
    positive = np.maximum(g, 0)
    total = np.where(positive, alpha, 0).sum((2, 3), keepdims=True)
    weights = (positive * alpha / np.where(total != 0, total, 1)).sum((2, 3))
    expected = np.maximum(np.einsum("bk,bkij->bij", weights, a), 0)
    assert expected.max() > 0
    found = other_form(forms, "gradcam_pp_normalised", GradCAMPlusPlus())(network, images, targets)
    torch.testing.assert_close(found, upsample(torch.from_numpy(expected), images.shape[-2:]), rtol=1e-9, atol=1e-12)


def test_fullgrad_with_an_epsilon(forms, networks, images, targets):
    network, images = networks["vgg"].double(), images.double()
    ours = FullGrad()
    method = other_form(forms, "fullgrad_epsilon", ours)
    found, without = method(network, images, targets), ours(network, images, targets)
    assert (found < without).all()
    terms = ours.decompose(network, images, targets)
    for i in range(len(images)):
        expected = torch.zeros(images.shape[-2:], dtype=torch.float64)
        for term in [terms.input, *(term for _, term in terms.biases if term.ndim == 4)]:
            size = term[i].abs() - term[i].abs().min()
            expected += upsample((size / (size.max() + 1e-6)).sum(0, keepdim=True), images.shape[-2:])[0]
        torch.testing.assert_close(found[i], expected)
    # With larger gradients it is negligible.
    network.head[-1].weight.data *= 1000
    found, without = method(network, images, targets), ours(network, images, targets)
    torch.testing.assert_close(found, without, rtol=1e-4, atol=0)


def test_fullgrad_with_scaled_channels_is_that_of_the_package(forms, networks, images, targets):
    from pytorch_grad_cam import FullGrad as Reference
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = networks["vgg"]
    normalize, backbone = network.stem.children()
    found = other_form(forms, "fullgrad_channels", FullGrad())(network, images, targets).numpy()
    with contextlib.redirect_stdout(io.StringIO()), Reference(nn.Sequential(backbone, network.head), []) as cam:
        reference = cam(normalize(images), [ClassifierOutputTarget(target) for target in targets.tolist()])

    def scaled(maps):
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        return (maps - low) / (high - low)

    # The package scales its map last.
    np.testing.assert_allclose(scaled(found), reference, rtol=0, atol=1e-4)
    assert np.abs(scaled(FullGrad()(network, images, targets).numpy()) - reference).max() > 0.01


def test_mirrored_masks_are_those_of_the_authors_resize(forms):
    # 48×64 by 5 cells: cells of 10×13, masks cut from 60×78.
    ours = RISE(masks=9, cells=5, p=0.4, chunk=4)
    method = other_form(forms, "rise_mirrored_border", ours)
    numbers = ours._draw(generator(0, "rise"))
    found, size = method._masks(numbers, torch.Size((48, 64))), (60, 78)
    for mask, row in zip(found.numpy(), numbers.numpy(), strict=True):
        grid = (row[:-2] < np.float32(0.4)).astype("float32").reshape(5, 5)
        x, y = int(row[-2] * 10), int(row[-1] * 13)
        large = resize(grid, size, order=1, mode="reflect", anti_aliasing=False)
        np.testing.assert_allclose(mask, large[x : x + 48, y : y + 64], atol=1e-6)
    # Ours differs in the outermost half cells alone.
    whole = torch.cat([numbers[:, :-2], torch.zeros(9, 2)], 1)
    mirrored, nearest = (which._masks(whole, torch.Size((48, 64))) for which in (method, ours))
    assert not torch.allclose(mirrored[:, :6], nearest[:, :6])
    torch.testing.assert_close(mirrored[:, 6:, 8:], nearest[:, 6:, 8:], rtol=0, atol=1e-6)


def test_mirrored_rise_has_the_draws_of_ours(forms, networks, images, targets):
    ours = RISE(masks=12, cells=3, chunk=5)
    method = other_form(forms, "rise_mirrored_border", ours)
    assert (method.masks, method.cells, method.p, method.fill, method.chunk) == (12, 3, 0.5, "black", 5)
    first, second = (which(networks["vgg"], images, targets, generator(0, "rise")) for which in (ours, method))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, rtol=0, atol=0.3)
    # It does not change the enlargement for others.
    assert torch.equal(first, ours(networks["vgg"], images, targets, generator(0, "rise")))


def test_the_sign_of_integrated_gradients(forms, networks, images, targets):
    ours = IntegratedGradients(steps=4, chunk=2)
    positive, first = (
        other_form(forms, f"integrated_gradients_{name}", ours)(networks["resnet"], images, targets)
        for name in ("positive", "absolute_first")
    )
    a = ours.attributions(networks["resnet"], images, targets).numpy()
    absolute = ours(networks["resnet"], images, targets)
    np.testing.assert_array_equal(positive.numpy(), np.maximum(a.sum(1), 0))
    np.testing.assert_allclose(first.numpy(), np.abs(a).sum(1), rtol=1e-6)
    assert (positive <= absolute).all()
    assert (absolute <= first * (1 + 1e-6)).all()
    assert ((positive == 0) & (absolute > 0)).any()


def test_summary_by_hand(forms):
    pairs = pd.DataFrame(
        [
            # Two pairs of image a, whose differences are 1 and 3, and one of image b with the difference 4.
            *(("f", "m", replicate, "a", 10.0 + replicate, 11.0 + replicate, 1.0) for replicate in range(2)),
            *(("f", "m", replicate, "a", 10.0 + replicate, 13.0 + replicate, float("nan")) for replicate in range(2)),
            *(("f", "m", replicate, "b", 20.0 + replicate, 24.0 + replicate, 0.5) for replicate in range(2)),
        ],
        columns=["form", "model", "replicate", "image_id", "ours", "other", "r"],
    ).assign(arch="net", description="other")
    (row,) = forms.summary(pairs).to_dict("records")
    assert row["difference"] == pytest.approx(3)
    assert (row["ours"], row["other"], row["r"]) == pytest.approx((15.5, 18.5, 0.75))
    assert (row["arch"], row["metric"], row["replicates"], row["images"]) == ("net", "ebpg", 2, 2)
    # Only the images vary, with one degree of freedom: the standard error is 1, and the t quantile 12.706.
    assert (row["low"], row["high"]) == pytest.approx((3 - 12.7062, 3 + 12.7062), abs=1e-3)


@pytest.fixture
def run(small_shapes, tmp_path):
    """A finished run of two replicates: its config file, its folder, and its networks with random weights."""
    data = small_shapes(12, 5)
    values = yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text()) | {"replicates": 2}
    values["methods"] |= {"integrated_gradients": {"steps": 2}}
    values["data"] = {"source": "voc", "root": str(data.root), "held_out": 0.3}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    settings = config.read([file])
    built = []
    for replicate in range(2):
        folder = tmp_path / "results" / "resnet" / str(replicate) / "pretrained"
        folder.mkdir(parents=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(replicate)
            network = settings.network("resnet").build(len(data.index.class_names))
        save_tensors(folder / "network.pt", network.state_dict())
        statistics = feature_statistics(network, data, 8, torch.device("cpu"))
        save_tensors(folder / "statistics.pt", statistics.state_dict())
        built.append((network, statistics))
    data.index.save(tmp_path / "results" / "index.parquet")
    return SimpleNamespace(file=file, folder=tmp_path / "results", data=data, settings=settings, built=built)


def invoke(forms, run, out, *arguments):
    options = ["--config", str(run.file), "--results", str(run.folder), "--out", str(out), *arguments]
    return CliRunner().invoke(forms.app, options)


def test_command(forms, run, tmp_path):
    out = tmp_path / "new" / "forms.csv"
    done = invoke(forms, run, out)
    assert done.exit_code == 0, (done.output, done.exception)
    table = pd.read_csv(out)
    assert list(table["form"]) == list(forms.FORMS)
    assert set(table["model"]) == {"resnet"}
    assert (table[["replicates", "images"]] == [2, 5]).all().all()
    np.testing.assert_allclose(table["difference"], table["other"] - table["ours"], atol=2e-3)
    assert (table["low"] <= table["difference"]).all()
    assert (table["difference"] <= table["high"]).all()
    assert table["r"].between(-1, 1).all()
    # Ours are the maps of the run itself, with its settings and draws.
    names = {forms.FORMS[form].method for form in forms.FORMS}
    methods = {name: attribution.get(name, **run.settings.method_settings(name)) for name in names}
    values = {name: [] for name in names}
    for network, statistics in run.built:
        options = {"seed": 0, "batch_size": 3, "device": torch.device("cpu"), "statistics": statistics}
        for rows, maps in compute_maps(network, run.data, run.data.pairs("test"), methods, **options):
            for name, saliency in maps.items():
                values[name] += (100 * ebpg(saliency, run.data.regions(rows))).tolist()
    expected = [np.mean(values[forms.FORMS[form].method]) for form in table["form"]]
    np.testing.assert_allclose(table["ours"], expected, rtol=1e-4)

    again = tmp_path / "again.csv"
    done = invoke(forms, run, again, "--forms", "rise_mirrored_border", "--forms", "gradcam_pp_normalised")
    assert done.exit_code == 0, (done.output, done.exception)
    chosen = pd.read_csv(again)
    assert list(chosen["form"]) == ["rise_mirrored_border", "gradcam_pp_normalised"]
    same = table.set_index("form").loc[chosen["form"]].reset_index()
    pd.testing.assert_frame_equal(chosen, same)


def test_errors_are_one_line(forms, run, tmp_path):
    def last_line(*arguments):
        done = invoke(forms, run, tmp_path / "none.csv", *arguments)
        assert done.exit_code == 2, (done.output, done.exception)
        return done.output.splitlines()[-1]

    assert "there is no form 'rise'; take one of bottleneck_active_neurons, " in last_line("--forms", "rise")
    network = run.folder / "resnet" / "1" / "pretrained" / "network.pt"
    network.write_bytes(b"")
    assert f"{network}: the tensors cannot be read" in last_line()
    network.unlink()
    assert f"there is no file {network}; run the workflow with this config first" in last_line()
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.skipif(not COMMITTED.exists(), reason="docs/measured/forms.csv is not there")
def test_committed_table_has_every_form(forms):
    table = pd.read_csv(COMMITTED)
    models = table["model"].unique()
    assert set(models) <= set(config.read([ROOT / "config" / "shapes.yaml"]).models)
    assert list(zip(table["form"], table["model"], strict=True)) == [
        (form, model) for form in forms.FORMS for model in models
    ]
