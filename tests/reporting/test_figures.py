"""Figures from networks whose maps can be written down: a class sees one colour, so L^c is that colour's channel."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from ibsgl.data.index import Index
from ibsgl.data.loading import ImageDataset
from ibsgl.metrics.deletion import area_under
from ibsgl.networks import build_network
from ibsgl.networks.split import SplitNetwork
from ibsgl.randomness import derive_seed
from ibsgl.reporting import figures
from ibsgl.reporting.statistics import crossed_estimate

CPU = torch.device("cpu")
NAMES = ("red $x_1$", "green", "a very long name of blue")
SIZE = 4


def picture(seed) -> Image.Image:
    """8×4 pixels, nothing regular about them."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, 2 * SIZE, 3), dtype=np.uint8))


def seen(seed):
    """The picture as the network sees it, (4,4,3) in [0,1]."""
    return np.asarray(picture(seed).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) / 255


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ImageDataset:
    """Four test images of 8×4 pixels; the last shows red and green."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "JPEGImages").mkdir()
    rows = []
    for number, targets in enumerate([[0], [1], [2], [0, 1]]):
        picture(number).save(folder / "JPEGImages" / f"i{number}.png")
        for k in targets:
            box = {"boxes": [[2 * k, k, 2 * k + 4, k + 2]], "width": 8, "height": 4, "mask_sha256": ""}
            box |= {"file": f"JPEGImages/i{number}.png", "sha256": "", "difficult": []}
            rows.append({"split": "test", "image_id": f"i{number}", "class_name": NAMES[k], "target": k, **box})
    return ImageDataset(Index(NAMES, "digest", pd.DataFrame(rows)), folder, SIZE)


def colors(weight, multilabel=False) -> SplitNetwork:
    """Logits = weight (3,3) times the mean colour, so that L^c = ReLU(Σ_k weight[c,k] · channel k) / 16."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, bias=False))
    head[2].weight.data = torch.tensor(weight, dtype=torch.float32)
    return SplitNetwork(nn.Identity(), head, multilabel=multilabel)


BEFORE = [[4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0]]
AFTER = [[6.0, -2.0, 0.0], [-1.0, 5.0, 0.0], [0.0, -1.0, 7.0]]


def explained(pixels, weight, c, present=(), r=0.35, multilabel=False):
    """p, L^c, L^p, the probabilities of c and p, and L_SS, written out in NumPy."""
    weight = np.array(weight)
    logits = weight @ pixels.mean((0, 1))
    probability = 1 / (1 + np.exp(-logits)) if multilabel else np.exp(logits) / np.exp(logits).sum()
    p = max(set(range(3)) - {c} - set(present), key=lambda k: logits[k])
    l_c, l_p = (np.maximum(pixels @ weight[k], 0) / SIZE**2 for k in (c, p))
    top = np.argsort(-l_c.ravel(), kind="stable")[: int(np.ceil(r * SIZE**2))]
    loss = np.minimum(l_c, l_p).ravel()[top].sum() / (l_c + l_p).sum()
    return p, l_c, l_p, probability[c], probability[p], loss


@pytest.fixture(scope="module")
def examples(data) -> figures.Examples:
    return figures.suppression_examples(colors(BEFORE), colors(AFTER), data, data.pairs("test").iloc[:3], CPU)


@pytest.fixture(scope="module")
def drawn(examples) -> Callable[..., Figure]:
    """``drawn("figure2", "one", "two")``: that figure of these models. Each is drawn once; tests only read it."""

    @cache
    def draw(name: str, *models: str) -> Figure:
        return getattr(figures, name)(dict.fromkeys(models, examples), seed=5)

    return draw


def texts(figure: Figure) -> list[str]:
    titles = [axes.get_title() for axes in figure.axes]
    return [text for text in titles if text] + [text.get_text() for text in figure.texts]


def cell(figure: Figure, row: int, column: int):
    (axes,) = (axes for axes in figure.axes if axes.get_label() == f"{row},{column}")
    return axes


# The examples ---------------------------------------------------------------------------------------------------------


