"""Other implementations of the same methods, run at the same settings to compare speed and maps.

Each entry of :data:`PEERS` calls a package on a network, images and targets, and has a tolerance for the maps' difference.
The packages are optional: ``captum`` and ``grad-cam`` belong to the project's ``dev`` extra, TorchRay and IBA are imported from
the folders that they are checked out in.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import nn

from baselines.extremal_perturbation import _apply, _SmoothMaxConvolution
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.networks import SplitNetwork, evaluating
from ibsgl.randomness import draw

# The difference of two maps in words, and whether it is within the tolerance.
Verdict = tuple[str, bool]


@dataclass(frozen=True)
class Inputs:
    """What both implementations get.

    Attributes:
        method: our method with its settings.
        images: (B,3,H,W) in [0,1].
        targets: (B,) int64.
        statistics: of the feature map of ``statistics_images`` (N,3,H,W).
    """

    method: object
    network: SplitNetwork
    images: torch.Tensor
    targets: torch.Tensor
    statistics: FeatureStatistics
    statistics_images: torch.Tensor

    def ours(self) -> torch.Tensor:
        """Maps (B,H,W) of our method."""
        context = {"statistics": self.statistics} if "statistics" in self.method.requires else {}
        return self.method(self.network, self.images, self.targets, **context)

    def parts(self) -> tuple[nn.Module, nn.Module, torch.Tensor]:
        """The network without its normalisation, its target layer, and the normalised images."""
        normalize, backbone = self.network.stem.children()
        return nn.Sequential(backbone, self.network.head), backbone, normalize(self.images)


def _scaled(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's r of each pair of maps (B,h,w): (B,)."""
    a, b = (x.flatten(1).double() - x.flatten(1).double().mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def _differ_by(tolerance: float) -> Callable[[Inputs, torch.Tensor, torch.Tensor], Verdict]:
    """A comparison of maps scaled to [0,1] by the largest difference of a pixel."""

    def compare(inputs: Inputs, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
        found = (_scaled(ours) - _scaled(theirs)).abs().max().item()
        return f"difference {found:.1g} of the range ≤ {tolerance:g}", found <= tolerance

    return compare


def _correlate(least: float, why: str) -> Callable[[Inputs, torch.Tensor, torch.Tensor], Verdict]:
    """A comparison by correlation, for maps that differ by design. ``why`` is the reason."""

    def compare(inputs: Inputs, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
        found = _correlation(ours, theirs).min().item()
        return f"r = {found:.4f} ≥ {least:g}: {why}", found >= least

    return compare


def _same_masks(inputs: Inputs, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
    """RISE's masks are random. With our masks TorchRay must give our map."""
    from torchray.attribution.rise import rise_class

    method, size = inputs.method, inputs.images.shape[-2:]
    masks = method._masks(draw(method._draw, 1, None)[0].to(inputs.images), size)[:, None]
    theirs_of_our_masks = rise_class(
        inputs.network,
        inputs.images,
        target=inputs.targets,
        num_masks=method.masks,
        filter_masks=masks,
        batch_size=method.chunk,
    )[:, 0]
    found = ((theirs_of_our_masks / method.p - ours).abs().max() / ours.abs().max()).item()
    return f"with our masks, difference {found:.1g} of the maximum ≤ 1e-05", found <= 1e-5


def _same_mask_and_image(inputs: Inputs, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
    """The masks of Extremal Perturbation differ by design, so their parts are compared.

    The two implementations weight the area differently and rank the equal pixels of the first mask by chance. With the same
    parameters both must make the same mask and the same perturbed image.
    """
    from torchray.attribution.extremal_perturbation import MaskGenerator, Perturbation

    method, network = inputs.method, inputs.network
    _, _, images = inputs.parts()
    smooth_max = _SmoothMaxConvolution(images.shape[-2:], method.grid_spacing, method.sigma).to(images)
    parameters = torch.rand(1, *smooth_max.grid, generator=torch.Generator().manual_seed(0)).to(images)
    our_mask = smooth_max(parameters)
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = MaskGenerator(images.shape[-2:], method.grid_spacing, method.sigma).to(images.device)
        their_mask = generator.generate(parameters[:, None])[0][:, 0]
        perturbation = Perturbation(images[:1], num_levels=method.levels, max_blur=method.blur).to(images.device)
        their_image = perturbation.apply(their_mask) * network.stem.normalize.std
    mean = network.mean.to(images)
    our_image = _apply(method._pyramid(inputs.images[:1], mean), our_mask) - mean
    found = max((our_mask - their_mask).abs().max().item(), (our_image - their_image).abs().max().item())
    return f"with the same parameters, mask and image differ by {found:.1g} ≤ 0.001", found <= 1e-3


def _among_our_draws(inputs: Inputs, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
    """The noise is random. Their map must be as near to the mean of our draws as each of our draws is."""
    draws, network = 8, inputs.network
    # IBA reads its map before its last step.
    method = inputs.method.model_copy(update={"steps": max(1, inputs.method.steps - 1)})
    generators = [torch.Generator().manual_seed(seed) for seed in range(draws)]
    with evaluating(network):
        with torch.no_grad():
            features = network.stem(inputs.images[:1]).expand(draws, -1, -1, -1)
        own = method.feature_saliency(
            network, features, inputs.targets[:1].expand(draws), inputs.statistics, generators
        )
    mean = own.mean(0, keepdim=True)
    least = _correlation(own, mean.expand_as(own)).min().item() - 0.02
    found = _correlation(theirs[:1], mean).item()
    ratio = (theirs[:1].sum() / mean.sum()).item()
    agrees = found >= least and 0.9 <= ratio <= 1.1
    return f"r = {found:.4f} with our draws' mean ≥ {least:.4f}, sum {ratio:.3f} of its in 0.9 … 1.1", agrees


@contextmanager
def _quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _quietly(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """``run`` without its printed output."""

    def quiet() -> torch.Tensor:
        with _quiet():
            return run()

    return quiet


def _grad_cam(name: str) -> Callable[[Inputs], Callable[[], torch.Tensor]]:
    def bind(inputs: Inputs) -> Callable[[], torch.Tensor]:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        network, layer, images = inputs.parts()
        targets = [ClassifierOutputTarget(target) for target in inputs.targets.tolist()]

        def run() -> torch.Tensor:
            with getattr(pytorch_grad_cam, name)(network, [layer]) as cam:
                cam.batch_size = getattr(inputs.method, "chunk", 1)
                return torch.from_numpy(cam(images, targets))

        return run

    return bind


def _captum(inputs: Inputs) -> Callable[[], torch.Tensor]:
    from captum.attr import IntegratedGradients

    def run() -> torch.Tensor:
        found = IntegratedGradients(inputs.network).attribute(
            inputs.images,
            target=inputs.targets,
            n_steps=inputs.method.steps,
            method="gausslegendre",
            internal_batch_size=inputs.method.chunk,
        )
        return found.detach().sum(1).abs().float()

    return run


def _torchray_rise(inputs: Inputs) -> Callable[[], torch.Tensor]:
    from torchray.attribution.rise import rise_class

    method = inputs.method

    def run() -> torch.Tensor:
        return rise_class(
            inputs.network,
            inputs.images,
            target=inputs.targets,
            num_masks=method.masks,
            num_cells=method.cells,
            p=method.p,
            batch_size=method.chunk,
        )[:, 0]

    return run


def _torchray_extremal(inputs: Inputs) -> Callable[[], torch.Tensor]:
    from torchray.attribution.extremal_perturbation import extremal_perturbation

    network, _, images = inputs.parts()
    method = inputs.method

    def one(image: torch.Tensor, target: int) -> torch.Tensor:
        masks, _ = extremal_perturbation(
            network,
            image[None],
            target,
            areas=list(method.areas),
            max_iter=method.iterations,
            num_levels=method.levels,
            step=method.grid_spacing,
            sigma=method.sigma,
        )
        return masks.sum(0)[0]

    def run() -> torch.Tensor:
        # TorchRay turns the parameters' gradients off and leaves them so.
        with evaluating(inputs.network):
            return torch.stack([one(*pair) for pair in zip(images, inputs.targets.tolist(), strict=True)])

    return run


def _iba(inputs: Inputs) -> Callable[[], torch.Tensor]:
    from IBA.pytorch import IBA

    plain, backbone, images = inputs.parts()
    method, target = inputs.method, int(inputs.targets[0])
    # As in our method, elements of neurons that are hardly ever active count too.
    everything = {"active_neurons_threshold": -1}
    bottleneck = IBA(
        sigma=method.sigma,
        beta=method.alpha,
        optimization_steps=method.steps,
        lr=method.lr,
        batch_size=method.samples,
        initial_alpha=method.gamma,
        **everything,
    )
    network = nn.Sequential(backbone, bottleneck, plain[1])
    bottleneck.estimate(network, [(replace(inputs, images=inputs.statistics_images).parts()[2],)])

    def loss(shown: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(-network(shown)[:, target]).mean()

    def run() -> torch.Tensor:
        bits = bottleneck.analyze(images[:1], loss, mode="capacity", **everything)
        return torch.from_numpy(bits).sum(0)[None] * math.log(2)

    return run


@dataclass(frozen=True)
class Peer:
    """A reference implementation.

    Attributes:
        module: what ``package`` is imported as.
        bind: gives a function that computes its maps of the inputs.
        compare: (inputs, our maps, its maps) → :data:`Verdict`.
        single: it takes one image at a time.
    """

    package: str
    module: str
    bind: Callable[[Inputs], Callable[[], torch.Tensor]]
    compare: Callable[[Inputs, torch.Tensor, torch.Tensor], Verdict]
    single: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return find_spec(self.module) is not None

    def images(self, number: int) -> int:
        """How many of ``number`` images it takes."""
        return 1 if self.single else number

    def runner(self, inputs: Inputs) -> Callable[[], torch.Tensor]:
        """A function that computes its maps and prints nothing."""
        return _quietly(self.bind(inputs))


_EPSILON = "it adds 1e-6 to a smaller denominator"
PEERS: dict[str, Peer] = {
    "gradcam": Peer("grad-cam", "pytorch_grad_cam", _grad_cam("GradCAM"), _differ_by(1e-3)),
    "gradcam_pp": Peer("grad-cam", "pytorch_grad_cam", _grad_cam("GradCAMPlusPlus"), _correlate(0.9, _EPSILON)),
    "gradient": Peer("grad-cam", "pytorch_grad_cam", _grad_cam("HiResCAM"), _differ_by(1e-3)),
    "score_cam": Peer(
        "grad-cam", "pytorch_grad_cam", _grad_cam("ScoreCAM"), _correlate(0.99, "its masks are corner-aligned")
    ),
    "fullgrad": Peer("grad-cam", "pytorch_grad_cam", _grad_cam("FullGrad"), _correlate(0.7, "it scales each channel")),
    "integrated_gradients": Peer("captum", "captum", _captum, _differ_by(1e-3)),
    "rise": Peer("TorchRay", "torchray", _torchray_rise, _same_masks),
    "extremal_perturbation": Peer("TorchRay", "torchray", _torchray_extremal, _same_mask_and_image),
    "bottleneck": Peer("IBA", "IBA", _iba, _among_our_draws, single=True),
}
