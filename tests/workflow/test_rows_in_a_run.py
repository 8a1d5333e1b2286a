"""Rows that other libraries compute go through the whole workflow into the tables."""

import json
import re
import shlex
from importlib.metadata import version

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from workspaces import MINIMAL, ROOT, by_hand, workspace

from ibsgl.config import merge

ROWS = ROOT / "tests" / "configs" / "rows.yaml"


@pytest.mark.slow
def test_rows_of_other_libraries_are_rows_of_the_tables(dry_run, fork, tmp_path):
    folder = workspace(tmp_path / "clone")
    loaded = merge(*(yaml.safe_load(file.read_text(encoding="utf-8")) for file in (MINIMAL, ROWS)))
    (folder / "rows.yaml").write_text(yaml.safe_dump(loaded))
    jobs, output = dry_run(folder, "rows.yaml", "table1")
    assert {
        f"maps rows/resnet/0/pretrained/{row}/0" for row in ("rise", "rise_16", "occlusion", "layercam", "lrp")
    } <= jobs
    commands = [shlex.split(line) for line in re.findall(r"^Shell command: (ibsgl .*)$", output, re.M)]
    fork(by_hand, folder, [command[1:-2] for command in commands])

    results = folder / "results" / "rows"
    table = pd.read_csv(results / "tables" / "table1.csv")
    of_row = table[(table["variant"] == "pretrained") & (table["metric"] == "ebpg")].set_index("method")
    assert of_row.loc[["rise_16", "occlusion", "layercam", "lrp"], "row"].tolist() == [
        *("RISE (rise_16)", "Occlusion (captum, absolute)", "LayerCAM (grad-cam)", "LRP"),
    ]
    # The published value of RISE stands beside its own row alone.
    assert of_row.loc["rise", "published"] != "not published"
    assert (of_row.loc[["rise_16", "occlusion", "layercam", "lrp"], "published"] == "not published").all()
    assert (of_row.loc[["rise", "rise_16", "occlusion", "layercam", "lrp"], "value"] != "not run").all()
    text = (results / "tables" / "table1.md").read_text(encoding="utf-8")
    assert f"LRP is zennit {version('zennit')} (composite" in text
    # tests/configs/rows.yaml has bf16. Methods of other libraries and those of one pass do not run in it.
    assert re.search(
        r"Passes: .*LRP.*: float32; RISE, RISE \(rise_16\): bfloat16 \(batch norm folded\)\. All else", text
    )
    maps = pq.read_schema(results / "resnet" / "0" / "pretrained" / "maps" / "occlusion" / "0.parquet")
    facts = json.loads(maps.metadata[b"ibsgl"])
    assert facts["settings"]["libraries"] == {"captum": version("captum")}
    assert "precision" not in facts["settings"]
    assert facts["labels"] == {"occlusion": "Occlusion (captum, absolute)"}
