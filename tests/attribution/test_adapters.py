"""Methods of other libraries keep our promises and give the library's values, or are refused before a run."""

import sys

import captum.attr
import pytest
import torch
from method_contract import assert_plain, assert_same, assert_same_twice, make_case, run_on_a_used_network
from other_libraries import PAGE, ROWS, rewritten
from pytorch_grad_cam import LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from ibsgl import attribution
from ibsgl.attribution.adapters import base
from ibsgl.attribution.adapters import captum as of_captum
from ibsgl.attribution.adapters import grad_cam as of_grad_cam
from ibsgl.attribution.adapters import zennit as of_zennit
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import generator

every_row = pytest.mark.parametrize("name", ROWS)
SIZE = (32, 40)


@pytest.fixture
def images(images):
    return images[:2, :, : SIZE[0], : SIZE[1]]


@pytest.fixture
def targets(targets):
    return targets[:2]


@pytest.fixture
def case(networks, images, targets):
    """Builds a case by row and network name."""

    def build(name, network="resnet", dtype=torch.float64):
        return make_case(name, ROWS[name], networks[network], images, targets, dtype)

    return build


# The promises, as those of our own methods in tests/baselines/test_common.py.


@every_row
def test_map_is_finite_nonnegative_and_the_same_twice(case, name):
    case = case(name, dtype=torch.float32)
    assert_plain(case(), (2, *SIZE))
    case.images, case.targets = case.images[:1], case.targets[:1]
    assert_same_twice(case)


@every_row
def test_black_and_uniform_images_have_finite_maps(case, name):
    case = case(name, "vgg", torch.float32)
    case.images = torch.stack([torch.zeros_like(case.images[0]), torch.full_like(case.images[0], 0.5)])
    assert_plain(case(), (2, *SIZE))


@every_row
def test_alone_as_in_a_batch_also_in_train_mode_and_under_no_grad(case, name):
    case = case(name)
    batch = case()
    case.network.train()
    with torch.no_grad():
        assert_same(case(index=[1]), batch[1:])


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if attribution.row(name, row).method.alone])
def test_one_generator_is_shared_by_the_batch(case, name):
    case = case(name)
    maps = [
        case.method(case.network, case.images[index], case.targets[index], torch.Generator().manual_seed(4))
        for index in ([0, 1], [1])
    ]
    assert_same(maps[1], maps[0][1:2])


@pytest.mark.parametrize("fails", [None, "stem", "head"])
@every_row
def test_network_is_left_as_it_was(case, name, fails):
    case = case(name, dtype=torch.float32)
    case.images, case.targets = case.images[:1], case.targets[:1]
    before, after, message = run_on_a_used_network(case, fails)
    assert message == ("out of order" if fails else None)
    assert after == before


@pytest.mark.parametrize("name", ["captum-Saliency", "grad_cam-GradCAM", "zennit-epsilon_plus"])
def test_wrong_inputs_are_an_error(case, name):
    case = case(name)
    with pytest.raises(ValueError, match="targets must"):
        case(targets=torch.tensor([0, 1, 2]))
    case.images = case.images[:, :1]
    with pytest.raises(ValueError, match="images must have the shape"):
        case()


# The same values as ours, or as those of the library alone


def found(network, images, targets, use, **settings):
    return attribution.get(use, **settings)(network, images, targets, [generator(0, i) for i in range(len(images))])


