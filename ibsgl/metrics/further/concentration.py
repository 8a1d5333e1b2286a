"""How concentrated a map is: the Gini index and the entropy of its values, without a look at image or network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ibsgl.metrics.further.base import PairEvidence, Requires


def gini(saliency: torch.Tensor) -> torch.Tensor:
    """Gini index of the values of each map (B,H,W) ≥ 0: (B,) in [0, 1), NaN for a map that is zero everywhere.

    G = Σ_k (2k − n − 1) a_(k) / (n Σ a), with the values in rising order, k from 1 to n. 0: all values are equal. (n − 1)/n:
    one pixel has everything.
    """
    values = saliency.flatten(1).double().sort(dim=1).values
    number = values.shape[1]
    weight = 2 * torch.arange(1, number + 1, dtype=torch.float64, device=values.device) - number - 1
    # A sum of zero gives 0 / 0 = NaN.
    return (values @ weight) / (number * values.sum(1))


def entropy(saliency: torch.Tensor) -> torch.Tensor:
    """Entropy −Σ p log p in nats of each map (B,H,W) ≥ 0, with p = a / Σ a: (B,) in [0, log H·W], NaN for a map of zeros."""
    values = saliency.flatten(1).double()
    share = values / values.sum(1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(1)


@dataclass(frozen=True)
class Sparseness:
    """Gini index of the map (Chalasani et al., ICML 2020). See :func:`gini`."""

    label: ClassVar[str] = "Sparseness (Gini)"
    higher_is_better: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires: ClassVar[Requires] = "maps"

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,) in [0, 1)."""
        return gini(evidence.saliency)


@dataclass(frozen=True)
class Complexity:
    """Entropy of the map as a distribution over pixels, in nats (Bhatt et al., IJCAI 2020). See :func:`entropy`."""

    label: ClassVar[str] = "Complexity (nats)"
    higher_is_better: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    requires: ClassVar[Requires] = "maps"

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,) in [0, log H·W]."""
        return entropy(evidence.saliency)
