"""Write what was measured into README.md and docs/decisions.md: ``python docs/measured_effects.py``.

README.md quotes the answer of docs/measured/study.csv (``snakemake study``). docs/decisions.md has the effects of
docs/measured/sensitivity_changes.csv (``snakemake sensitivity``) for what a config key changes, and of docs/measured/forms.csv
(``benchmarks/forms.py``) for what no key changes. With ``--check`` no file is written, and the exit status is 1 if a page
differs from the tables.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ibsgl.reporting.claim_texts import answer
from ibsgl.reporting.comparisons import METRIC_LABELS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "decisions.md")
MEASURED = ROOT / "docs" / "measured"
# A generated part stands between ``<!-- measured: NAME … -->`` and ``<!-- end of measured -->``. A name is "study", an
# alternative in config/sensitivity.yaml, or a form in benchmarks/forms.py.
PART = re.compile(r"(<!-- measured: (?P<names>[^>]+?) -->).*?( *<!-- end of measured -->)", re.DOTALL)
WIDTH = 128
# The number of further effects that each alternative lists: those whose change is clearest.
OTHERS = 2


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """``{"a": {"b": 1}}`` as "a.b: 1"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {json.dumps(value)}"


def _change(row: Any) -> str:
    digits = 2 if row.unit == "points" else 3
    unit = "" if row.unit == "fraction" else f" {row.unit}"
    return f"{row.change:+.{digits}f} [{row.low:+.{digits}f}, {row.high:+.{digits}f}]{unit}"


def _of_alternative(rows: pd.DataFrame) -> str:
    """How an alternative changes the effect on localisation, and what else it changes most clearly."""
    measured = rows.dropna(subset="change")
    first = measured[(measured["claim"] == "localisation") & measured["judged"]]
    parts = [f"{_change(row)} with {row.model}" for row in first.itertuples()]
    text = f"`{', '.join(_keys(json.loads(rows['override'].iloc[0])))}`: "
    text += f"EBPG, {first['comparison'].iloc[0]}: {', '.join(parts)}." if parts else "EBPG: not comparable."
    others = measured.drop(first.index).drop_duplicates(["model", "metric", "comparison"])
    beyond = others[(others["low"] > 0) | (others["high"] < 0)]
    half = (beyond["high"] - beyond["low"]) / 2
    # A change without an interval of its own is the clearest.
    clearness = (beyond["change"].abs() / half.clip(lower=1e-12)).sort_values(ascending=False, kind="stable")
    found = [
        f"{METRIC_LABELS[row.metric]}, {row.comparison}: {_change(row)} with {row.model}"
        for row in beyond.loc[clearness.index[:OTHERS]].itertuples()
    ]
    clearest = f"; the clearest: {'; '.join(found)}" if found else ""
    return f"{text} {len(beyond)} of {len(others)} other intervals exclude zero{clearest}."


def _of_form(rows: pd.DataFrame) -> str:
    """How another form of a map changes its EBPG."""
    parts = [
        f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}] points with {row.model} (r of the maps {row.r:.4f})"
        for row in rows.itertuples()
    ]
    description = rows["description"].iloc[0]
    # A capital α would look like a Latin A.
    first = description[0].upper() if description[0].isascii() else description[0]
    return f"{first}{description[1:]}: EBPG of the map {', '.join(parts)}."


def measured_effects() -> dict[str, str]:
    """By name, what was measured, as a list in Markdown. What has no table, or was changed since, is missing."""
    found = {}
    if (file := MEASURED / "study.csv").exists():
        table = pd.read_csv(file, dtype={"arch": str}).fillna({"arch": "", "reason": "", "by_replicate": ""})
        found["study"] = "\n".join(
            textwrap.fill(
                f"- {sentence}", WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
            )
            for sentence in answer(table)
        )
    if (file := MEASURED / "sensitivity_changes.csv").exists():
        alternatives = yaml.safe_load((ROOT / "config" / "sensitivity.yaml").read_text(encoding="utf-8"))[
            "alternatives"
        ]
        for name, rows in pd.read_csv(file).groupby("alternative", sort=False):
            if json.loads(rows["override"].iloc[0]) == alternatives.get(name):
                found[str(name)] = f"    - {_of_alternative(rows)}"
    if (file := MEASURED / "forms.csv").exists():
        for name, rows in pd.read_csv(file).groupby("form", sort=False):
            found[str(name)] = f"    - {_of_form(rows)}"
    return found


def rewritten(text: str) -> str:
    """A page with what is measured now."""
    effects = measured_effects()

    def replaced(part: re.Match[str]) -> str:
        lines = [effects.get(name, f"    - {name}: not measured.") for name in part["names"].split()]
        return "\n".join([part[1], *lines, part[3]])

    return PART.sub(replaced, text)


def main() -> int:
    """Write the pages, or with ``--check`` compare them; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check, stale = parser.parse_args().check, 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = rewritten(text)
        if new != text and check:
            print(f"{page}: what was measured is out of date; run python docs/measured_effects.py", file=sys.stderr)
            stale = 1
        elif new != text:
            page.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
