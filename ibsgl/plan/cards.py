"""An estimate of the time on a GPU that is not at hand: FLOPs / (the card's published peak × efficiency)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ibsgl.attribution import Passes
from ibsgl.config import Config
from ibsgl.config.passes import PrecisionSetting
from ibsgl.errors import ConfigError
from ibsgl.plan.networks import NetworkFacts, UnitCosts

# What convolutional networks reach of a card's peak. In NVIDIA's measurements of torch's ResNet-50 (DeepLearningExamples,
# PyTorch/Classification/ConvNets/resnet50v1.5, 8.18 GFLOP per image): in float32, inference on a V100 reaches 1261 images/s
# = 0.66 of the peak, on a T4 428 images/s = 0.43, and training on a V100 367 images/s = 0.57. On tensor cores, inference on a
# V100 reaches 3382 images/s = 0.22, and training on an A100 2470 images/s = 0.19. That other cards reach as much is assumed.
EFFICIENCY: dict[str, float] = {"float32": 0.6, "bfloat16": 0.2}


@dataclass(frozen=True)
class Card:
    """The published values of a GPU.

    Attributes:
        name: of the card and its form.
        float32: dense peak in FLOP/s outside of the tensor cores. TF32 is another number format, and is not used.
        bfloat16: dense peak of the tensor cores in FLOP/s, accumulated in float32; ``None``: the card has no bfloat16.
        source: the manufacturer's document that has these values.
    """

    name: str
    float32: float
    bfloat16: float | None
    source: str


# Datasheets give the tensor cores' peak with sparsity, which doubles it. These are the values without.
CARDS: dict[str, Card] = {
    "a100": Card("NVIDIA A100 SXM 80 GB", 19.5e12, 312e12, "NVIDIA A100 datasheet"),
    "h100": Card("NVIDIA H100 SXM", 66.9e12, 989.4e12, "NVIDIA H100 architecture whitepaper"),
    "h200": Card("NVIDIA H200 SXM", 67e12, 989.5e12, "NVIDIA H200 datasheet"),
    "l4": Card("NVIDIA L4", 30.3e12, 121e12, "NVIDIA L4 datasheet"),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", 82.6e12, 165.2e12, "NVIDIA Ada architecture whitepaper"),
    "t4": Card("NVIDIA T4", 8.1e12, None, "NVIDIA T4 datasheet"),
    "v100": Card("NVIDIA V100 SXM2", 15.7e12, None, "NVIDIA V100 datasheet"),
}


def card_named(name: str) -> Card:
    """The card ``name``, in upper or lower case, with or without spaces and hyphens.

    Raises:
        ConfigError: it is unknown. The message names those that are known.
    """
    key = name.lower().replace(" ", "").replace("-", "")
    if key not in CARDS:
        raise ConfigError(f"the card {name!r} is unknown; take one of {', '.join(CARDS)}")
    return CARDS[key]


@dataclass(frozen=True)
class CardEstimate:
    """The time on a card, from its published peaks.

    Args:
        card: with its peaks.
        precision: that of the passes which may run in bfloat16 (``Cost.mixed``). All others are in float32. ``auto``: bfloat16
            if the card has it.
        efficiency: the share of the peak that is reached in each precision.

    Raises:
        ConfigError: the card has no bfloat16, or an efficiency is not above 0 and at most 1.
    """

    card: Card
    precision: PrecisionSetting = "auto"
    efficiency: Mapping[str, float] = field(default_factory=lambda: EFFICIENCY)
    estimated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.precision == "bfloat16" and self.card.bfloat16 is None:
            raise ConfigError(f"{self.card.name} has no bfloat16; take the precision float32 or auto")
        for precision, share in self.efficiency.items():
            if not 0 < share <= 1:
                raise ConfigError(f"the efficiency in {precision} must be above 0 and at most 1, not {share}")

    @property
    def device(self) -> str:
        """The card's name."""
        return self.card.name

    @property
    def origin(self) -> str:
        """How the times were made."""
        card = self.card
        peaks = f"{card.float32 / 1e12:g} TFLOP/s in float32 × {self.efficiency['float32']:g}"
        if self.precision == "float32":
            others = ""
        elif card.bfloat16 is None:
            others = ", also where bfloat16 is allowed, which the card does not have"
        else:
            share = self.efficiency["bfloat16"]
            others = f", {card.bfloat16 / 1e12:g} TFLOP/s in bfloat16 × {share:g} and no less than in float32"
        return f"an estimate, not measured: FLOPs / (peak × efficiency), {peaks}{others} ({card.source})"

    def seconds(self, config: Config, network: NetworkFacts, classes: int) -> tuple[UnitCosts, None]:
        """FLOPs / (peak × efficiency); bfloat16 is at least as fast as float32. There is no batch: batches are large."""
        rate = self.card.float32 * self.efficiency["float32"]
        mixed_rate = rate
        if self.precision != "float32" and self.card.bfloat16 is not None:
            # Tensor cores that are only twice as fast as the others reach more of their peak: half the bytes are moved.
            mixed_rate = max(rate, self.card.bfloat16 * self.efficiency["bfloat16"])

        def over(passes: Passes, rate: float) -> Passes:
            return passes * (1 / rate)

        flops = network.flops
        guidance = {kind: added / rate for kind, added in flops.guidance.items()}
        return UnitCosts(over(flops.full, rate), over(flops.mixed, mixed_rate), flops.training / rate, guidance), None
