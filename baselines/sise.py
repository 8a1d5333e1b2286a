"""SISE (Sattarzadeh et al., AAAI 2021): masks from the feature maps of several layers, scored and fused into one map."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch

from ibsgl.attribution import Cost, Passes, StageChannels
from ibsgl.networks import (
    SplitNetwork,
    check_batch,
    chunked,
    evaluating,
    forward_pass,
    missing_stages,
    same_image_groups,
    upsample,
)
from ibsgl.randomness import Generators

# Added to the range and to the sum of a mask, as in the authors' code.
_EPSILON = 1e-6
# Steepness of the soft threshold.
_STEEPNESS = 100
# Below this share of pixels a region is small: then `threshold: raised` takes the higher threshold.
_SMALL, _RAISE = 0.1, 1.5


@dataclass(frozen=True)
class SISE:
    """Semantic Input Sampling for Explanation, with the stages of :class:`ibsgl.networks.SplitNetwork` as layers.

    ψ is the target's probability (softmax, or sigmoid on a multi-label network), and A_k are the channels of layer i::

        α_k = Σ_λ ∂ψ(I)/∂A_k(λ)                                 channel k is selected if α_k > μ · max_j α_j
        m_k = (U(A_k) − min) / (max − min + ε)                  U: bilinear to the size of the image; ε = 1e-6
        V_i = Σ_k ψ(I ∘ m_k) · m_k / (Σ_λ m_k(λ) + ε)           over the selected channels, then scaled to [0,1]
        E   = V_1;  E ← (E + V_i) · σ(100 · (V_i − t_i))        i = 2, 3, … from the lowest layer up

    t_i is Otsu's threshold of V_i over 256 bins (scikit-image). A mean over the channels instead of the sum gives the same V_i.

    Instead of ψ, its log odds log(ψ / (1 − ψ)) are differentiated. Their gradient is that of ψ times a positive number, so the
    selection is the same, but it does not vanish where ψ rounds to 1.

    A channel is constant over space if its range is at most 8 rounding units of its largest value. It is never selected. A
    layer without selected channels, or with a constant V_i, is left out of the fusion.

    If an image is in neighbouring places of the batch with several targets, a channel that several of them select is passed
    once, because the score of a masked image gives every target's probability. Each target's V_i sums its own channels only.
    The gradients are computed per target.

    Args:
        layers: ``before``: the maps just before each spatial reduction, as in the paper, and the last convolutional map.
            ``after``: the maps just after each, as in course code of the authors' lab.
        mu: μ in [0,1). A channel is selected if its summed gradient exceeds this share of the largest (published: 0).
        mask: the factor of each layer but the lowest. ``sigmoid``: σ(100 · (V_i − t_i)), as in the lab's code. ``binary``: 1
            where V_i > t_i and 0 elsewhere, as in the paper's text.
        threshold: ``otsu``: t_i is Otsu's. ``raised``: as in the lab's code, 1.5 times that where fewer than 10 % of the pixels
            reach it.
        fill: what is behind a mask: ``black``, or ``mean``, the colour that normalises to zero.
        chunk: images per pass. It limits the memory and changes results only by rounding.
    """

    label: ClassVar[str] = "SISE"
    requires: ClassVar[frozenset[str]] = frozenset()
    layers: str = "before"
    mu: float = 0.0
    mask: str = "sigmoid"
    threshold: str = "otsu"
    fill: str = "black"
    chunk: int = 64

    def __post_init__(self):
        choices = {
            "layers": ("before", "after"),
            "mask": ("sigmoid", "binary"),
            "threshold": ("otsu", "raised"),
            "fill": ("black", "mean"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"sise: {field} must be {' or '.join(allowed)}, not {getattr(self, field)!r}")
        if not 0 <= self.mu < 1:
            raise ValueError(f"sise: mu must be at least 0 and below 1, not {self.mu}")
        if self.chunk < 1:
            raise ValueError(f"sise: chunk must be at least 1, not {self.chunk}")

    def cost(self, channels: int) -> Cost:
        """As :meth:`stage_cost`, on a network whose only stage is the last feature map."""
        return self.stage_cost(StageChannels((channels,), (channels,)))

    def stage_cost(self, stages: StageChannels) -> Cost:
        """A pass and its gradient for every pair, and a pass for every selected channel of an image, of all stages.

        Raises:
            ValueError: the network does not have the stages.
        """
        channels = sum(stages.before if self.layers == "before" else stages.after)
        if not channels:
            raise ValueError(f"sise: {missing_stages(self.layers)}")
        every = Passes(stem=1, head=1, stem_backward=1, head_backward=1)
        return Cost(pair=every, image=Passes(stem=1, head=1) * channels, mixed=True, within_bound=True, at_most=True)

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) in [0, number of stages], without a unit. ``generator`` is not used.

        Raises:
            ValueError: the network does not have the stages.
        """
        check_batch(images, targets)
        if not (network.stages if self.layers == "before" else network.reduced):
            raise ValueError(f"sise: {missing_stages(self.layers)}")
        saliency = images.new_zeros(len(images), *images.shape[-2:])
        sizes = same_image_groups(images).unique(return_counts=True)[1].tolist()
        with evaluating(network), torch.no_grad():
            for end, size in zip(accumulate(sizes), sizes, strict=True):
                start = end - size
                saliency[start:end] = self._explain(network, images[start], targets[start:end])
        return saliency

    def _explain(self, network: SplitNetwork, image: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """E (k,H,W) of one image (3,H,W) and its targets (k,)."""
        maps, selected = self._select(network, image, targets)
        channels = [chosen.any(0).nonzero()[:, 0] for chosen in selected]
        maps = [features[index] for features, index in zip(maps, channels, strict=True)]
        weights = self._weights(network, image, targets, maps).split([len(features) for features in maps])
        layers = []
        for features, weight, chosen, index in zip(maps, weights, selected, channels, strict=True):
            # Resizing is linear, so the sum over channels comes first. What it adds to all places, the scaling takes away.
            above = features - features.amin((1, 2), keepdim=True)
            total = torch.einsum("kc,chw->khw", weight.T * chosen[:, index], above)
            layers.append(_scaled(upsample(total, image.shape[-2:])))
        return self.fuse(torch.stack(layers))

    def _select(
        self, network: SplitNetwork, image: torch.Tensor, targets: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The maps (C,h,w) of the layers, and which channels each target selects (k,C)."""
        with torch.enable_grad():
            repeated = image.detach().expand(len(targets), -1, -1, -1).contiguous().requires_grad_(True)
            maps, logits = network.stage_maps(repeated, self.layers)
            own = logits.gather(1, targets[:, None])
            if network.multilabel:
                log_odds = own.sum()
            else:
                others = logits.scatter(1, targets[:, None], -torch.inf)
                log_odds = (own[:, 0] - others.logsumexp(1)).sum()
            gradients = torch.autograd.grad(log_odds, maps)
        selected = []
        for features, gradient in zip(maps, gradients, strict=True):
            alpha = gradient.sum((2, 3))
            # Taken before resizing: there rounding would give a constant map some contrast, and the scaling would amplify it.
            contrast = features[0].amax((1, 2)) - features[0].amin((1, 2))
            informative = contrast > 8 * torch.finfo(features.dtype).eps * features[0].abs().amax((1, 2))
            selected.append((alpha > self.mu * alpha.amax(1, keepdim=True)) & informative)
        return [features[0].detach() for features in maps], selected

    def _weights(
        self, network: SplitNetwork, image: torch.Tensor, targets: torch.Tensor, maps: list[torch.Tensor]
    ) -> torch.Tensor:
        """The weight (n,k) of each selected channel U(A_k) in V_i for each target, layer after layer.

        It is ψ(I ∘ m) / (Σ_λ m(λ) + ε) / (max − min + ε). ``maps`` has the selected channels (n_i,h,w) of each layer.
        """
        size = image.shape[-2:]
        fill = network.mean.to(image) if self.fill == "mean" else image.new_zeros(3, 1, 1)
        starts = list(accumulate((len(features) for features in maps), initial=0))

        def weigh(start: int, stop: int) -> torch.Tensor:
            parts = [
                features[max(start - at, 0) : max(stop - at, 0)] for features, at in zip(maps, starts[:-1], strict=True)
            ]
            masks = torch.cat([upsample(part, size) for part in parts if len(part)])
            low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
            span = high - low + _EPSILON
            masks = (masks - low) / span
            logits = forward_pass(network, torch.lerp(fill, image, masks[:, None]))
            probabilities = network.probabilities(logits)[:, targets].to(masks)
            return probabilities / ((masks.sum((1, 2)) + _EPSILON) * span[:, 0, 0])[:, None]

        if not starts[-1]:
            return image.new_zeros(0, len(targets))
        return torch.cat(list(chunked(weigh, starts[-1], self.chunk, image.device)))

    def fuse(self, layers: torch.Tensor) -> torch.Tensor:
        """The layers' maps V_i (L,B,H,W) in [0,1], the lowest layer first → E (B,H,W)."""
        saliency = layers[0]
        informative = (layers.amax((2, 3)) > layers.amin((2, 3)))[:, :, None, None]
        begun = informative[0]
        for maps, has_contrast in zip(layers[1:], informative[1:], strict=True):
            threshold = self._threshold(maps)[:, None, None]
            mask = (
                (_STEEPNESS * (maps - threshold)).sigmoid() if self.mask == "sigmoid" else (maps > threshold).to(maps)
            )
            # The first layer that counts is not masked by itself.
            fused = torch.where(begun, (saliency + maps) * mask, maps)
            saliency = torch.where(has_contrast, fused, saliency)
            begun = begun | has_contrast
        return saliency

    def _threshold(self, maps: torch.Tensor) -> torch.Tensor:
        """t (B,) of maps (B,H,W)."""
        # Imported here, because its import takes a quarter of a second.
        from skimage.filters import threshold_otsu

        threshold = maps.new_tensor([threshold_otsu(values) for values in maps.cpu().numpy()])
        if self.threshold == "otsu":
            return threshold
        raised = _RAISE * threshold
        small = (maps >= raised[:, None, None]).to(maps).mean((1, 2)) < _SMALL
        return torch.where(small, raised, threshold)


def _scaled(maps: torch.Tensor) -> torch.Tensor:
    """Each map of (k,H,W) scaled to [0,1]; 0 where it is constant."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