def over_maximum(maps):
    """As grad-cam scales each map: from 0 to 1."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


@pytest.fixture(params=["resnet", "vgg"])
def network(networks, request):
    network = networks[request.param].double()
    network.head[-1].weight.data *= 10
    return network


@pytest.fixture
def doubles(images):
    return images.double()


@pytest.mark.parametrize(
    ("method", "ours"), [("GradCAM", "gradcam"), ("GradCAMPlusPlus", "gradcam_pp"), ("HiResCAM", "gradient")]
)
def test_grad_cams_methods_are_ours(network, doubles, targets, method, ours):
    # Each map is scaled on the feature map, so the comparison is there: where the map is not resized.
    size = network.stem(doubles).shape[-2:]
    theirs = attribution.get("grad_cam", method=method)

    def on_features(maps):
        # Bilinear interpolation keeps the values only where pixels coincide, so it is undone by least squares.
        basis = torch.eye(size.numel(), dtype=torch.float64).view(-1, 1, *size)
        up = nn.functional.interpolate(basis, SIZE, mode="bilinear", align_corners=False).flatten(1)
        solved = torch.linalg.lstsq(up.T, maps.double().flatten(1).T).solution.T
        return solved.view(-1, *size)

    expected = over_maximum(on_features(attribution.get(ours)(network, doubles, targets)))
    # The library's Grad-CAM++ has 1e-6 in a denominator, and the rest is float32.
    tolerance = 0.02 if method == "GradCAMPlusPlus" else 1e-5
    torch.testing.assert_close(on_features(theirs(network, doubles, targets)), expected, rtol=0, atol=tolerance)


def test_grad_cams_score_cam_is_ours_where_no_mask_is_resized(images, targets):
    # The library resizes masks with aligned corners. These feature maps have the size of the image.
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4))
    network = SplitNetwork(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()), head).eval()
    head[-1].weight.data *= 10
    theirs = found(network, images, targets, "grad_cam", method="ScoreCAM")
    ours = attribution.get("score_cam", weight="softmax_scores")(network, images, targets)
    torch.testing.assert_close(theirs, over_maximum(ours), rtol=0, atol=1e-5)


def test_a_map_of_grad_cam_is_the_librarys(network, images, targets):
    network.float()
    ours = found(network, images, targets, "grad_cam", method="LayerCAM")
    with LayerCAM(network, [network.stem]) as cam:
        theirs = cam(images, [ClassifierOutputTarget(target) for target in targets.tolist()])
    # The library scales a map again after it is resized.
    torch.testing.assert_close(over_maximum(ours), torch.from_numpy(theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("sign", "of"), [("absolute", torch.abs), ("positive", torch.relu)])
def test_captums_saliency_is_the_gradient(network, doubles, targets, sign, of):
    point = doubles.clone().requires_grad_(True)
    score = network(point).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, point)
    theirs = found(network, doubles, targets, "captum", method="Saliency", arguments={"abs": False}, sign=sign)
    torch.testing.assert_close(theirs, of(gradient.sum(1)))


def test_captums_integrated_gradients_are_ours(network, doubles, targets):
    theirs = found(
        network, doubles, targets, "captum", method="IntegratedGradients", arguments={"n_steps": 9}, sign="absolute"
    )
    ours = attribution.get("integrated_gradients", steps=9)(network, doubles, targets)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6 * ours.max().item())


def test_captums_layer_grad_cam_is_ours_up_to_the_number_of_channels(network, doubles, targets):
    theirs = found(network, doubles, targets, "captum", method="LayerGradCam", sign="positive")
    torch.testing.assert_close(theirs, attribution.get("gradcam")(network, doubles, targets))


def test_captums_occlusion_is_a_loop_over_windows(network, doubles, targets):
    arguments = {"sliding_window_shapes": [3, 8, 10], "strides": [3, 8, 10], "baselines": 0.5}
    theirs = found(network, doubles, targets, "captum", method="Occlusion", arguments=arguments, sign="positive")

    def scores(batch):
        with torch.no_grad():
            return network(batch).gather(1, targets[:, None])[:, 0]

    expected = torch.zeros(2, *SIZE, dtype=torch.float64)
    for top in range(0, SIZE[0], 8):
        for left in range(0, SIZE[1], 10):
            window = (..., slice(top, top + 8), slice(left, left + 10))
            hidden = doubles.clone()
            hidden[window] = 0.5
            # Each of the three colours of a window has its difference, and they are summed.
            expected[window] = 3 * (scores(doubles) - scores(hidden))[:, None, None]
    torch.testing.assert_close(theirs, expected.relu())


def test_features_of_a_mask_are_a_grid(network, doubles, targets):
    maps = found(
        network, doubles, targets, "captum", method="FeatureAblation", arguments={"feature_mask": 2}, sign="absolute"
    )
    blocks = maps.unflatten(1, (2, 16)).unflatten(3, (2, 20)).transpose(2, 3).flatten(3)
    torch.testing.assert_close(blocks.amin(3), blocks.amax(3))
    assert maps[0].unique().numel() == 4


def test_relevance_of_a_linear_network_is_by_hand():
    """With the ε-rule of a dense layer, R_i = x_i w_i / (Σ x_j w_j + ε), and the relevance of the class is 1."""
    linear = nn.Linear(12, 2, bias=False)
    network = SplitNetwork(nn.Identity(), nn.Sequential(nn.Flatten(), linear), mean=[0.5] * 3, std=[0.2] * 3).eval()
    images = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    settings = {"composite": "epsilon_plus", "arguments": {"epsilon": 1e-6}}
    positive = found(network, images, torch.tensor([1]), "zennit", sign="positive", **settings)
    products = (images - 0.5) / 0.2 * linear.weight[1].view(3, 2, 2)
    expected = (products / products.sum()).sum(1)
    torch.testing.assert_close(positive, expected.relu().detach(), rtol=1e-4, atol=1e-5)
    absolute = found(network, images, torch.tensor([1]), "zennit", sign="absolute", **settings)
    torch.testing.assert_close(absolute, expected.abs().detach(), rtol=1e-4, atol=1e-5)


def test_relevance_is_kept_from_layer_to_layer():
    """Without biases, the rules of excitation backprop pass on all of the relevance, also through a residual sum."""
    torch.manual_seed(0)
    from ibsgl.networks.small import BasicBlock

    network = SplitNetwork(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), BasicBlock(4, 4, 1)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2, bias=False)),
    ).eval()
    for parameter in network.parameters():
        parameter.data.abs_()
    images = torch.rand(2, 3, 12, 12)
    maps = found(network, images, torch.tensor([1, 0]), "zennit", composite="epsilon_plus", sign="absolute")
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2), rtol=1e-3, atol=0)


# Refused before a run


REASONS = {
    **{("captum", method): reason for method, reason in of_captum.REFUSED.items()},
    **{("grad_cam", method): reason for method, reason in of_grad_cam.REFUSED.items()},
}


@pytest.mark.parametrize(("use", "method"), REASONS)
def test_what_breaks_a_promise_is_refused_with_the_reason(use, method):
    sign = {"sign": "absolute"} if use == "captum" else {}
    with pytest.raises(ValueError, match=f"{method} is not possible") as error:
        attribution.get(use, method=method, **sign)
    assert REASONS[use, method] in str(error.value)


class _Twice(nn.Module):
    """Calls one ReLU twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))))


@pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting forward")
def test_the_reasons_are_true(network, images, targets):
    network.float()
    with pytest.raises(TypeError, match="Normalize"):
        captum.attr.LRP(network).attribute(images, target=targets)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="more than once"):
        captum.attr.DeepLift(SplitNetwork(_Twice(), head).eval()).attribute(images, target=targets)
    mask = of_captum._grid(2, images.shape[-2:], images.device)
    permuted = captum.attr.FeaturePermutation(network)
    batch = permuted.attribute(images, target=targets, feature_mask=mask)
    alone = permuted.attribute(images[:1], target=targets[:1], feature_mask=mask)
    assert not torch.allclose(batch[:1], alone)


@pytest.mark.parametrize(
    ("use", "settings", "message"),
    [
        (
            "captum",
            {"method": "Occulsion", "sign": "absolute"},
            "captum's method 'Occulsion' is not known here; known are ",
        ),
        ("captum", {"method": "Saliency"}, "sign: Field required"),
        ("captum", {"method": "Saliency", "sign": "negative"}, "sign: Input should be 'absolute' or 'positive'"),
        (
            "captum",
            {"method": "Occlusion", "sign": "absolute"},
            "arguments.sliding_window_shapes: captum's Occlusion needs",
        ),
        (
            "captum",
            {"method": "Saliency", "sign": "absolute", "arguments": {"steps": 3}},
            "arguments.steps: captum's Saliency has no such argument; it has abs",
        ),
        (
            "captum",
            {"method": "Saliency", "sign": "absolute", "arguments": {"target": 3}},
            "arguments.target: captum's Saliency has no such argument",
        ),
        ("captum", {"method": "Lime", "sign": "absolute"}, "arguments.feature_mask: give n ≥ 1"),
        (
            "captum",
            {"method": "IntegratedGradients", "sign": "absolute", "arguments": {"baselines": [0, 1]}},
            "arguments.baselines: give a number",
        ),
        (
            "captum",
            {"method": "IntegratedGradients", "sign": "absolute", "arguments": {"n_steps": float("inf")}},
            "arguments.n_steps: inf is not a number",
        ),
        (
            "captum",
            {"method": "Saliency", "sign": "absolute", "arguments": {"abs": {}}},
            "arguments.abs: give a number",
        ),
        ("grad_cam", {"method": "LayerCam"}, "grad-cam's method 'LayerCam' is not known here"),
        ("grad_cam", {"method": "LayerCAM", "sign": "positive"}, "method 'grad_cam' has no setting 'sign'"),
        (
            "grad_cam",
            {"method": "LayerCAM", "arguments": {"aug_smooth": True}},
            "arguments.aug_smooth: grad-cam's LayerCAM",
        ),
        ("zennit", {"composite": "epsilon", "sign": "positive"}, "zennit's composite 'epsilon' is not known here"),
        (
            "zennit",
            {"composite": "epsilon_plus", "sign": "positive", "arguments": {"gamma": 1}},
            "arguments.gamma: zennit's epsilon_plus with gradient has no such argument; it has epsilon, stabilizer",
        ),
    ],
)
def test_mistakes_are_named(use, settings, message):
    with pytest.raises(ValueError, match=r".") as error:
        attribution.get(use, **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("captum-Saliency", "captum.attr", "captum"),
        ("grad_cam-LayerCAM", "pytorch_grad_cam", "grad-cam"),
        ("zennit-epsilon_plus", "zennit.composites", "zennit"),
        ("captum-Lime", "sklearn", "captum"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch, name, package, extra):
    # Python takes None for a module that is not there.
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"not installed; install ibsgl\[{extra}\]"):
        attribution.row(name, ROWS[name])


