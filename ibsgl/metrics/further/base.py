"""The interface of a further metric, and what it is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from ibsgl.networks.split import SplitNetwork

Requires = Literal["maps", "network", "method"]


@dataclass(frozen=True)
class Objects:
    """The target class's objects in one image.

    Attributes:
        boxes: (x0, y0, x1, y1) in pixels of the image's file. They start at 0 and exclude x1 and y1.
        width, height: of the image's file in pixels.
        difficult: whether all of the objects are marked difficult.
        classes: the number of classes that the image shows.
    """

    boxes: tuple[tuple[int, int, int, int], ...]
    width: int
    height: int
    difficult: bool = False
    classes: int = 1


class Explain(Protocol):
    """The saliency method of the maps, called again."""

    def __call__(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor | None = None,
        pairs: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Images (N,3,H,W) → saliency (N,H,W), finite and ≥ 0, with the draws that the stored maps have.

        ``pairs`` (N,) has the place of each image's pair in the batch, and ``targets`` (N,) other classes than the pairs' own.
        Without ``pairs``, N is the number of pairs and the images are in their order.
        """
        ...


@dataclass(frozen=True, eq=False)
class PairEvidence:
    """What a further metric is computed from: the maps of one method for B (image, class) pairs.

    Attributes:
        saliency: (B,H,W) float32, finite and ≥ 0. The stored maps.
        region: (B,H,W) bool, the target's boxes at the network's input size. No region is empty.
        targets: (B,) int64.
        objects: the target's objects in each image's file.
        generators: one per pair, seeded by the config's seed, the metric's registered name and the image. A map's value
            does not depend on the batch if each pair's draws come from its own generator.
        seed: for draws that all pairs share. It is derived from the config's seed and the metric's registered name.
        batch_size: images per pass.
        passes: the most passes that one map makes through a part of the network in one direction. ``None``: unknown.
        images: (B,3,H,W) in [0,1]. ``None`` if the metric requires the maps only.
        network: in evaluation mode, without gradients of its parameters. ``None`` if the metric requires the maps only.
        explain: the method. ``None`` unless the metric requires it.
    """

    saliency: torch.Tensor
    region: torch.Tensor
    targets: torch.Tensor
    objects: tuple[Objects, ...]
    generators: tuple[torch.Generator, ...]
    seed: int = 0
    batch_size: int = 32
    passes: float | None = None
    images: torch.Tensor | None = None
    network: SplitNetwork | None = None
    explain: Explain | None = None

    def with_network(self) -> tuple[SplitNetwork, torch.Tensor]:
        """The network and the images (B,3,H,W), of a metric that requires them."""
        if self.network is None or self.images is None:
            raise ValueError("there is no network; declare requires = 'network' in the metric's class")
        return self.network, self.images

    def with_method(self) -> tuple[SplitNetwork, torch.Tensor, Explain]:
        """The network, the images (B,3,H,W) and the method, of a metric that requires them."""
        if self.explain is None:
            raise ValueError("there is no method; declare requires = 'method' in the metric's class")
        return *self.with_network(), self.explain


def too_many_passes(passes: float | None, limit: int | None) -> str:
    """Why a method with so many passes per map (``None``: unknown) gets no values; empty within ``limit``, or without one."""
    if limit is None:
        return ""
    if passes is None:
        return "the number of passes per map is unknown"
    return f"more than {limit} passes per map (max_passes)" if passes > limit else ""


class FurtherMetric(Protocol):
    """A further metric with its settings: a frozen dataclass, whose fields are its settings.

    It may also have:

    - ``average``: ``"classes"`` if its value is the mean over the classes' means. Otherwise it is the mean over pairs.
    - ``binary``: whether each value is 0 or 1. The interval is that of a proportion, with one replicate
      or if all pairs have the same.
    - ``forward_passes()``: passes of an image per map, beside those of ``further_maps()``: the maps that it makes for each
      map. With them ``ibsgl plan`` includes the metric.
    - ``unsuited(passes)``: why a method with so many passes per map (``None``: unknown) gets no values; empty if it gets them.
    - ``mark(mean)``: what the table says beside a method whose mean is ``mean``; empty for nothing. ``caution`` is a sentence
      on the marks, below the table.
    - ``for_tables``: the fields that only :meth:`mark` reads. A change of them does not run the metric again.
    - ``version()``: of the library that computes it. A change of it runs the metric again.
    """

    @property
    def label(self) -> str:
        """The name in tables."""
        ...

    @property
    def higher_is_better(self) -> bool | None:
        """Whether the best value is the highest. ``None``: no value is better than another, so there are no ranks."""
        ...

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        ...

    @property
    def requires(self) -> Requires:
        """``maps``: the stored maps. ``network``: the network and the images too. ``method``: also calls the method again."""
        ...

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,): one value for each map. NaN: the pair has no value. Such pairs are left out of the mean, and counted."""
        ...
