"""Write the measured effects into docs/decisions.md: ``python docs/measured_effects.py``.

They come from two files: docs/measured/sensitivity.csv (of ``snakemake sensitivity``) for what a config key changes, and
docs/measured/forms.csv (of ``benchmarks/forms.py``) for what no key changes. With ``--check`` no file is written, and the exit
status is 1 if the page differs from the files.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ibsgl.reporting.claims import read_claims
from ibsgl.reporting.comparisons import METRIC_LABELS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "decisions.md"
MEASURED = ROOT / "docs" / "measured"
# A generated part stands between ``<!-- measured: NAME … -->`` and ``<!-- end of measured -->``. A name is
# that of an alternative in config/sensitivity.yaml, or of a form in benchmarks/forms.py.
PART = re.compile(r"(<!-- measured: (?P<names>[^>]+?) -->).*?(<!-- end of measured -->)", re.DOTALL)
# Besides localisation, so many changed effects are named for each alternative: those that are clearest.
OTHERS = 2


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """``{"a": {"b": 1}}`` as "a.b: 1"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {str(value).lower() if isinstance(value, bool) else value}"


def _change(row: Any) -> str:
    digits = 2 if row.unit == "points" else 3
    unit = "" if row.unit == "fraction" else f" {row.unit}"
    return f"{row.change:+.{digits}f} [{row.low:+.{digits}f}, {row.high:+.{digits}f}]{unit}"


def _of_alternative(rows: pd.DataFrame, values: Mapping[str, Any], metrics: Mapping[str, str]) -> str:
    """One line: how an alternative changes the effect on localisation, and what else it clearly changes."""
    measured = rows.dropna(subset="change")
    first = measured[measured["claim"] == "localisation"]
    parts = [f"{_change(row)} with {row.model}" for row in first.itertuples()]
    text = f"`{', '.join(_keys(values))}`: "
    text += f"EBPG, {first['comparison'].iloc[0]}: {', '.join(parts)}." if parts else "EBPG: not comparable."
    beyond = measured[(measured["claim"] != "localisation") & ((measured["low"] > 0) | (measured["high"] < 0))]
    half = (beyond["high"] - beyond["low"]) / 2
    # A change without an interval of its own is the clearest.
    clearest = (
        (beyond["change"].abs() / half.clip(lower=1e-12)).sort_values(ascending=False, kind="stable").index[:OTHERS]
    )
    found = [
        f"{METRIC_LABELS[metrics[row.claim]]}, {row.comparison}: {_change(row)} with {row.model}"
        for row in beyond.loc[clearest].itertuples()
    ]
    return text + (f" Clearest beyond zero: {'; '.join(found)}." if found else " Nothing else beyond its interval.")


def _of_form(rows: pd.DataFrame) -> str:
    """One line: how another form of a map changes its EBPG."""
    parts = [
        f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}] points with {row.model} (r of the maps {row.r:.4f})"
        for row in rows.itertuples()
    ]
    return f"EBPG of the map: {', '.join(parts)}."


def measured_effects() -> dict[str, str]:
    """By alternative and form, what was measured, as one line. Without a file its lines are missing."""
    found = {}
    if (file := MEASURED / "sensitivity.csv").exists():
        alternatives = yaml.safe_load((ROOT / "config" / "sensitivity.yaml").read_text(encoding="utf-8"))[
            "alternatives"
        ]
        metrics = {claim.key: claim.metric for claim in read_claims(ROOT / "results" / "published")}
        for name, rows in pd.read_csv(file).groupby("alternative", sort=False):
            if name in alternatives:
                found[str(name)] = _of_alternative(rows, alternatives[name], metrics)
    if (file := MEASURED / "forms.csv").exists():
        for name, rows in pd.read_csv(file).groupby("form", sort=False):
            found[str(name)] = _of_form(rows)
    return found


def rewritten(text: str) -> str:
    """The page with the measured effects of now."""
    effects = measured_effects()

    def replaced(part: re.Match[str]) -> str:
        lines = [f"\n  - {effects.get(name, f'{name}: not measured.')}" for name in part["names"].split()]
        return f"{part[1]}{''.join(lines)}\n  {part[3]}"

    return PART.sub(replaced, text)


def main() -> int:
    """Write the page, or with ``--check`` compare it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    new = rewritten(text)
    if new == text:
        return 0
    if check:
        print(f"{PAGE}: the measured effects are out of date; run python docs/measured_effects.py", file=sys.stderr)
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
