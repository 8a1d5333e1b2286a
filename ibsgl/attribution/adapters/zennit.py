"""Layer-wise relevance propagation by zennit (Anders et al. 2021), and other modified gradients, as saliency methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ibsgl.attribution.adapters.base import Adapter, Sign, known, load, signed, sorted_arguments
from ibsgl.networks.small import BasicBlock
from ibsgl.networks.split import Normalize, SplitNetwork

COMPOSITES = (
    *("beta_smooth", "deconvnet", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box", "epsilon_plus"),
    *("epsilon_plus_flat", "excitation_backprop", "guided_backprop"),
)  # fmt: skip
REFUSED: dict[str, str] = {}
_ATTRIBUTORS = {"gradient": "Gradient", "smooth_grad": "SmoothGrad", "integrated_gradients": "IntegratedGradients"}
# Set here, or no plain values.
_SET_HERE = frozenset(
    {
        *("self", "model", "composite", "attr_output", "create_graph", "retain_graph", "baseline_fn"),
        *("canonizers", "layer_map", "first_map", "low", "high"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Zennit(Adapter):
    """A composite of zennit: a rule of relevance propagation for each kind of layer.

    The class starts with the relevance 1. The map is the relevance of the normalised image, summed over colours, after
    ``sign``. Batch norms are merged into the convolutions before them, and a residual sum divides the relevance between its
    branches in torchvision's ResNets and in the small one here. In other networks each branch gets the whole relevance.
    `epsilon_gamma_box` gets the limits of the image, black and white, so it needs no `low` and `high`.

    Args:
        composite: the name of the composite.
        arguments: of the composite and of the attributor, by name, such as `epsilon`, `gamma`, `n_iter`.
        sign: `absolute`, the absolute value of the sum, or `positive`, its positive part.
        attributor: `gradient`, one pass; `smooth_grad`, its mean over noisy images; `integrated_gradients`, its mean on the way
            from the mean colour, which normalisation maps to zero.
    """

    library: ClassVar[str] = "zennit"
    package: ClassVar[str] = "zennit"
    extra: ClassVar[str] = "zennit"
    composite: str
    sign: Sign
    attributor: Literal["gradient", "smooth_grad", "integrated_gradients"] = "gradient"

    @property
    def label(self) -> str:
        """Such as "epsilon_plus (zennit, positive)"."""
        of = "" if self.attributor == "gradient" else f", {self.attributor}"
        return f"{self.composite}{of} (zennit, {self.sign})"

    @property
    def alone(self) -> bool:
        """Only the noise of ``smooth_grad`` is random."""
        return self.attributor == "smooth_grad"

    def check(self) -> None:
        """Composite, arguments and installation."""
        known("zennit's composite", self.composite, COMPOSITES, REFUSED)
        self._sorted()

    def _sorted(self) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
        """The composite and the attributor, each with its arguments."""
        composites = load("zennit.composites", self.library, self.extra).COMPOSITES
        if self.composite not in composites:
            raise ValueError(f"the installed version of zennit has no composite {self.composite}")
        composite = composites[self.composite]
        attributor = getattr(load("zennit.attribution", self.library, self.extra), _ATTRIBUTORS[self.attributor])
        what = f"zennit's {self.composite} with {self.attributor}"
        of_composite, of_attributor = sorted_arguments(self.arguments, what, [composite, attributor], _SET_HERE)
        return composite, of_composite, attributor, of_attributor

    def maps(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B,H,W), in relevance of a class that has 1."""
        composite, of_composite, attributor, of_attributor = self._sorted()
        model: nn.Module = network
        if isinstance(network.stem, nn.Sequential) and isinstance(network.stem[0], Normalize):
            normalize, *layers = network.stem
            model = nn.Sequential(*layers, network.head)
        else:
            normalize = nn.Identity()
        if self.composite == "epsilon_gamma_box":
            of_composite |= {
                "low": normalize(torch.zeros_like(images[:1])),
                "high": normalize(torch.ones_like(images[:1])),
            }
        rules = composite(canonizers=[_canonizer()], **of_composite)

        def start(logits: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(targets, logits.shape[1]).to(logits)

        with attributor(model, rules, **of_attributor) as run:
            _, relevance = run(normalize(images).detach(), start)
        return signed(relevance.sum(1), self.sign)


def _canonizer() -> Any:
    """What merges batch norms, and makes residual sums modules that have a rule."""
    from zennit.canonizers import AttributeCanonizer, CompositeCanonizer
    from zennit.layer import Sum
    from zennit.torchvision import ResNetCanonizer

    def summed(block: BasicBlock, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack([block.second(block.first(x)), block.shortcut(x)], dim=-1)
        return block.relu(block.get_submodule("relevance_sum")(both))

    def small_block(name: str, module: nn.Module) -> dict[str, Any] | None:
        if not isinstance(module, BasicBlock):
            return None
        return {"relevance_sum": Sum(), "forward": summed.__get__(module)}

    return CompositeCanonizer((ResNetCanonizer(), AttributeCanonizer(small_block)))
