"""A device profile: what ``benchmarks/scale.py`` measured on a device, as a file that ``ibsgl plan --device-profile`` reads."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from ibsgl.attribution import Passes
from ibsgl.config import Config
from ibsgl.config.files import read_file
from ibsgl.config.passes import PrecisionSetting
from ibsgl.config.schema import describe
from ibsgl.errors import ConfigError
from ibsgl.networks import Precision
from ibsgl.networks.registry import NetworkSettings
from ibsgl.plan.networks import NetworkFacts, UnitCosts, guidance_units
from ibsgl.settings import NonNegative, Positive, Settings

# A backward pass is measured as a difference, which may be 0 on a fast device.
Seconds = NonNegative
Correlation = Annotated[float, Field(ge=-1, le=1)]


class PassSeconds(Settings):
    """The seconds of one image in each kind of pass (:class:`ibsgl.attribution.Passes`)."""

    stem: Seconds
    head: Seconds
    stem_backward: Seconds
    head_backward: Seconds

    @classmethod
    def of(cls, passes: Passes) -> PassSeconds:
        """The same numbers."""
        return cls(**dict(zip(cls.model_fields, astuple(passes), strict=True)))

    def passes(self) -> Passes:
        """The same numbers."""
        return Passes(self.stem, self.head, self.stem_backward, self.head_backward)


class NetworkSeconds(Settings):
    """What was measured of one network.

    The network is named by ``arch``, ``source``, ``options`` and ``image_size``, as in a config. The seconds are those of
    :class:`ibsgl.plan.UnitCosts`: ``full`` in float32, ``mixed`` in ``precision``.
    """

    arch: str
    source: Literal["torchvision", "torchray"] = "torchvision"
    options: dict[str, Any] = Field({})
    image_size: Positive
    precision: Precision
    batch: Positive
    full: PassSeconds
    mixed: PassSeconds
    training: Seconds
    guidance: dict[str, Seconds]

    @property
    def described(self) -> str:
        """For messages."""
        return f"{_described(self.arch, self.source, self.options, self.image_size)} in {self.precision}"


class Agreement(Settings):
    """Spearman's correlation of an image's map with its map in float32, over the images."""

    median: Correlation
    min: Correlation


class MethodTime(Settings):
    """How long the maps of a method took."""

    model: str
    method: str
    seconds_per_image: Seconds
    flops_per_second: Annotated[float, Field(ge=0)] | None
    forward_flops_per_second: Annotated[float, Field(ge=0)]
    peak_bytes: Annotated[int, Field(ge=0)]
    hours: Seconds
    agreement: Agreement | None = None


class DeviceProfile(Settings):
    """The content of ``scale.json``."""

    version: Literal[1] = Field(description="of this file's form")
    device: str = Field(min_length=1)
    memory_bytes: Annotated[int, Field(ge=0)] = Field(description="of the device; 0 for a CPU")
    torch: str
    date: datetime.date = Field(strict=False, description="of the measurement")
    images: Positive = Field(description="in a batch of `rows`")
    networks: list[NetworkSeconds] = Field(min_length=1)
    rows: list[MethodTime]

    @classmethod
    def read(cls, path: Path) -> DeviceProfile:
        """The profile in the file ``path``.

        Raises:
            ConfigError: one line with the file and the key: it is missing, is no JSON, or a value is wrong.
        """
        try:
            return cls.model_validate(read_file(path))
        except ValidationError as error:
            raise ConfigError(f"{path}: {describe(error)}; benchmarks/scale.py writes such a file anew") from None


@dataclass(frozen=True)
class ProfiledDevice:
    """The times in a device profile. Nothing is run.

    Args:
        profile: of the device.
        path: of its file, for messages.
        precision: that of the passes which may run in bfloat16 (``Cost.mixed``). ``auto``: bfloat16 if it was measured.
    """

    profile: DeviceProfile
    path: Path
    precision: PrecisionSetting = "auto"
    estimated: ClassVar[bool] = False

    @property
    def device(self) -> str:
        """The device's name."""
        return self.profile.device

    @property
    def origin(self) -> str:
        """How the times were made."""
        profile = self.profile
        return f"measured on {profile.device} on {profile.date} with torch {profile.torch} ({self.path})"

    def seconds(self, config: Config, network: NetworkFacts, classes: int) -> tuple[UnitCosts, int]:
        """The measured seconds of one image.

        Raises:
            ConfigError: the profile does not have this network, this precision or a guidance loss of ``config``.
        """
        settings = config.network(network.model)
        named = [measured for measured in self.profile.networks if _is(measured, settings)]
        # The float32 passes were measured with those in bfloat16.
        usable = [m for m in named if self.precision != "bfloat16" or m.precision == "bfloat16"]
        if not usable:
            wanted = _described(settings.arch, settings.source, settings.options, settings.image_size)
            wanted += " in bfloat16" if self.precision == "bfloat16" else ""
            known = "; ".join(measured.described for measured in self.profile.networks)
            raise ConfigError(
                f"{self.path} has no times of {wanted}. It has: {known}. Measure them on that device: "
                "python benchmarks/scale.py --config <this config>"
            )
        measured = max(usable, key=lambda m: m.precision == "bfloat16")
        if missing := guidance_units(config).keys() - measured.guidance.keys():
            place = self.profile.networks.index(measured)
            raise ConfigError(
                f"{self.path}: networks.{place}.guidance: {', '.join(sorted(missing))} was not measured. "
                "Measure it on that device: python benchmarks/scale.py --config <this config>"
            )
        full = measured.full.passes()
        mixed = full if self.precision == "float32" else measured.mixed.passes()
        return UnitCosts(full, mixed, measured.training, dict(measured.guidance)), measured.batch


def _is(measured: NetworkSeconds, settings: NetworkSettings) -> bool:
    """Whether the measured network is that of ``settings``."""
    keys = ("arch", "source", "options", "image_size")
    return all(getattr(measured, key) == getattr(settings, key) for key in keys)


def _described(arch: str, source: str, options: Mapping[str, Any], image_size: int) -> str:
    further = [f"{source}'s" if source != "torchvision" else "", arch, f"with {dict(options)}" if options else ""]
    return f"{' '.join(word for word in further if word)} at {image_size} px"
