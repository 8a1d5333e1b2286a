"""Score-CAM (Wang et al., CVPR Workshops 2020): channels weighted by the score of the image that each channel masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ibsgl.attribution import Cost, Passes
from ibsgl.networks import SplitNetwork, check_batch, chunked, evaluating, forward_pass, same_image_groups, upsample
from ibsgl.randomness import Generators


@dataclass(frozen=True)
class ScoreCAM:
    """Score-CAM with every channel A^k of the last convolutional layer.

    H^k is A^k, resized to the image bilinearly and scaled to [0,1] by its own minimum and maximum. The masked image is X ∘ H^k,
    or H^k X + (1 − H^k) X_b if X_b is not black. f^c is the target's probability (softmax, or sigmoid on a multi-label
    network)::

        C(A^k) = f^c(X ∘ H^k) − f^c(X_b)        (the Channel-wise Increase of Confidence)
        L      = ReLU(Σ_k w_k A^k)              (Algorithm 1)

    A channel is constant over space if its range is at most 8 rounding units of its largest value. Then H^k = 0, and the masked
    image is X_b. The channel counts like any other, but needs no pass, because X_b is scored once for all. The passes do
    not depend on the class. If an image is in neighbouring places of the batch with several targets, its passes are run once
    for all targets.

    Args:
        weight: ``increase``: w is the softmax of C over the channels, as in the paper's Algorithm 1 (f^c(X_b) cancels).
            ``probability``: w_k = f^c(X ∘ H^k), as in the authors' code. ``softmax_scores``: w is the softmax of the target's
            logit over the channels, as in the package ``grad-cam``.
        fill: X_b: ``black`` (published), or ``mean``, the colour that normalises to zero.
        chunk: images per pass. It limits the memory and changes results only by rounding.
    """

    label: ClassVar[str] = "Score-CAM"
    requires: ClassVar[frozenset[str]] = frozenset()
    weight: str = "increase"
    fill: str = "black"
    chunk: int = 64

    def __post_init__(self):
        if self.weight not in ("increase", "probability", "softmax_scores"):
            raise ValueError(f"score_cam: weight must be increase, probability or softmax_scores, not {self.weight!r}")
        if self.fill not in ("black", "mean"):
            raise ValueError(f"score_cam: fill must be black or mean, not {self.fill!r}")
        if self.chunk < 1:
            raise ValueError(f"score_cam: chunk must be at least 1, not {self.chunk}")

    def cost(self, channels: int) -> Cost:
        """One pass for every channel that is not constant, shared by an image's classes, and one pass of X_b per batch."""
        per_image = Passes(stem=1 + channels, head=channels)
        return Cost(image=per_image, batch=Passes(stem=1, head=1), mixed=True, within_bound=True, at_most=True)

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0 in units of the features. ``generator`` is not used."""
        return upsample(self.coarse(network, images, targets), images.shape[-2:])

    def coarse(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """The maps (B,h,w) at the size of A, before they are resized."""
        check_batch(images, targets)
        groups = same_image_groups(images)
        first = groups.diff(prepend=groups.new_full((1,), -1)).bool()
        with evaluating(network), torch.no_grad():
            features = network.stem(images[first])
            scores, baseline = self._scores(network, images[first], features, targets, groups)
            if self.weight == "increase":
                weights = (scores - baseline[:, None]).softmax(1)
            elif self.weight == "probability":
                weights = scores
            else:
                weights = scores.softmax(1)
            return torch.einsum("bc,bchw->bhw", weights, features[groups]).relu()

    def _scores(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        features: torch.Tensor,
        targets: torch.Tensor,
        groups: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the masked images and of X_b for every target: (B,C) and (B,).

        ``images`` (G,3,H,W) and ``features`` (G,C,h,w) are those of the distinct images. ``groups`` (B,) has the number of the
        image of each target.
        """
        fill = network.mean.to(images) if self.fill == "mean" else images.new_zeros(3, 1, 1)
        classes, column = targets.unique(return_inverse=True)

        def score(batch: torch.Tensor) -> torch.Tensor:
            logits = forward_pass(network, batch)
            return (logits if self.weight == "softmax_scores" else network.probabilities(logits))[:, classes]

        baseline = score(fill.expand(1, *images.shape[1:]))[0]
        # Taken before upsampling: there rounding would give a constant map some contrast, and the scaling would amplify it.
        contrast = features.amax((2, 3)) - features.amin((2, 3))
        informative = contrast > 8 * torch.finfo(features.dtype).eps * features.abs().amax((2, 3))
        table = baseline.repeat(*features.shape[:2], 1)
        image, channel = informative.nonzero().unbind(1)

        def masked(start: int, stop: int) -> torch.Tensor:
            masks = upsample(features[image[start:stop], channel[start:stop]], images.shape[-2:])
            low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
            masks = (masks - low) / (high - low).clamp_min(torch.finfo(masks.dtype).tiny)
            return score(torch.lerp(fill, images[image[start:stop]], masks[:, None]))

        if len(image):
            table[image, channel] = torch.cat(list(chunked(masked, len(image), self.chunk, images.device)))
        return table[groups, :, column], baseline[column]


@dataclass(frozen=True)
class ScoreCAMProbability(ScoreCAM):
    """Score-CAM with the weight of its authors' code, w_k = f^c(X ∘ H^k), as a method of its own.

    With ``increase``, the weights of the paper, a softmax of numbers between −1 and 1 is nearly the same for all channels. So
    the map is nearly the mean channel. This row stands beside it. The arguments are those of :class:`ScoreCAM`.
    """

    label: ClassVar[str] = "Score-CAM (probability weight)"
    weight: str = "probability"