def many_pairs():
    rows = [(f"{name}{i}", name) for name, n in (("cat", 9), ("dog", 5), ("eel", 2)) for i in range(n)]
    rows += [("both", "cat"), ("both", "dog")]
    return pd.DataFrame(rows, columns=["image_id", "class_name"])


@pytest.mark.parametrize("count", [1, 3, 6, 9])
def test_chosen_pairs_are_spread_over_classes_and_fixed_by_the_seed(count):
    pairs = many_pairs()
    chosen = figures.choose_pairs(pairs, count, 7)
    assert len(chosen) == count
    assert chosen["image_id"].is_unique
    # eel has no more than two images.
    of_class = chosen["class_name"].value_counts().reindex(["cat", "dog", "eel"], fill_value=0)
    assert of_class["eel"] == min(2, of_class["eel"])
    assert of_class[["cat", "dog"]].max() - of_class[["cat", "dog"]].min() <= 1
    assert of_class["eel"] in (2, of_class["cat"], of_class["dog"])
    shuffled = pairs.sample(frac=1, random_state=0).set_index(np.zeros(len(pairs)))
    pd.testing.assert_frame_equal(
        figures.choose_pairs(shuffled, count, 7).reset_index(drop=True), chosen.reset_index(drop=True)
    )


def test_within_a_class_the_smallest_hash_comes_first():
    pairs = many_pairs()
    pairs = pairs[pairs["class_name"] == "cat"]
    order = sorted(pairs["image_id"], key=lambda i: derive_seed(3, "figure", i))
    assert list(figures.choose_pairs(pairs, 4, 3)["image_id"]) == order[:4]
    assert order[:4] != list(figures.choose_pairs(pairs, 4, 4)["image_id"])


def test_fewer_images_than_wanted_gives_each_once():
    pairs = many_pairs()
    chosen = figures.choose_pairs(pairs, 100, 0)
    assert sorted(chosen["image_id"]) == sorted(pairs["image_id"].unique())
    with pytest.raises(ValueError, match="at least 1 example"):
        figures.choose_pairs(pairs, 0, 0)


# Explanations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [0.35, 0.7])
def test_explanations_by_hand(data, r):
    pairs = data.pairs("test").iloc[[2, 0, 1]]
    explained_pairs = figures.suppression_examples(colors(BEFORE), colors(AFTER), data, pairs, CPU, r=r)
    for ours, weight in ((explained_pairs.before, BEFORE), (explained_pairs.after, AFTER)):
        for row, number in enumerate((2, 0, 1)):
            p, l_c, l_p, of_c, of_p, loss = explained(seen(number), weight, c=number, r=r)
            assert ours.other[row] == p
            np.testing.assert_allclose(ours.l_c[row], l_c, atol=1e-6)
            np.testing.assert_allclose(ours.l_p[row], l_p, atol=1e-6)
            assert ours.target_probability[row].item() == pytest.approx(of_c, abs=1e-6)
            assert ours.other_probability[row].item() == pytest.approx(of_p, abs=1e-6)
            assert ours.suppression[row].item() == pytest.approx(loss, abs=1e-6)


def test_multilabel_other_class_is_none_that_the_image_shows(data):
    network = colors(BEFORE, multilabel=True)
    pairs = data.pairs("test").iloc[3:]
    explained_pairs = figures.suppression_examples(network, network, data, pairs, CPU)
    assert explained_pairs.before.other.tolist() == [2, 2]
    for row, c in enumerate((0, 1)):
        _, _, l_p, of_c, of_p, _ = explained(seen(3), BEFORE, c, present=(0, 1), multilabel=True)
        np.testing.assert_allclose(explained_pairs.before.l_p[row], l_p, atol=1e-6)
        assert explained_pairs.before.target_probability[row].item() == pytest.approx(of_c, abs=1e-6)
        assert explained_pairs.before.other_probability[row].item() == pytest.approx(of_p, abs=1e-6)
    # With a single label green can be p, which the image shows too.
    single = figures.suppression_examples(colors(BEFORE), colors(BEFORE), data, pairs, CPU)
    assert single.before.other[0] == explained(seen(3), BEFORE, 0)[0]
    assert "red $x_1$" in "".join(texts(figures.figure2({"m": explained_pairs}, seed=0)))


