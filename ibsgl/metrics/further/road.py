"""ROAD: how the target's probability changes as pixels are removed in the map's order, with removed pixels filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from ibsgl.extras import installed_version
from ibsgl.metrics.further.base import PairEvidence, Requires
from ibsgl.networks.chunks import chunked

Percentage = Annotated[float, Field(gt=0, lt=100)]


@dataclass(frozen=True)
class ROAD:
    """ROAD (Rong et al., ICML 2022): probability without the lowest pixels minus that without the highest, by half.

    The mean over ``percentages`` of (p_lowest − p_highest) / 2, where p is the target's probability after that percentage of
    the pixels is removed: the map's lowest, or its highest. A removed pixel becomes the weighted mean of its neighbours,
    removed ones included, plus noise. So what was removed cannot be seen from the mask. The library pytorch-grad-cam
    (``grad-cam``) fills in the pixels. Its ``ROADCombined`` is this value without noise if the percentages are symmetric around
    50: it removes what the percentile leaves. Equal values of a map are in row-major order.

    Args:
        percentages: of the pixels that are removed.
        noise: standard deviation of the noise, of colours in [0,1].
    """

    label: ClassVar[str] = "ROAD"
    higher_is_better: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-0.5, 0.5)
    requires: ClassVar[Requires] = "network"
    percentages: tuple[Percentage, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90)
    noise: Annotated[float, Field(ge=0, le=1)] = 0.01

    def __post_init__(self):
        if not self.percentages:
            raise ValueError("road: percentages: give one at least")
        self.version()

    def version(self) -> str:
        """Of the library. ``ValueError`` if it is not installed."""
        return f"grad-cam {installed_version('grad-cam', 'grad-cam')}"

    def forward_passes(self) -> int:
        """Two for each percentage."""
        return 2 * len(self.percentages)

    def further_maps(self) -> int:
        """None."""
        return 0

    def _removed(self, saliency: torch.Tensor, image: torch.Tensor, seed: int) -> torch.Tensor:
        """The image (3,H,W) without its lowest and its highest pixels, for each percentage: (2·P,3,H,W)."""
        from pytorch_grad_cam.metrics.road import NoisyLinearImputer

        fill = NoisyLinearImputer(self.noise)
        falling = saliency.flatten().argsort(descending=True, stable=True)
        found = []
        # The library draws from torch's global state.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for order in (falling.flip(0), falling):
                for percentage in self.percentages:
                    kept = torch.ones(len(order))
                    kept[order[: round(len(order) * percentage / 100)]] = 0
                    found.append(fill(image, kept.view_as(saliency)))
        return torch.stack(found)

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,) in [−½, ½]."""
        network, images = evidence.with_network()
        values = []
        pairs = zip(evidence.saliency.cpu(), images.cpu(), evidence.targets, evidence.generators, strict=True)
        with torch.inference_mode():
            for saliency, image, target, own in pairs:
                shown = self._removed(saliency, image.contiguous(), own.initial_seed()).to(images.device)

                def run(
                    start: int, stop: int, shown: torch.Tensor = shown, target: torch.Tensor = target
                ) -> torch.Tensor:
                    return network.probabilities(network(shown[start:stop]))[:, target]

                p = torch.cat(list(chunked(run, len(shown), evidence.batch_size, images.device)))
                lowest, highest = p.view(2, -1)
                values.append((lowest - highest).mean() / 2)
        return torch.stack(values)