def test_labels_name_the_library_and_the_sign():
    assert attribution.row("a", ROWS["captum-Occlusion"]).label == "Occlusion (captum, absolute)"
    assert attribution.row("a", ROWS["grad_cam-LayerCAM"]).label == "LayerCAM (grad-cam)"
    assert attribution.row("a", ROWS["zennit-epsilon_plus"]).label == "epsilon_plus (zennit, positive)"
    assert attribution.row("a", ROWS["zennit-smooth_grad"]).label == "epsilon_plus, smooth_grad (zennit, positive)"


def test_every_method_of_the_libraries_is_known_or_refused():
    """A new version's methods show up here."""
    import pytorch_grad_cam
    from captum.attr import Attribution, LayerAttribution, NeuronAttribution
    from zennit.composites import COMPOSITES

    here = {**of_captum.METHODS, **of_captum.REFUSED}
    for name in captum.attr.__all__:
        found = getattr(captum.attr, name)
        if (
            not isinstance(found, type)
            or not issubclass(found, Attribution)
            or found in (Attribution, LayerAttribution)
        ):
            continue
        # Those of single neurons and of language models explain no class of an image.
        if issubclass(found, NeuronAttribution) or "LLM" in name or name.endswith(("Attribution", "Base")):
            continue
        assert name in here, name
    cams = {name for name in dir(pytorch_grad_cam) if hasattr(getattr(pytorch_grad_cam, name), "get_cam_image")}
    assert cams <= {*of_grad_cam.METHODS, *of_grad_cam.REFUSED}
    assert set(COMPOSITES) == {*of_zennit.COMPOSITES, *of_zennit.REFUSED}


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("IntegratedGradients", {"n_steps": "many"}),
        ("Occlusion", {"sliding_window_shapes": [16, 16]}),
    ],
)
def test_a_value_that_the_library_does_not_accept_is_one_line(networks, images, targets, method, arguments):
    row = attribution.get("captum", method=method, arguments=arguments, sign="absolute")
    with pytest.raises(ValueError, match=rf"^{method} \(captum, absolute\): .+; check its arguments$"):
        row(networks["resnet"], images, targets)


def test_the_copy_shares_weights_and_nothing_else(networks):
    network = networks["resnet"]
    copied = base.private_copy(network)
    for own, other in zip(network.parameters(), copied.parameters(), strict=True):
        assert own is not other
        assert own.data_ptr() == other.data_ptr()
    assert not {id(module) for module in network.modules()} & {id(module) for module in copied.modules()}


def test_the_tables_in_the_documentation_are_these():
    text = PAGE.read_text(encoding="utf-8")
    assert rewritten(text) == text, "run: python -m tests.other_libraries"
