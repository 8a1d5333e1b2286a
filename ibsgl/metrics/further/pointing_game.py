"""The pointing game: does the highest point of the map hit an object of the target's class?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from ibsgl.metrics.further.base import Objects, PairEvidence, Requires
from ibsgl.networks.split import upsample


def highest_point(saliency: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """The highest pixel (x, y) of each map (B,H,W) after bilinear resizing to ``width`` × ``height``: (B,2) int64.

    Of equal pixels it is the first in row-major order, so that of a constant map it is (0, 0).
    """
    flat = upsample(saliency, (height, width)).flatten(1)
    place = torch.arange(flat.shape[1], device=flat.device)
    # Which of equal values torch.argmax takes is not defined.
    first = place.where(flat == flat.amax(1, keepdim=True), flat.shape[1]).amin(1)
    return torch.stack([first % width, first // width], dim=1)


def hits(point: torch.Tensor, objects: Objects, tolerance: float) -> bool:
    """Whether a pixel of an object's box is less than ``tolerance`` pixels from ``point`` (x, y).

    A tolerance of 0 is met by no pixel, and every larger one up to 1 by the pixel itself.
    """
    x, y = point.tolist()
    for x0, y0, x1, y1 in objects.boxes:
        nearest_x = min(max(x, x0), min(x1, objects.width) - 1)
        nearest_y = min(max(y, y0), min(y1, objects.height) - 1)
        if (nearest_x - x) ** 2 + (nearest_y - y) ** 2 < tolerance**2:
            return True
    return False


def is_hard(objects: Objects) -> bool:
    """Whether the pair is in the difficult subset of Zhang et al.

    The boxes together cover less than a quarter of the image, and the image shows another class too.
    """
    area = torch.zeros(objects.height, objects.width, dtype=torch.bool)
    for x0, y0, x1, y1 in objects.boxes:
        area[y0:y1, x0:x1] = True
    return objects.classes > 1 and 4 * int(area.sum()) < area.numel()


@dataclass(frozen=True)
class PointingGame:
    """Pointing game (Zhang et al., IJCV 2018), by the rule of TorchRay (Fong et al. 2019).

    The map is resized bilinearly to the size of the image's file. The pair is a hit if a pixel of the class's boxes is less
    than ``tolerance`` pixels from the map's highest pixel. Pairs whose objects are all marked difficult have no value. The
    result is the mean over the classes' hit rates.

    The lists of the difficult subset that TorchRay uses were published as files. Here the subset is made by its definition:
    the boxes cover less than a quarter of the image, and the image shows another class too.

    Args:
        tolerance: in pixels of the image's file.
        subset: `all` pairs, or only those of the `difficult` subset. The others have no value.
    """

    label: ClassVar[str] = "Pointing game"
    higher_is_better: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires: ClassVar[Requires] = "maps"
    average: ClassVar[Literal["pairs", "classes"]] = "classes"
    binary: ClassVar[bool] = True
    tolerance: Annotated[float, Field(ge=0, le=10_000)] = 15
    subset: Literal["all", "difficult"] = "all"

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,) 1 for a hit, 0 for a miss, NaN for a pair without a value."""
        values = torch.full((len(evidence.objects),), torch.nan)
        # Images of one size are resized together.
        groups: dict[tuple[int, int], list[int]] = {}
        for place, objects in enumerate(evidence.objects):
            if not objects.difficult and (self.subset == "all" or is_hard(objects)):
                groups.setdefault((objects.width, objects.height), []).append(place)
        for (width, height), places in groups.items():
            for place, point in zip(places, highest_point(evidence.saliency[places], width, height), strict=True):
                values[place] = float(hits(point, evidence.objects[place], self.tolerance))
        return values
