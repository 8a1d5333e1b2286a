"""Score files: what is written is read back, shards are put together, and files that do not belong together are refused."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from score_rows import PAIRS, PUBLISHED, cell, group, write

from ibsgl.metrics import METRICS
from ibsgl.reporting.score_files import write_scores
from ibsgl.reporting.scores import combine_scores, read_scores
from ibsgl.reporting.tables import build_table

TAGS = {"commit": "c1", "data_digest": "d1", "weights_digest": "w1", "class_names": ["cat", "dog"]}
# Two methods whose maps are made by one job, and one with a job of its own.
MADE_WITH = {
    "gradient": {"seed": 7, "shards": 2, "methods": {"gradient": {}, "gradcam": {}}},
    "gradcam": {"seed": 7, "shards": 2, "methods": {"gradient": {}, "gradcam": {}}},
    "rise": {"seed": 7, "shards": 2, "methods": {"rise": {"masks": 9}}},
}
MEASURED = [*METRICS, "p_full", "p_kept"]


def unlabelled(pairs, methods=MADE_WITH, seed=0):
    """Scores as they come from scoring: random, without the columns that the file gets besides."""
    rng = np.random.default_rng(seed)
    rows = pd.concat([group("", method, pairs=pairs) for method in methods], ignore_index=True)
    rows = rows.assign(**{column: rng.random(len(rows)) for column in MEASURED})
    return rows.drop(columns=["model", "arch", "variant", "label"])


def write_shard(path, scores, started=1000.0, **tags):
    write_scores(
        path,
        scores,
        model="resnet",
        variant="guided",
        arch="resnet_small",
        labels={"gradient": "Eq. 3", "gradcam": "Grad-CAM", "rise": "RISE"},
        made_with=MADE_WITH,
        scored_with={"shards": 2, "metrics": {"region": "boxes"}},
        tags=TAGS | tags,
        started=started,
    )
    return path


# Writing --------------------------------------------------------------------------------------------------------------


def test_written_scores_have_names_and_facts(tmp_path):
    scores = unlabelled(PAIRS)
    path = write_shard(tmp_path / "new" / "0.parquet", scores)
    table = pq.read_table(path)
    frame = table.to_pandas()
    pd.testing.assert_frame_equal(frame[list(scores)], scores)
    assert set(frame["model"]) == {"resnet"}
    assert set(frame["arch"]) == {"resnet_small"}
    assert set(frame["variant"]) == {"guided"}
    assert frame["label"].tolist() == ["Eq. 3"] * 4 + ["Grad-CAM"] * 4 + ["RISE"] * 4
    assert [*table.schema.metadata] == [b"ibsgl"]
    facts = json.loads(table.schema.metadata[b"ibsgl"])
    assert facts.pop("seconds") > 0
    scored_with = {"shards": 2, "metrics": {"region": "boxes"}}
    assert facts == TAGS | {
        "seed": 7,
        "started": 1000.0,
        "settings": {
            "gradient": {"seed": 7, "methods": {"gradient": {}}} | scored_with,
            "gradcam": {"seed": 7, "methods": {"gradcam": {}}} | scored_with,
            "rise": {"seed": 7, "methods": {"rise": {"masks": 9}}} | scored_with,
        },
    }


def test_shards_are_combined(tmp_path):
    parts = [unlabelled(PAIRS[:3], seed=1), unlabelled(PAIRS[3:], seed=2)]
    # With more shards than images some shards have no rows, and their columns no type.
    empty = pd.DataFrame(columns=["method", "image_id", "class_name", "target"])
    files = [
        write_shard(tmp_path / f"{number}.parquet", scores, started=1000.0 + number, commit=f"c{number}")
        for number, scores in enumerate([parts[0], empty, parts[1]])
    ]
    combined = combine_scores(files)
    facts = [json.loads(pq.read_schema(file).metadata[b"ibsgl"]) for file in files]
    assert (combined.model, combined.variant, combined.started) == ("resnet", "guided", 1000.0)
    assert combined.seconds == pytest.approx(sum(part["seconds"] for part in facts))
    assert combined.settings == facts[0]["settings"]
    assert combined.tags == TAGS | {"commit": "c0"}
    both = pd.concat(parts)
    assert list(combined.means) == list(MADE_WITH)
    for method, means in combined.means.items():
        rows = both[both["method"] == method]
        assert list(means) == [column for column in parts[0] if column in MEASURED]
        assert means == {column: pytest.approx(rows[column].mean()) for column in MEASURED}

    combined.write(tmp_path / "guided.parquet")
    scores = read_scores([tmp_path / "guided.parquet"])
    assert scores.attrs["metadata"] == {str(tmp_path / "guided.parquet"): combined.tags | {"seed": 7}}
    order = ["method", "image_id", "class_name"]
    pd.testing.assert_frame_equal(
        scores[list(both)].reset_index(drop=True), both.sort_values(order, ignore_index=True), check_like=True
    )


def test_only_score_files_are_combined(tmp_path):
    with pytest.raises(ValueError, match="no score files to combine"):
        combine_scores([])
    group("pretrained", "rise").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no 'ibsgl' record"):
        combine_scores([tmp_path / "a.parquet"])


def test_writing_and_combining_do_not_load_torch(tmp_path):
    path = write_shard(tmp_path / "0.parquet", unlabelled(PAIRS))
    code = (
        "import sys; from ibsgl.reporting.scores import combine_scores; "
        f"combine_scores([{str(path)!r}]).write({str(tmp_path / 'all.parquet')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "all.parquet").is_file()


# Reading --------------------------------------------------------------------------------------------------------------


def test_read_scores_sorts_and_keeps_the_metadata(tmp_path):
    rise = write(tmp_path / "a.parquet", group("pretrained", "rise").sample(frac=1, random_state=0))
    gradcam = write(tmp_path / "b.parquet", group("pretrained", "gradcam"))
    ours = write(tmp_path / "c.parquet", group("guided", "gradient"), weights_digest="w2")
    scores = read_scores([gradcam, ours, rise])
    assert scores["method"].tolist() == ["gradient"] * 4 + ["gradcam"] * 4 + ["rise"] * 4
    assert list(zip(scores["image_id"], scores["class_name"], strict=True)) == PAIRS * 3
    assert scores.attrs["metadata"][str(ours)]["weights_digest"] == "w2"
    table = build_table(scores, 1, PUBLISHED, seed=0, deviations=[])
    assert cell(table, "RISE", "ebpg").value == 50


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"seed": 1}, r"disagree on seed: .*a\.parquet has 0; .*b\.parquet has 1"),
        ({"data_digest": "d2"}, r'disagree on data_digest: .*a\.parquet has "d1"; .*b\.parquet has "d2"'),
        ({"class_names": ["cat"]}, r"disagree on class_names: .*a\.parquet has .*b\.parquet has"),
        ({"weights_digest": "w2"}, r"disagree on weights_digest of resnet's pretrained variant: .*a\.parquet has"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path, metadata, message):
    first = write(tmp_path / "a.parquet", group("pretrained", "gradcam"))
    second = write(tmp_path / "b.parquet", group("pretrained", "rise"), **metadata)
    with pytest.raises(ValueError, match=message):
        read_scores([first, second])


def test_incomplete_files_are_refused(tmp_path):
    whole = write(tmp_path / "a.parquet", group("pretrained", "gradcam"))
    with pytest.raises(ValueError, match=r"rise .*b\.parquet.* and .*gradcam .*a\.parquet.* 2 are in one only"):
        read_scores([whole, write(tmp_path / "b.parquet", group("pretrained", "rise", pairs=PAIRS[:2]))])
    with pytest.raises(ValueError, match=r"a\.parquet.*has several rows for \('1', 'cat'\)"):
        read_scores([whole, whole])
    with pytest.raises(ValueError, match=r"c\.parquet lacks the columns miou, p_kept"):
        read_scores([write(tmp_path / "c.parquet", group("pretrained", "rise").drop(columns=["miou", "p_kept"]))])
    group("pretrained", "rise").to_parquet(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=r"d\.parquet has no 'ibsgl' record"):
        read_scores([tmp_path / "d.parquet"])
    with pytest.raises(ValueError, match="no score files"):
        read_scores([])
