"""Settings of the deletion curves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ibsgl.settings import Positive, Settings


class DeletionSettings(Settings):
    """The deletion curves of Figure 4."""

    points: int = Field(11, ge=2, le=1001, description="points of Figure 4 between 0 % and 100 % deleted")
    repeats: Positive = Field(5, description="random orders of deletion for each image")
    fill: Literal["black", "mean"] = Field("black", description="what replaces a deleted pixel")
