"""Methods of captum (Kokhlikyan et al. 2020) as saliency methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from ibsgl.attribution.adapters.base import Adapter, Sign, known, load, signed, sorted_arguments
from ibsgl.networks.split import SplitNetwork, upsample


class _Kind(NamedTuple):
    """How a method is called.

    Attributes:
        alone: one image at a time: it draws random numbers, or a pass holds many copies of an image.
        layer: its map is that of the stem's end, and is resized to the image.
        grid: the argument with the number of regions; see :class:`Captum`.
        sample: its baselines are a batch of images, and have no default in captum.
    """

    alone: bool = False
    layer: bool = False
    grid: str | None = None
    sample: bool = False


METHODS: dict[str, _Kind] = {
    "Deconvolution": _Kind(),
    "FeatureAblation": _Kind(grid="feature_mask"),
    "GradientShap": _Kind(alone=True, sample=True),
    "GuidedBackprop": _Kind(),
    "GuidedGradCam": _Kind(),
    "InputXGradient": _Kind(),
    "IntegratedGradients": _Kind(alone=True),
    "InternalInfluence": _Kind(alone=True, layer=True),
    "KernelShap": _Kind(alone=True, grid="feature_mask"),
    "LayerActivation": _Kind(layer=True),
    "LayerConductance": _Kind(alone=True, layer=True),
    "LayerFeatureAblation": _Kind(layer=True, grid="layer_mask"),
    "LayerGradCam": _Kind(layer=True),
    "LayerGradientShap": _Kind(alone=True, layer=True, sample=True),
    "LayerGradientXActivation": _Kind(layer=True),
    "LayerIntegratedGradients": _Kind(alone=True, layer=True),
    "Lime": _Kind(alone=True, grid="feature_mask"),
    "Occlusion": _Kind(),
    "Saliency": _Kind(),
    "ShapleyValueSampling": _Kind(alone=True, grid="feature_mask"),
    "ShapleyValues": _Kind(alone=True, grid="feature_mask"),
}
_DEEP_LIFT = "it fails on a ReLU that is called twice, as those of torchvision's ResNets are"
_LRP = "it has no rule for a layer that normalises colours; use zennit"
_PERMUTED = "it exchanges values with the other images of the batch, so an image has another map alone"
REFUSED: dict[str, str] = {
    "DeepLift": _DEEP_LIFT,
    "DeepLiftShap": _DEEP_LIFT,
    "FeaturePermutation": _PERMUTED,
    "LayerDeepLift": _DEEP_LIFT,
    "LayerDeepLiftShap": _DEEP_LIFT,
    "LayerFeaturePermutation": _PERMUTED,
    "LayerLRP": _LRP,
    "LRP": _LRP,
    "NoiseTunnel": "it is no method of its own, but adds noise to the images of another one",
}
# Set here, or they change the kind of the result, or they are no plain values.
_SET_HERE = frozenset(
    {
        *("self", "forward_func", "model", "layer", "device_ids", "inputs", "target", "additional_forward_args"),
        *("return_convergence_delta", "return_input_shape", "show_progress", "attribute_to_layer_input", "attr_dim_summation"),
        *("grad_kwargs", "custom_attribution_func", "perm_func", "interpretable_model", "similarity_func", "perturb_func"),
        *("memory_efficient", "layer_baselines"),
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Captum(Adapter):
    """A method of captum. Its attributions are summed over colours or channels, then ``sign`` is applied.

    Methods of a layer explain the stem's end. Their map is resized to the image bilinearly. ``baselines`` are a number for all
    pixels, in the units of the image (0 is black, the default). ``feature_mask`` and ``layer_mask`` are a number n: the
    features are a grid of n × n rectangles. The methods that have these arguments need them.

    Args:
        method: the name of the class in `captum.attr`.
        arguments: of its constructor and of its method `attribute`, by name.
        sign: `absolute`, the absolute value of the sum, or `positive`, its positive part.
    """

    library: ClassVar[str] = "captum"
    package: ClassVar[str] = "captum.attr"
    extra: ClassVar[str] = "captum"
    method: str
    sign: Sign

    @property
    def label(self) -> str:
        """Such as "Occlusion (captum, absolute)"."""
        return f"{self.method} (captum, {self.sign})"

    @property
    def alone(self) -> bool:
        """See :class:`_Kind`."""
        return METHODS[self.method].alone

    def check(self) -> None:
        """Method, arguments and installation."""
        known("captum's method", self.method, METHODS, REFUSED)
        self._sorted()
        kind = METHODS[self.method]
        if kind.grid and not (type(n := self.arguments.get(kind.grid)) is int and n >= 1):
            raise ValueError(f"arguments.{kind.grid}: give n ≥ 1, for a grid of n × n features (it is {n!r})")
        if not isinstance(self.arguments.get("baselines", 0), int | float):
            raise ValueError(f"arguments.baselines: give a number (it is {self.arguments['baselines']!r})")
        if self.method in ("KernelShap", "Lime"):
            load("sklearn", "scikit-learn", self.extra)

    def _sorted(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The class, and the arguments of its constructor and of ``attribute``."""
        found = getattr(load(self.package, self.library, self.extra), self.method, None)
        if found is None:
            raise ValueError(f"the installed version of captum has no method {self.method}")
        what = f"captum's {self.method}"
        given = ({"baselines": 0} if METHODS[self.method].sample else {}) | self.arguments
        return found, *sorted_arguments(given, what, [found.__init__, found.attribute], _SET_HERE)

    def maps(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B,H,W) in units of the logit, or of its gradient for a method without a product."""
        kind, (method, of_class, given) = METHODS[self.method], self._sorted()
        if kind.layer or self.method == "GuidedGradCam":
            of_class["layer"] = network.stem
        if kind.sample:
            given["baselines"] = torch.full_like(images[:1], given["baselines"])
        if kind.grid:
            size = network.stem(images[:1]).shape[-2:] if kind.layer else images.shape[-2:]
            given[kind.grid] = _grid(given[kind.grid], size, images.device)
        if self.method != "LayerActivation":
            given["target"] = targets
        attributions = method(network, **of_class).attribute(images, **given)
        maps = signed(attributions.sum(1), self.sign)
        return upsample(maps.to(images), images.shape[-2:]) if kind.layer else maps


def _grid(cells: int, size: torch.Size, device: torch.device) -> torch.Tensor:
    """(1,1,H,W) int64: the number of each pixel's rectangle in a grid of ``cells`` × ``cells``."""
    if cells > min(size):
        raise ValueError(f"a grid of {cells} × {cells} needs a map of that size, not {size[0]} × {size[1]}")
    row, column = (torch.arange(side, device=device) * cells // side for side in size)
    return (row[:, None] * cells + column)[None, None]
