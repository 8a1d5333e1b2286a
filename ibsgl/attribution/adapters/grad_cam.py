"""Methods of the package ``grad-cam`` (Gildenblat et al. 2021, module ``pytorch_grad_cam``) as saliency methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from ibsgl.attribution.adapters.base import Adapter, known, load, sorted_arguments
from ibsgl.networks.split import SplitNetwork, upsample


class _Kind(NamedTuple):
    """How a method is called.

    Attributes:
        alone: one image at a time: it draws random numbers, or the sign of its map is that of a decomposition.
        whole: it passes images through the whole network. The others need the head alone.
        full_size: its map has the size of the image already.
        weights: it needs a graph through the weights, because it detaches images, or because a linear head has no other.
    """

    alone: bool = False
    whole: bool = False
    full_size: bool = False
    weights: bool = False


METHODS: dict[str, _Kind] = {
    "AblationCAM": _Kind(),
    "EigenCAM": _Kind(alone=True),
    "EigenGradCAM": _Kind(alone=True),
    "FEM": _Kind(),
    "FinerCAM": _Kind(alone=True),
    "FullGrad": _Kind(whole=True, full_size=True),
    "GradCAM": _Kind(),
    "GradCAMElementWise": _Kind(),
    "GradCAMPlusPlus": _Kind(),
    "HiResCAM": _Kind(),
    "KPCA_CAM": _Kind(alone=True),
    "LayerCAM": _Kind(),
    "RandomCAM": _Kind(alone=True),
    "SESS": _Kind(alone=True, whole=True, full_size=True, weights=True),
    "ScoreCAM": _Kind(whole=True),
    "SegEigenCAM": _Kind(),
    "ShapleyCAM": _Kind(weights=True),
    "XGradCAM": _Kind(),
}
REFUSED: dict[str, str] = {
    "RefineCAM": "it multiplies the maps of several layers, and a network is explained at one layer here",
}
# Set here, or no plain values. Test-time augmentation would flip and scale feature maps instead of images.
_SET_HERE = frozenset(
    {
        *("self", "args", "kwargs", "model", "target_layers", "reshape_transform", "base_method", "ablation_layer"),
        *("input_tensor", "targets", "target_idx", "aug_smooth"),
    }
)


@dataclass(frozen=True, kw_only=True)
class GradCam(Adapter):
    """A method of ``grad-cam`` at the stem's end. The class's score is its logit.

    The library's map is ReLU of its sum, minus its minimum over the image, divided by its maximum: from 0 to 1 in each image.
    This is done on the feature map. Then the map is resized to the image bilinearly, as those of the methods here. Most methods
    need the head alone, so the stem runs once per image.

    Args:
        method: the name of the class in `pytorch_grad_cam`.
        arguments: of its constructor and of its call, by name, such as `eigen_smooth`.
    """

    library: ClassVar[str] = "grad-cam"
    package: ClassVar[str] = "pytorch_grad_cam"
    extra: ClassVar[str] = "grad-cam"
    method: str

    @property
    def label(self) -> str:
        """Such as "LayerCAM (grad-cam)"."""
        return f"{self.method} (grad-cam)"

    @property
    def alone(self) -> bool:
        """See :class:`_Kind`."""
        return METHODS[self.method].alone or bool(self.arguments.get("eigen_smooth"))

    def check(self) -> None:
        """Method, arguments and installation."""
        known("grad-cam's method", self.method, METHODS, REFUSED)
        self._sorted()

    def _sorted(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The class, and the arguments of its constructor and of its call."""
        found = getattr(load(self.package, self.library, self.extra), self.method, None)
        if found is None:
            raise ValueError(f"the installed version of grad-cam has no method {self.method}")
        # The call of a method that wraps another one takes anything.
        call = found.forward if self.method in ("FinerCAM", "SESS") else found.__call__
        return found, *sorted_arguments(self.arguments, f"grad-cam's {self.method}", [found.__init__, call], _SET_HERE)

    def maps(self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B,H,W), from 0 to 1."""
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        kind, (method, of_class, given) = METHODS[self.method], self._sorted()
        if kind.whole:
            model: nn.Module = network
            layer, inputs = network.stem, images
        else:
            with torch.no_grad():
                inputs = network.stem(images)
            layer = _Features()
            model = _Head(network, layer)
        network.requires_grad_(kind.weights)
        given |= (
            {"target_idx": int(targets)}
            if self.method == "FinerCAM"
            else {"targets": [ClassifierOutputTarget(target) for target in targets.tolist()]}
        )
        cam = method(model, [layer], **of_class)
        try:
            if kind.whole and not kind.full_size:
                size = network.stem(images[:1]).shape[-2:]
                # The library has sides in the order width, height.
                cam.get_target_width_height = lambda _: tuple(reversed(size))
            found = torch.from_numpy(cam(inputs.requires_grad_(True), **given)).to(images)
        finally:
            getattr(cam, "base_cam", cam).activations_and_grads.release()
        return found if kind.full_size else upsample(found, images.shape[-2:])


class _Features(nn.Module):
    """The feature map as the output of a layer, on which the library puts its hooks."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # A view could not be detached in place, as the library does at its end.
        return features.clone()


class _Head(nn.Module):
    """The head of a network, with the feature map A as its input.

    It holds the whole network, because the library looks for the device of a parameter, and a head may have none.
    """

    def __init__(self, network: SplitNetwork, features: _Features):
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.network.head(self.features(features))
