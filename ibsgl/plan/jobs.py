"""How many jobs the workflow runs for each step: one per replicate or, for an alternative, where it differs from the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ibsgl.config import Config, ConfigError
from ibsgl.config.steps import lineage


@dataclass(frozen=True, eq=False)
class Jobs:
    """The jobs of a run on one network.

    Attributes:
        config: of the run, or of an alternative.
        model: the network's name in the config.
        base: for an alternative, the jobs of the run itself. What would be the same there is not counted.
    """

    config: Config
    model: str
    base: Jobs | None = None
    _known: dict[tuple[object, ...], tuple[str, ...] | None] = field(default_factory=dict, repr=False)

    def count(self, job: str, variant: str | None = None) -> int:
        """In how many replicates a job is run: ``classifier``, ``bottleneck``, ``guide`` (of ``variant``) or ``evaluate``."""
        return sum(self._is_run(job, replicate, variant) for replicate in range(self.config.replicates))

    def methods(self) -> dict[str, int]:
        """On how many networks each method is run, in the order of the tables."""
        networks: dict[str, int] = {}
        for replicate, variant, method in self.config.evaluations():
            if self.config.is_light(method):
                is_run = self._is_run("evaluate", replicate)
            else:
                is_run = self._is_run("maps", replicate, variant, method)
            networks[method] = networks.get(method, 0) + is_run
        return networks

    def scored_maps(self) -> int:
        """On how many networks a map is scored, each method counted."""
        return sum(self._is_run("evaluate", replicate) for replicate, _, _ in self.config.evaluations())

    def stored_maps(self) -> dict[str, int]:
        """By method of many passes, on how many networks its maps are stored."""
        return {method: networks for method, networks in self.methods().items() if not self.config.is_light(method)}

    def further_networks(self) -> list[tuple[int, str]]:
        """Every (replicate, variant) on which further metrics are measured. Alternatives have none."""
        if self.base is not None or not self.config.further_metrics:
            return []
        on = self.config.methods_on
        return [(replicate, variant) for replicate in range(on.replicates) for variant in on.variants]

    def light_maps(self) -> dict[str, int]:
        """By method of one pass, on how many networks its maps are stored."""
        return Counter(
            method for _, variant in self.further_networks() for method in self.config.light_methods(variant)
        )

    def _is_run(self, job: str, replicate: int, variant: str | None = None, method: str | None = None) -> bool:
        base = self.base
        if base is None or self.model not in base.config.models or replicate >= base.config.replicates:
            return True
        # Replicates in which the same methods are run are alike.
        key = (job, variant, method, *(replicate < of.config.methods_on.replicates for of in (self, base)))
        where = {"replicate": replicate, "variant": variant, "method": method}
        return self._lineage(key, job, where) != base._lineage(key, job, where)

    def _lineage(self, key: tuple[object, ...], job: str, where: Mapping[str, object]) -> tuple[str, ...] | None:
        """The lineage of a job; ``None`` if there is no such job."""
        if key not in self._known:
            given = {name: value for name, value in where.items() if value is not None}
            try:
                self._known[key] = lineage(self.config, job, model=self.model, **given)
            except ConfigError:
                self._known[key] = None
        return self._known[key]
