"""The reference implementations that users would pick instead, asked for the same maps at the same settings.

Each entry of :data:`PEERS` binds a package to a network, images and targets, and says how far its maps may be from ours. The
packages are optional: ``captum`` and ``grad-cam`` come with the project's ``dev`` extra; TorchRay and IBA are taken from
wherever they are checked out.
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
from ibsgl.network import SplitNetwork, evaluating
from ibsgl.randomness import draw

# Ours, theirs (B,h,w) → how far apart, in words, and whether that is within the tolerance.
Verdict = tuple[str, bool]


@dataclass(frozen=True)
class Question:
    """What both are asked: the method with its settings, a network, images (B,3,H,W) in [0,1], and targets (B,)."""

    method: object
    network: SplitNetwork
    images: torch.Tensor
    targets: torch.Tensor
    statistics: FeatureStatistics
    statistics_images: torch.Tensor

    def ours(self) -> torch.Tensor:
        """Our maps (B,H,W)."""
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


def _differ_by(tolerance: float) -> Callable[[Question, torch.Tensor, torch.Tensor], Verdict]:
    """Compare maps scaled to [0,1] by the largest difference of a pixel."""

    def compare(question: Question, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
        found = (_scaled(ours) - _scaled(theirs)).abs().max().item()
        return f"difference {found:.1g} of the range ≤ {tolerance:g}", found <= tolerance

    return compare


def _correlate(least: float, why: str) -> Callable[[Question, torch.Tensor, torch.Tensor], Verdict]:
    """Compare maps that differ by design (``why``) by their correlation."""

    def compare(question: Question, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
        found = _correlation(ours, theirs).min().item()
        return f"r = {found:.4f} ≥ {least:g}: {why}", found >= least

    return compare


def _same_masks(question: Question, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
    """RISE's masks are other draws: given ours, TorchRay must find our map."""
    from torchray.attribution.rise import rise_class

    method, size = question.method, question.images.shape[-2:]
    masks = method._masks(draw(method._draw, 1, None)[0].to(question.images), size)[:, None]
    given = rise_class(
        question.network,
        question.images,
        target=question.targets,
        num_masks=method.masks,
        filter_masks=masks,
        batch_size=method.chunk,
    )[:, 0]
    found = ((given / method.p - ours).abs().max() / ours.abs().max()).item()
    return f"given our masks, difference {found:.1g} of the maximum ≤ 1e-05", found <= 1e-5


