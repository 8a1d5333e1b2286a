"""The interfaces of a teacher and of a guidance loss, and their registries.

Both are classes whose fields are their settings: a frozen dataclass, or a :class:`ibsgl.settings.Settings`. They are registered
in the entry-point groups ``ibsgl.teachers`` and ``ibsgl.guidance``, so another package can add one without a change in this
repository.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch

from ibsgl.guidance.batch import TrainingBatch
from ibsgl.registry import Registry

# The teacher without a map, and the loss that adds nothing. They are no entries.
NO_TEACHER = "none"
NO_LOSS = "none"
# The paper's own loss. Its settings are keys of ``guidance`` itself.
PAPER = "localization"

TEACHER_REQUIREMENTS = frozenset({"l_ib", "shuffled", "region"})
LOSS_REQUIREMENTS = frozenset({"teacher_map", "region", "image_gradient", "generators"})


class Teacher(Protocol):
    """What L^c is moved to.

    ``requires`` has the names of what the teacher needs: ``l_ib`` (L^ib of the image), ``shuffled`` (``l_ib`` is that of
    another image; see :func:`ibsgl.guidance.teachers.other_pairs`), or ``region`` (the boxes of c: the teacher sees boxes).
    What it does not require is ``None``.
    """

    requires: ClassVar[frozenset[str]]

    def __call__(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        region: torch.Tensor | None,
        l_ib: torch.Tensor | None,
    ) -> torch.Tensor:
        """The maps (B,h,w), finite and ≥ 0, of one training batch.

        Args:
            features: A (B,C,h,w) of the network in training, detached.
            targets: c (B,) int64.
            region: (B,H,W) bool, the boxes of c in the image.
            l_ib: (B,h,w) nats, ≥ 0.
        """
        ...


class GuidanceLoss(Protocol):
    """What guided training adds to the classification loss, times ``weight``.

    ``requires`` has the names of what the loss needs of the batch: ``teacher_map``, ``region`` (the loss sees boxes),
    ``image_gradient`` or ``generators``; see :class:`ibsgl.guidance.batch.TrainingBatch`. A loss may also have ``passes``
    (:class:`ibsgl.attribution.Passes`): what it adds to the passes of a training step, for ``ibsgl plan``.
    """

    requires: ClassVar[frozenset[str]]

    @property
    def weight(self) -> float:
        """≥ 0."""
        ...

    def __call__(self, batch: TrainingBatch) -> torch.Tensor:
        """(B,), differentiable in the network's weights. A pair's loss does not depend on the other pairs."""
        ...


TEACHERS: Registry[Teacher] = Registry("ibsgl.teachers", "teacher")
LOSSES: Registry[GuidanceLoss] = Registry("ibsgl.guidance", "guidance loss")


def teacher_requires(name: str) -> frozenset[str]:
    """What the teacher ``name`` needs; nothing for ``none``."""
    return frozenset() if name == NO_TEACHER else TEACHERS.load(name).requires


def loss_requires(name: str) -> frozenset[str]:
    """What the guidance loss ``name`` needs; nothing for ``none``."""
    return frozenset() if name == NO_LOSS else LOSSES.load(name).requires