# Figures 2 and 3 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [["one"], ["one", "two"]])
def test_figure2(drawn, models):
    figure = drawn("figure2", *models)
    assert len(figure.axes) == 3 * (1 + 4 * len(models)) + 1
    shown = texts(figure)
    assert [shown.count(model) for model in models] == [1] * len(models)
    for heading in ("before guidance", "after guidance"):
        assert shown.count(heading) == len(models)
    assert shown.count("$L^c$") == shown.count("$L^p$") == 2 * len(models)
    for model in range(len(models)):
        for row in range(3):
            for half, weight in enumerate((BEFORE, AFTER)):
                p, l_c, l_p, of_c, of_p, loss = explained(seen(row), weight, row)
                columns = [1 + 4 * model + 2 * half, 2 + 4 * model + 2 * half]
                for column, k, probability, saliency in zip(columns, (row, p), (of_c, of_p), (l_c, l_p), strict=True):
                    axes = cell(figure, row, column)
                    name, _, number = axes.get_title().rpartition(" ")
                    assert NAMES[k].startswith(name.rstrip("…"))
                    assert number == f"{probability:.2f}"
                    overlay = axes.images[1].get_array()
                    np.testing.assert_allclose(overlay, saliency / saliency.max(), atol=1e-5)
                assert sum(f"= {loss:.3f}" in text for text in shown) >= len(models)
    note = next(text for text in shown if text.startswith("c is the target class")).replace("\n", " ")
    for part in ("3 examples", "seed 5", "r = 0.35", "divided by its own maximum", "boxes of the target class"):
        assert part in note


@pytest.mark.parametrize("models", [["one"], ["one", "two"]])
def test_figure3_has_image_before_and_after_from_left_to_right(drawn, models):
    figure = drawn("figure3", *models)
    assert len(figure.axes) == 3 * (1 + 2 * len(models)) + 1
    for row in range(3):
        line = [cell(figure, row, column) for column in range(1 + 2 * len(models))]
        lefts = [axes.get_position().x0 for axes in line]
        assert lefts == sorted(lefts)
        assert len({round(axes.get_position().y0, 6) for axes in line}) == 1
        np.testing.assert_allclose(line[0].images[0].get_array(), seen(row), atol=1e-6)
        for model in range(len(models)):
            for half, weight in enumerate((BEFORE, AFTER)):
                _, l_c, _, of_c, _, _ = explained(seen(row), weight, row)
                axes = line[1 + 2 * model + half]
                assert axes.get_title().endswith(f" {of_c:.2f}")
                np.testing.assert_allclose(axes.images[1].get_array(), l_c / l_c.max(), atol=1e-5)


