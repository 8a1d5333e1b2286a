"""The effect of guidance and the classification of every variant, from losses and predictions that are written down."""

import numpy as np
import pandas as pd
import pytest

from ibsgl.reporting.effect import classification_table, guidance_table
from ibsgl.reporting.formats import SEEDS_LINE, write_csv, write_guidance_markdown
from ibsgl.training.variants import VARIANTS


def losses():
    images = [f"{i:03}" for i in range(6)]
    base = np.array([6.0, 6.5, 6.2, 6.1, 6.4, 6.6])
    shift = {"pretrained": 0.1, "control": 0.0, "guided": -0.05}
    return pd.concat(
        pd.DataFrame({"variant": variant, "image_id": images, "l_ce": base + by, "l_ss": 0.14 + by / 10})
        for variant, by in shift.items()
    )


def predictions():
    correct = {"pretrained": [1, 1, 1, 0], "control": [1, 1, 1, 1], "guided": [1, 1, 0, 1]}
    return pd.concat(
        pd.DataFrame({"variant": variant, "image_id": list("abcd"), "correct": np.array(right, dtype=bool)})
        for variant, right in correct.items()
    )


def test_guidance_table():
    table = guidance_table(losses(), predictions(), seed=0).set_index(["metric", "variant"])
    assert table.loc[("l_ce", "guided"), "value"] == pytest.approx(6.25)
    # Every image moves by the same amount, so the paired interval is a point, far narrower than either variant's own.
    row = table.loc[("l_ce", "guided - control")]
    assert [row["value"], row["low"], row["high"]] == pytest.approx([-0.05] * 3)
    assert table.loc[("l_ce", "guided"), "high"] - table.loc[("l_ce", "guided"), "low"] > 0.2
    assert table.loc[("l_ss", "guided - control"), "value"] == pytest.approx(-0.005)
    assert table.loc[("accuracy", "control"), ["value", "low", "high"]].tolist() == [100, 100, 100]
    assert table.loc[("accuracy", "guided - control"), "value"] == -25
    assert table.loc[("accuracy", "guided - control"), "high"] == 0
    assert table["n_images"].tolist() == [6] * 8 + [4] * 4
    assert table.index.get_level_values("variant").tolist() == [*VARIANTS, "guided - control"] * 3


def test_the_table_is_written(tmp_path):
    table = guidance_table(losses(), predictions(), seed=0)
    write_guidance_markdown(table, tmp_path / "g.md", model="resnet", notes=["A note."])
    lines = (tmp_path / "g.md").read_text(encoding="utf-8").splitlines()
    assert lines[:4] == [
        "**What guidance does to resnet.** Losses on held-out training images, accuracy or mAP on test images.",
        "",
        "| metric | variant | mean [95 % interval] | images |",
        "|---|---|---:|---:|",
    ]
    assert "| L_CE(L^c, L^ib) | guided - control | -0.0500 [-0.0500, -0.0500] | 6 |" in lines
    assert "| accuracy (%) | control | 100.00 [100.00, 100.00] | 4 |" in lines
    assert lines[-2:] == ["- A note.", f"- Percentile bootstrap, images resampled; {SEEDS_LINE}"]
    write_csv(table, tmp_path / "g.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "g.csv"), table, check_dtype=False, check_exact=True)


def test_guidance_rows_are_clustered_by_image():
    # Two classes an image: as many rows again, no more images.
    twice = pd.concat(losses().assign(class_name=name) for name in ("cat", "dog"))
    once = guidance_table(losses(), predictions(), seed=0)
    table = guidance_table(twice, predictions(), seed=0)
    assert table.loc[0, ["n_rows", "n_images"]].tolist() == [12, 6]
    np.testing.assert_allclose(table[["value", "low", "high"]], once[["value", "low", "high"]], atol=1e-12)


def test_guidance_table_refuses_unpaired_rows():
    with pytest.raises(ValueError, match=r"l_ce: .*lacks rows that another variant has"):
        guidance_table(losses().iloc[:-1], predictions(), seed=0)
    with pytest.raises(ValueError, match="accuracy: more than one row"):
        guidance_table(losses(), pd.concat([predictions()] * 2), seed=0)


def test_guidance_on_a_multilabel_set_is_scored_by_map():
    held_out = pd.DataFrame(
        [(n, str(i), 1.0 + (n == "control"), 0.1) for n in ("guided", "control") for i in range(4)],
        columns=["variant", "image_id", "l_ce", "l_ss"],
    )
    labels = [(1, 0), (0, 1), (1, 1), (1, 0)]
    # Guided ranks both classes perfectly; the control ranks class 0 hit, miss, hit, hit.
    logits = {"guided": [(3, 0), (0, 3), (2, 2), (1, 0)], "control": [(3, 0), (2, 3), (1, 2), (0, 0)]}
    scored = pd.DataFrame(
        [(n, str(i), 1.0, *logits[n][i], *labels[i]) for n in logits for i in range(4)],
        columns=["variant", "image_id", "correct", "logit_0", "logit_1", "label_0", "label_1"],
    ).astype({"logit_0": float, "logit_1": float})
    table = guidance_table(held_out, scored, multilabel=True, seed=0, resamples=200)
    rows = table[table["metric"] == "map"].set_index("variant")
    control = 100 * np.mean([(1 + 2 / 3 + 3 / 4) / 3, 1])
    assert rows.loc["guided", "value"] == pytest.approx(100)
    assert rows.loc["control", "value"] == pytest.approx(control)
    assert rows.loc["guided - control", "value"] == pytest.approx(100 - control)
    assert rows.loc["guided", "low"] == pytest.approx(100)
    assert rows.loc["control", "low"] <= control <= rows.loc["control", "high"]
    assert "accuracy" not in set(table["metric"])


def test_classification_of_every_class():
    rows = {"pretrained": [(3, 0), (2, 3), (1, 2), (0, 0)], "guided": [(3, 0), (0, 3), (2, 2), (1, 0)]}
    labels = [(1, 0), (0, 1), (1, 1), (1, 0)]
    scored = pd.DataFrame(
        [(n, str(i), *rows[n][i], *labels[i]) for n in rows for i in range(4)],
        columns=["variant", "image_id", "logit_0", "logit_1", "label_0", "label_1"],
    ).astype({"logit_0": float, "logit_1": float})
    difficult = np.zeros((4, 2), dtype=bool)
    table = classification_table(scored, ["cat", "dog"], difficult, multilabel=True)
    assert table[["variant", "class", "images"]].to_numpy().tolist() == [
        *(["pretrained", "cat", 3], ["pretrained", "dog", 2], ["guided", "cat", 3], ["guided", "dog", 2])
    ]
    # Hit, miss, hit, hit: precision 1 at recalls 0 … 0.3, then 3/4, the best of what follows.
    assert table["ap"].tolist() == pytest.approx([100 * (1 + 2 / 3 + 3 / 4) / 3, 100, 100, 100])
    assert table["ap11"].tolist() == pytest.approx([100 * (4 + 7 * 3 / 4) / 11, 100, 100, 100])
    difficult[1, 0] = True
    table = classification_table(scored, ["cat", "dog"], difficult, multilabel=True)
    assert table["ap11"].tolist() == pytest.approx([100] * 4)
    single = scored.assign(label_0=[1, 0, 0, 1] * 2, label_1=[0, 1, 1, 0] * 2)
    table = classification_table(single, ["cat", "dog"], difficult, multilabel=False)
    assert table["accuracy"].tolist() == [100, 100, 100, 50]
