"""Metrics of Quantus (Hedström et al., JMLR 2023), a library that is installed apart: ``pip install ibsgl[quantus]``.

Quantus is under the LGPL. It is called, and nothing of it is copied.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from inspect import signature
from typing import Any, Literal, NamedTuple, get_type_hints

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from ibsgl.extras import installed_version
from ibsgl.metrics.further.base import PairEvidence, Requires
from ibsgl.networks.split import SplitNetwork


class _Facts(NamedTuple):
    """A metric of Quantus: whether a higher value is better, and what it requires."""

    higher_is_better: bool
    requires: Literal["network", "method"] = "network"


_METHOD: Literal["method"] = "method"
# Those that give one value per map. All get the network and the image, because Quantus wants them of every metric.
WORKING: Mapping[str, _Facts] = {
    "FaithfulnessCorrelation": _Facts(True),
    "FaithfulnessEstimate": _Facts(True),
    "MonotonicityCorrelation": _Facts(True),
    "Infidelity": _Facts(False),
    "Continuity": _Facts(False, _METHOD),
    "LocalLipschitzEstimate": _Facts(False, _METHOD),
    "MaxSensitivity": _Facts(False, _METHOD),
    "AvgSensitivity": _Facts(False, _METHOD),
    "RelativeInputStability": _Facts(False, _METHOD),
    "RelativeOutputStability": _Facts(False, _METHOD),
    "RelativeRepresentationStability": _Facts(False, _METHOD),
    "PointingGame": _Facts(True),
    "TopKIntersection": _Facts(True),
    "RelevanceMassAccuracy": _Facts(True),
    "RelevanceRankAccuracy": _Facts(True),
    "AttributionLocalisation": _Facts(True),
    "AUC": _Facts(True),
    "Sparseness": _Facts(True),
    "Complexity": _Facts(False),
    "EffectiveComplexity": _Facts(False),
    "MPRT": _Facts(False, _METHOD),
    "EfficientMPRT": _Facts(True, _METHOD),
    "RandomLogit": _Facts(False, _METHOD),
}
_CURVE = "it gives a curve per map, and no single value"
# The others, with the reason.
REFUSED: Mapping[str, str] = {
    "PixelFlipping": "it gives a curve per map, and for the area it calls np.trapz, which NumPy 2.4 no longer has",
    "RegionPerturbation": _CURVE,
    "Selectivity": _CURVE,
    "SensitivityN": "it gives one value for all maps together",
    "IROF": "it cannot replace segments of images with three colours",
    "ROAD": "it numbers the pixels of three colours, and fills in those of one",
    "Consistency": "it compares the maps of a batch with one another, so a map has no value of its own",
    "Monotonicity": "it puts the baseline's colour on an image of that colour, so every map has 1",
    "Sufficiency": "it compares the maps of a batch with one another, so a single map always has 0",
    "Completeness": "it asks for maps whose sum is the change of the output, and stored maps have no such scale",
    "Focus": "it needs mosaics of several images",
    "SmoothMPRT": "it makes maps with a method of its own instead of the given one",
    "NonSensitivity": "it needs one value for each colour of a pixel",
    "InputInvariance": "it needs a network whose first module is a convolution",
}
# Without these a metric would give one value per layer.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"MPRT": {"return_average_correlation": True}}
# Arguments that the adapter sets.
_SET = {"return_aggregate", "aggregate_func", "default_plot_func", "disable_warnings", "display_progressbar", "kwargs"}


def check(metric: str, arguments: Mapping[str, Any]) -> None:
    """``ValueError`` unless Quantus is installed, has ``metric``, and takes ``arguments``."""
    if metric in REFUSED:
        raise ValueError(f"quantus: {metric} cannot be used: {REFUSED[metric]}; take one of {', '.join(WORKING)}")
    if metric not in WORKING:
        raise ValueError(f"quantus: there is no metric {metric!r}; take one of {', '.join(WORKING)}")
    installed_version("quantus", "quantus")
    if not arguments:
        # To import it takes seconds.
        return
    import quantus

    kind = getattr(quantus, metric)
    known = [name for name in signature(kind).parameters if name not in _SET]
    try:
        types = get_type_hints(kind.__init__)
    except AttributeError:
        # Some name types that NumPy no longer has.
        types = {}
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(f"quantus: {metric} has no argument {key!r}; its arguments: {', '.join(known)}")
        # Quantus itself finds a wrong value when the first map is measured.
        try:
            TypeAdapter(types.get(key, Any), config={"arbitrary_types_allowed": True}).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"quantus: {metric}: {key}: {error.errors()[0]['msg']}") from None
    try:
        _built(metric, arguments)
    except Exception as error:
        raise ValueError(f"quantus: {metric}: {error}") from error


def _built(metric: str, arguments: Mapping[str, Any]) -> Any:
    import quantus

    quiet = {"return_aggregate": False, "disable_warnings": True, "display_progressbar": False}
    return getattr(quantus, metric)(**{**_DEFAULTS.get(metric, {}), **arguments, **quiet})


def _constant(maps: torch.Tensor) -> torch.Tensor:
    """(B,): which of the maps (B,H,W) are the same everywhere."""
    return maps.amax((1, 2)) == maps.amin((1, 2))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, the random states of Python, NumPy and torch (on the CPU) begin with ``seed``. After it they are as before."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@dataclass(frozen=True)
class Quantus:
    """A metric of Quantus, one map at a time, with the image's own seed.

    Args:
        metric: its class, such as `Sparseness`. [Metrics](../docs/metrics.md#quantus) lists those that work.
        arguments: of the class. Those that are missing have Quantus' defaults.
    """

    metric: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check(self.metric, self.arguments)

    @property
    def label(self) -> str:
        """The class, and where it is from."""
        return f"{self.metric} (Quantus)"

    @property
    def higher_is_better(self) -> bool:
        """As Quantus states it."""
        return WORKING[self.metric].higher_is_better

    @property
    def range(self) -> tuple[float, float]:
        """Quantus states none."""
        return (-math.inf, math.inf)

    @property
    def binary(self) -> bool:
        """Whether each value is 0 or 1."""
        return self.metric == "PointingGame" and not self.arguments.get("weighted")

    @property
    def requires(self) -> Requires:
        """The network, because Quantus wants one of every metric, or the method."""
        return WORKING[self.metric].requires

    def version(self) -> str:
        """Of Quantus."""
        return f"quantus {version('quantus')}"

    @cached_property
    def _computed(self) -> Any:
        return _built(self.metric, self.arguments)

    def __call__(self, evidence: PairEvidence) -> torch.Tensor:
        """(B,) as Quantus gives them. NaN where Quantus gives NaN or infinity, and for a map that is the same everywhere."""
        network, images = evidence.with_network()
        values = []
        for place, own in enumerate(evidence.generators):
            pair = slice(place, place + 1)
            if _constant(evidence.saliency[pair]).any():
                # Quantus refuses such a map.
                values.append(math.nan)
                continue

            constant: list[bool] = []

            def explain(
                model: SplitNetwork,
                inputs: Any,
                targets: Any,
                place: int = place,
                constant: list[bool] = constant,
                **_: Any,
            ) -> np.ndarray:
                if evidence.explain is None:
                    raise ValueError(f"quantus: {self.metric} makes maps anew, but was not expected to")
                some = torch.as_tensor(inputs, dtype=images.dtype, device=images.device)
                classes = torch.as_tensor(targets, dtype=torch.int64, device=images.device).flatten()
                where = torch.full((len(some),), place)
                made = evidence.explain(model, some, classes, where)
                constant.append(bool(_constant(made).any()))
                return made[:, None].detach().cpu().numpy()

            try:
                with _seeded(own.initial_seed()):
                    result = self._computed(
                        model=network,
                        x_batch=images[pair].detach().cpu().numpy(),
                        y_batch=evidence.targets[pair].cpu().numpy(),
                        a_batch=evidence.saliency[pair, None].cpu().numpy(),
                        s_batch=evidence.region[pair, None].cpu().numpy(),
                        explain_func=explain,
                        channel_first=True,
                        device=str(images.device),
                        batch_size=1,
                    )
                values.append(self._single(result))
            except AssertionError:
                # It refuses such maps of changed images and networks too.
                if not any(constant):
                    raise
                values.append(math.nan)
        found = torch.tensor(values, dtype=torch.float64)
        return found.where(found.isfinite(), torch.nan)

    def _single(self, found: Any) -> float:
        """The one value of one map. ``ValueError`` if Quantus gives something else."""
        number = np.asarray(found, dtype=object).ravel()
        if len(number) != 1 or np.ndim(number[0]):
            raise ValueError(f"quantus: {self.metric} gives no single value per map with these arguments")
        return float(number[0])
