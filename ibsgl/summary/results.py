"""The results of a run that a summary shows: its answer, its tables and its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Eq. 3 on these variants: "Ours" in the tables, and the equally long training without guidance.
_HEADLINE_METHOD = "gradient"
_HEADLINE_VARIANTS = ("guided", "control")


@dataclass(frozen=True)
class Result:
    """One result of a run.

    Args:
        key: the result's id, for example ``table1``.
        title: what the reader calls it.
        command: what makes it.
        record: its record, or ``None`` if it was not made with the run's config.
    """

    key: str
    title: str
    command: str
    record: Mapping[str, Any] | None

    def text(self) -> str | None:
        """Its Markdown; ``None`` if there is none."""
        files = self.files(".md")
        return files[0].read_text(encoding="utf-8") if files else None

    def files(self, suffix: str) -> list[Path]:
        """Its files of one kind, as far as they are still there."""
        artifacts = map(Path, self.record["artifacts"]) if self.record else ()
        return [path for path in artifacts if path.suffix == suffix and path.exists()]


def results(settings: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> list[Result]:
    """The answer, the tables, the comparisons and the figures of a run, made or not.

    Args:
        settings: the resolved config.
        records: the run's records. A table that was made with other values of the config does not count: its values would
            stand beside settings that they do not have. The record of a figure holds no config, so a figure always counts.
    """
    current = {record["result_id"]: record for record in records if _agrees(record, settings)}
    models = list(settings.get("models", ()))
    tables = sorted((number, model) for place, model in enumerate(models) for number in (place + 1, place + 3))
    wanted = [("claims", "The answer", "claims")]
    wanted += [(f"table{number}", f"Table {number}: {model}", f"table{number}") for number, model in tables]
    wanted += [
        (f"comparisons_{model}", f"Comparisons: {model}", f"table{place + 1}") for place, model in enumerate(models)
    ]
    wanted += [(f"figure{number}", f"Figure {number}", "figures") for number in (2, 3, 4)]
    if settings.get("alternatives"):
        wanted.append(("sensitivity", "Sensitivity", "sensitivity"))
    return [Result(key, title, f"snakemake {target}", current.get(key)) for key, title, target in wanted]


def _agrees(record: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether the part of the config that a record holds is that of ``settings``."""
    model = settings.get("models", {}).get(record["settings"].get("model"), {})
    # The values of these keys are the network's own.
    own = model.get("override", {})
    config = {key: value for key, value in record["settings"].get("config", {}).items() if key not in own}
    return not settings or _within(config, settings)


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    return part == whole


def headline(found: Sequence[Result]) -> dict[str, float]:
    """The values by which two runs are compared.

    They are the values of Tables 1–4 for "Ours" and for the control, for example ``resnet.guided.ebpg``, and the effects behind
    the claims, for example ``claims.resnet.localisation``.
    """
    values: dict[str, float] = {}
    for result in found:
        if result.record is None:
            continue
        metrics = result.record["metrics"]
        if result.key == "claims":
            values |= {f"claims.{name}": value for name, value in metrics.items()}
        elif result.key.startswith("table"):
            model = result.record["settings"]["model"]
            for variant in _HEADLINE_VARIANTS:
                start = f"{variant}.{_HEADLINE_METHOD}."
                values |= {
                    f"{model}.{variant}.{name.removeprefix(start)}": value
                    for name, value in metrics.items()
                    if name.startswith(start)
                }
    return values