def test_pictures_are_square_and_boxes_stay_in_the_files_pixels(drawn):
    figure = drawn("figure3", "one")
    width, height = figure.get_size_inches()
    for row in range(3):
        for column in range(3):
            axes = cell(figure, row, column)
            place = axes.get_position()
            assert place.width * width == pytest.approx(place.height * height)
            assert (axes.get_xlim(), axes.get_ylim()) == ((0, 8), (4, 0))
            (box,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
            assert (*box.get_xy(), box.get_width(), box.get_height()) == (2 * row, row, 4, 2)
            assert all(isinstance(image, AxesImage) for image in axes.images)


def test_nothing_overlaps_or_leaves_the_sheet(drawn):
    for name in ("figure2", "figure3"):
        for models in (["one"], ["one", "two"]):
            figure = drawn(name, *models)
            figure.draw_without_rendering()
            sheet = figure.bbox
            boxes = [text.get_window_extent() for text in figure.texts]
            boxes += [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
            for number, box in enumerate(boxes):
                assert sheet.x0 <= box.x0 <= box.x1 <= sheet.x1
                assert sheet.y0 <= box.y0 <= box.y1 <= sheet.y1
                assert not any(box.overlaps(other) for other in boxes[:number])


def test_a_map_of_zeros_is_marked(data):
    network = colors([[-1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])
    explained_pairs = figures.suppression_examples(network, network, data, data.pairs("test").iloc[:1], CPU)
    figure = figures.figure3({"one": explained_pairs}, seed=0)
    assert [text.get_text() for text in cell(figure, 0, 1).texts] == ["all zero"]
    assert cell(figure, 0, 0).texts[:] == []
    np.testing.assert_array_equal(cell(figure, 0, 1).images[1].get_array(), 0)


def test_models_must_show_the_same_examples(data, examples):
    other = figures.suppression_examples(colors(BEFORE), colors(AFTER), data, data.pairs("test").iloc[1:4], CPU)
    with pytest.raises(ValueError, match="one, two must have the same examples"):
        figures.figure2({"one": examples, "two": other}, seed=0)


# Figure 4 -------------------------------------------------------------------------------------------------------------

FRACTIONS = [0.0, 0.25, 1.0]
R = {"one": 0.15, "two": 0.2}
PAIRS = [("a", "cat"), ("b", "dog"), ("c", "cat"), ("c", "dog")]


def deletion(models=("one", "two"), variants=("guided", "control", "pretrained"), repeats=3, replicates=2):
    rng = np.random.default_rng(0)
    rows = [
        (model, variant, replicate, *pair, repeat, fraction, rng.random())
        for model in models
        for variant in variants
        for replicate in range(replicates)
        for pair in PAIRS
        for repeat in range(repeats)
        for fraction in FRACTIONS
    ]
    columns = ["model", "variant", "replicate", "image_id", "class_name", "repeat", "fraction", "probability"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("models", [["two", "one"], ["one"]])
def test_figure4_table_by_plain_numpy(models):
    curves = deletion(models)
    _, table = figures.figure4(
        curves.sample(frac=1, random_state=1).sort_values("model", ascending=len(models) == 1, kind="stable"),
        r=R,
    )
    assert list(table["model"].unique()) == models
    assert len(table) == len(models) * 3 * 3
    for (model, variant), rows in table.groupby(["model", "variant"]):
        mine = curves[(curves["model"] == model) & (curves["variant"] == variant)]
        trainings = mine["probability"].to_numpy().reshape(2, len(PAIRS), 3, len(FRACTIONS))
        cube = trainings.mean(0)
        np.testing.assert_array_equal(rows["fraction"], FRACTIONS)
        np.testing.assert_allclose(rows["probability"], cube.mean((0, 1)))
        np.testing.assert_allclose(rows["repeat_low"], cube.mean(0).min(0))
        np.testing.assert_allclose(rows["repeat_high"], cube.mean(0).max(0))
        mean = cube.mean((0, 1))
        area = sum((mean[i] + mean[i + 1]) / 2 * (FRACTIONS[i + 1] - FRACTIONS[i]) for i in range(2))
        np.testing.assert_allclose(rows["area"], area)
        # The two pairs of the image c count together.
        pairs = trainings.mean(2)
        centred = pairs - pairs.mean(1, keepdims=True)
        parts = np.stack([centred[:, 0], centred[:, 1], centred[:, 2] + centred[:, 3]], axis=1) * 3 / 4
        values = pairs.mean(1, keepdims=True) + parts
        for number in range(len(FRACTIONS)):
            expected = crossed_estimate(values[:, :, number])
            np.testing.assert_allclose(rows[["low", "high"]].iloc[number], [expected.low, expected.high])
        expected = crossed_estimate(area_under(torch.tensor(values), FRACTIONS).numpy())
        np.testing.assert_allclose(rows[["area_low", "area_high"]].iloc[0], [expected.low, expected.high])
        assert rows[["pairs", "images", "repeats", "replicates"]].drop_duplicates().to_numpy().tolist() == [
            [4, 3, 3, 2]
        ]


@pytest.mark.parametrize(
    ("models", "variants"),
    [(["one", "two"], ["pretrained", "control", "guided"]), (["one"], ["pretrained", "guided"])],
)
def test_figure4_draws_its_table(models, variants):
    figure, table = figures.figure4(deletion(models, variants), r=R)
    assert [axes.get_title() for axes in figure.axes] == models
    labels = {"pretrained": "before guidance", "control": "control (no guidance)", "guided": "after guidance"}
    for axes, model in zip(figure.axes, models, strict=True):
        assert axes.get_ylim() == (0, 1)
        assert axes.get_xlabel() == f"deleted share of the top {100 * R[model]:g} % of the pixels (%)"
        assert len(axes.lines) == len(variants)
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == len(variants)
        assert len({to_rgb(line.get_color()) for line in axes.lines}) == len(variants)
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        for line, variant, entry in zip(axes.lines, variants, legend, strict=True):
            rows = table[(table["model"] == model) & (table["variant"] == variant)]
            np.testing.assert_allclose(line.get_xdata(), [0, 25, 100])
            np.testing.assert_array_equal(line.get_ydata(), rows["probability"])
            area = rows[["area", "area_low", "area_high"]].iloc[0]
            assert entry == f"{labels[variant]}: {area.iloc[0]:.3f} [{area.iloc[1]:.3f}, {area.iloc[2]:.3f}]"
        bands = [band.get_paths()[0].get_extents() for band in axes.collections]
        ours = table[table["model"] == model]
        assert min(band.y0 for band in bands) == pytest.approx(min(ours["low"].min(), ours["repeat_low"].min()))
        assert max(band.y1 for band in bands) == pytest.approx(max(ours["high"].max(), ours["repeat_high"].max()))
    note = figure.get_supxlabel().replace("\n", " ")
    assert "4 (image, class) pairs of 3 images, 3 random orders" in note


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: pd.concat([c, c[c["variant"] == "guided"]]), "one/guided: some deletion curves are doubled"),
        (lambda c: c.drop(index=c.index[-1]), "one/pretrained: the deletion curves are incomplete"),
        (
            lambda c: c[~((c["image_id"] == "a") & (c["repeat"] == 1))],
            "one/pretrained: the deletion curves are incomplete",
        ),
        (
            lambda c: c[~((c["image_id"] == "a") & (c["variant"] == "guided"))],
            "one/guided and the model's other variants",
        ),
        (lambda c: c.assign(variant="tuned"), "variant 'tuned' is unknown"),
    ],
)
def test_figure4_refuses_curves_that_do_not_belong_together(spoil, message):
    with pytest.raises(ValueError, match=message):
        figures.figure4(spoil(deletion(["one"])), r=R)


def test_curves_are_read_with_their_model(tmp_path):
    curves = deletion(["one"], variants=("guided", "control", "pretrained", "shuffled"))
    folders = [tmp_path / model / shard for model in ("two", "one") for shard in "01"]
    for folder in folders:
        folder.mkdir(parents=True)
        shown = curves[curves["image_id"].isin(["a"] if folder.name == "0" else ["b", "c"])]
        shown.assign(model=folder.parent.name).to_parquet(folder / "curves.parquet")
    read = figures.read_curves(folders)
    assert read["model"].drop_duplicates().tolist() == ["two", "one"]
    assert read["image_id"].drop_duplicates().tolist() == ["a", "b", "c"]
    # Figure 4 shows no sham.
    assert len(read) == 2 * len(curves) * 3 / 4
    figures.figure4(read, r=R)
    with pytest.raises(ValueError, match="no deletion curves"):
        figures.read_curves([])
    curves.rename(columns={"variant": "network"}).to_parquet(folders[0] / "curves.parquet")
    with pytest.raises(ValueError, match=r"curves\.parquet lacks the columns variant"):
        figures.read_curves(folders)


# Files ----------------------------------------------------------------------------------------------------------------


def test_saved_at_200_dpi_with_a_pdf_and_the_same_bytes_twice(data, tmp_path):
    # A single pair and model: most of the time goes into the fonts.
    pairs = data.pairs("test").iloc[:1]
    examples = figures.suppression_examples(colors(BEFORE), colors(AFTER), data, pairs, CPU)
    for name in ("a", "b"):
        figure = figures.figure2({"one": examples}, seed=0)
        figures.save(figure, tmp_path / name / "f.png")
        figures.save(figures.figure4(deletion(["one"]), r=R)[0], tmp_path / name / "g.png")
    assert sorted(path.name for path in (tmp_path / "a").glob("[!.]*")) == ["f.pdf", "f.png", "g.pdf", "g.png"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    width, height = figure.get_size_inches()
    with Image.open(tmp_path / "a" / "f.png") as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.size == pytest.approx((200 * width, 200 * height), abs=1)
    pdf = (tmp_path / "a" / "f.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"CreationDate" not in pdf


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    figure = Figure()
    figures.save(figure, tmp_path / "f.png")
    there = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self, file, **_):
        Path(file).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        figures.save(figure, tmp_path / "f.png")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == there
    with pytest.raises(ValueError, match=r"must end in \.png"):
        figures.save(figure, tmp_path / "f.jpg")


# The commands ---------------------------------------------------------------------------------------------------------

SPEC = {"arch": "resnet_small", "image_size": 32, "options": {"width": 8}, "multilabel": False}


def run(*arguments):
    from ibsgl.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_figure_commands(data, tmp_path):
    data.index.save(tmp_path / "index.parquet")
    results = tmp_path / "results"
    weights = []
    for model in ("one", "two"):
        for variant in ("pretrained", "guided"):
            weights.append(results / model / "0" / variant / "network.pt")
            weights[-1].parent.mkdir(parents=True)
            torch.save(build_network("resnet_small", 3, width=8).state_dict(), weights[-1])
        folder = results / model / "0" / "evaluation" / "0"
        folder.mkdir(parents=True)
        deletion([model], ["pretrained", "guided"], replicates=1).to_parquet(folder / "curves.parquet")
    shared = {"networks": {"one": SPEC, "two": SPEC}}
    common = ["figure", "--index", tmp_path / "index.parquet", "--root", data.root, "--gpu", 0]
    given = [f"--weights={path}" for path in weights]
    records = ["--records", tmp_path / "records"]
    for number in (2, 3):
        r = {"r": dict.fromkeys(shared["networks"], 0.35)} if number == 2 else {}
        settings = json.dumps(shared | {"seed": 0, "number": number, "figures": {"examples": 2}} | r)
        out = tmp_path / f"figure{number}.png"
        done = run(*common, *given, "--settings", settings, *records, "--out", out)
        assert done.exit_code == 0, (done.output, done.exception)
        assert out.is_file()
        assert out.with_suffix(".pdf").is_file()
    lacking = run(*common, *given[:-1], "--settings", settings, "--out", out)
    assert lacking.exit_code != 0
    assert "guided/network.pt of two" in lacking.output

    settings = json.dumps(
        shared
        | {
            "deletion": {"points": 3, "repeats": 3},
            "r": {"one": 0.15, "two": 0.15},
        }
    )
    files = [f"--evaluation={path}" for path in sorted(results.glob("*/0/evaluation/0"))]
    out = tmp_path / "figure4.png"
    done = run("figure4", *files, "--settings", settings, *records, "--out", out)
    assert done.exit_code == 0, (done.output, done.exception)
    assert out.with_suffix(".pdf").is_file()
    table = pd.read_csv(out.with_suffix(".csv"))
    assert table[["model", "variant"]].drop_duplicates().to_numpy().tolist() == [
        ["one", "pretrained"],
        ["one", "guided"],
        ["two", "pretrained"],
        ["two", "guided"],
    ]
    strange = run("figure4", *files, "--settings", settings.replace('"two"', '"zwei"'), "--out", out)
    assert strange.exit_code != 0
    # The console script prints this error as one line.
    assert isinstance(strange.exception, ValueError)
    assert "model 'two'" in str(strange.exception)
    assert len(list((tmp_path / "records").glob("*.json"))) == 3