def _same_shown(question: Question, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
    """The two weigh areas differently, and rank the equal pixels of the first mask by chance: other masks, the same game.

    Given the same parameters, both must make the same mask and show the same image.
    """
    from torchray.attribution.extremal_perturbation import MaskGenerator, Perturbation

    method, network = question.method, question.network
    _, _, images = question.parts()
    smooth_max = _SmoothMaxConvolution(images.shape[-2:], method.step, method.sigma).to(images)
    parameters = torch.rand(1, *smooth_max.grid, generator=torch.Generator().manual_seed(0)).to(images)
    own = smooth_max(parameters)
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = MaskGenerator(images.shape[-2:], method.step, method.sigma).to(images.device)
        given = generator.generate(parameters[:, None])[0][:, 0]
        shown = Perturbation(images[:1], num_levels=method.levels, max_blur=method.blur).to(images.device).apply(given)
    mean = network.mean.to(images)
    mine = _apply(method._pyramid(question.images[:1], mean), own)
    off = max((own - given).abs().max().item(), (mine - mean - (shown * network.stem.normalize.std)).abs().max().item())
    return f"given one set of parameters, mask and image differ by {off:.1g} ≤ 0.001", off <= 1e-3


def _among_our_draws(question: Question, ours: torch.Tensor, theirs: torch.Tensor) -> Verdict:
    """The noise is another: their map must be as like the mean of ours as our own draws are."""
    draws, network = 8, question.network
    # Theirs is read before the last of its steps.
    method = replace(question.method, steps=max(1, question.method.steps - 1))
    generators = [torch.Generator().manual_seed(seed) for seed in range(draws)]
    with evaluating(network):
        with torch.no_grad():
            features = network.stem(question.images[:1]).expand(draws, -1, -1, -1)
        own = method.feature_saliency(
            network, features, question.targets[:1].expand(draws), question.statistics, generators
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
    """``run`` without what it prints."""

    def quiet() -> torch.Tensor:
        with _quiet():
            return run()

    return quiet


def _grad_cam(name: str) -> Callable[[Question], Callable[[], torch.Tensor]]:
    def bind(question: Question) -> Callable[[], torch.Tensor]:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        network, layer, images = question.parts()
        targets = [ClassifierOutputTarget(target) for target in question.targets.tolist()]

        def run() -> torch.Tensor:
            with getattr(pytorch_grad_cam, name)(network, [layer]) as cam:
                cam.batch_size = getattr(question.method, "chunk", 1)
                return torch.from_numpy(cam(images, targets))

        return run

    return bind


def _captum(question: Question) -> Callable[[], torch.Tensor]:
    from captum.attr import IntegratedGradients

    def run() -> torch.Tensor:
        found = IntegratedGradients(question.network).attribute(
            question.images,
            target=question.targets,
            n_steps=question.method.steps,
            method="gausslegendre",
            internal_batch_size=question.method.chunk,
        )
        return found.detach().sum(1).abs().float()

    return run


def _torchray_rise(question: Question) -> Callable[[], torch.Tensor]:
    from torchray.attribution.rise import rise_class

    method = question.method

    def run() -> torch.Tensor:
        return rise_class(
            question.network,
            question.images,
            target=question.targets,
            num_masks=method.masks,
            num_cells=method.cells,
            p=method.p,
            batch_size=method.chunk,
        )[:, 0]

    return run


def _torchray_extremal(question: Question) -> Callable[[], torch.Tensor]:
    from torchray.attribution.extremal_perturbation import extremal_perturbation

    network, _, images = question.parts()
    method = question.method

    def one(image: torch.Tensor, target: int) -> torch.Tensor:
        masks, _ = extremal_perturbation(
            network,
            image[None],
            target,
            areas=list(method.areas),
            max_iter=method.iterations,
            num_levels=method.levels,
            step=method.step,
            sigma=method.sigma,
        )
        return masks.sum(0)[0]

    def run() -> torch.Tensor:
        # It leaves the parameters without gradients.
        with evaluating(question.network):
            return torch.stack([one(*pair) for pair in zip(images, question.targets.tolist(), strict=True)])

    return run


def _iba(question: Question) -> Callable[[], torch.Tensor]:
    from IBA.pytorch import IBA

    plain, backbone, images = question.parts()
    method, target = question.method, int(question.targets[0])
    # Every element counts, as in ours, also where a neuron is hardly ever active.
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
    bottleneck.estimate(network, [(replace(question, images=question.statistics_images).parts()[2],)])

    def loss(shown: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(-network(shown)[:, target]).mean()

    def run() -> torch.Tensor:
        bits = bottleneck.analyze(images[:1], loss, mode="capacity", **everything)
        return torch.from_numpy(bits).sum(0)[None] * math.log(2)

    return run


@dataclass(frozen=True)
class Peer:
    """A reference implementation: its package, the module it is imported from, and how it is bound and compared.

    ``single``: it takes one image, whatever ours takes.
    """

    package: str
    module: str
    bind: Callable[[Question], Callable[[], torch.Tensor]]
    compare: Callable[[Question, torch.Tensor, torch.Tensor], Verdict]
    single: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return find_spec(self.module) is not None

    def images(self, asked: int) -> int:
        """How many of the images it takes."""
        return 1 if self.single else asked

    def runner(self, question: Question) -> Callable[[], torch.Tensor]:
        """What gives its maps when called, and prints nothing."""
        return _quietly(self.bind(question))


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
    "extremal_perturbation": Peer("TorchRay", "torchray", _torchray_extremal, _same_shown),
    "bottleneck": Peer("IBA", "IBA", _iba, _among_our_draws, single=True),
}
