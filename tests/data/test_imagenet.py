"""ILSVRC 2012 in each of its layouts gives one and the same index, and what is wrong with a tree is one line."""

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from typer.testing import CliRunner

from ibsgl import cli, config
from ibsgl.config.steps import step_of
from ibsgl.data.index import Index
from ibsgl.data.loading import ImageDataset
from ibsgl.data.sources.imagenet import build_index

TENCH, CRANE, CRANE_TOO = "n01440764", "n02012849", "n03126707"
SYNSETS = (TENCH, CRANE, CRANE_TOO)
# The devkit numbers its classes otherwise than by the alphabet.
DEVKIT = (CRANE_TOO, TENCH, CRANE)
VALIDATION = dict(zip(range(1, 7), (TENCH, CRANE, CRANE_TOO, CRANE, TENCH, TENCH), strict=True))
NO_BOX = 5
SIZE = (20, 10)


def image_id(number):
    return f"ILSVRC2012_val_{number:08d}"


def draw(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), shade, dtype=np.uint8)).save(path, "JPEG", quality=100)


def box(path, synset, *corners, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
    for values in corners:
        keys = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True))
        text += f"<object><name>{synset}</name><bndbox>{keys}</bndbox></object>"
    path.write_text(text + "</annotation>")


def make(root, layout):
    """Three classes of four training images and six validation images, one of them without a box."""
    base = root / "ILSVRC" if layout == "kaggle" else root
    images = base / "Data" / "CLS-LOC" if layout == "kaggle" else base
    for k, synset in enumerate(SYNSETS):
        for n in range(4):
            draw(images / "train" / synset / f"{synset}_{n}.JPEG", 40 * k + n)
        box(base / "Annotations" / "CLS-LOC" / "train" / synset / f"{synset}_0.xml", synset, (3, 1, 10, 5))
    for number, synset in VALIDATION.items():
        folder = images / "val" / synset if layout == "folders" else images / "val"
        draw(folder / f"{image_id(number)}.JPEG", 200 + number)
        if number != NO_BOX:
            corners = [(1, 1, 10, 10), (15, 0, 30, 4)]
            box(base / "Annotations" / "CLS-LOC" / "val" / f"{image_id(number)}.xml", synset, *corners)
    if layout == "kaggle":
        lines = [f"{image_id(n)},{VALIDATION[n]} 1 1 10 10 " for n in (3, 1, 2, 6, 5, 4)]
        (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    numbers = "\n".join(str(DEVKIT.index(synset) + 1) for synset in VALIDATION.values())
    if layout == "synsets":
        (root / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers + "\n")
        (root / "synsets.txt").write_text("\n".join(DEVKIT))
    if layout == "devkit":
        data = root / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers + "\n")
        entries = np.array(
            [(n, synset, "words") for n, synset in enumerate(DEVKIT, 1)],
            dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)],
        )
        scipy.io.savemat(data / "meta.mat", {"synsets": entries})
    return root


def build(root, **changes):
    return build_index(root, **({"train": 2, "test": None, "held_out": 0.5, "seed": 0} | changes))


def facts(index):
    table = index.table
    return table.drop(columns="file").to_dict("records")


@pytest.mark.parametrize("layout", ["folders", "kaggle", "synsets", "devkit"])
def test_every_layout_is_the_same_index(tmp_path, layout, caplog):
    index = build(make(tmp_path / layout, layout))
    reference = build(make(tmp_path / "reference", "folders"))
    assert facts(index) == facts(reference)
    assert index.digest == reference.digest
    assert index.class_names == SYNSETS
    test = index.table[index.table["split"] == "test"]
    shown = {n: synset for n, synset in VALIDATION.items() if n != NO_BOX}
    assert dict(zip(test.image_id, test.class_name, strict=True)) == {image_id(n): s for n, s in shown.items()}
    assert test.target.tolist() == [SYNSETS.index(name) for name in test.class_name]
    # From 1 and with the last pixel to 0-based and half-open; a 0 is a 1; cut at the image's edge.
    assert test.boxes.tolist() == [[[0, 0, 10, 10], [14, 0, 20, 4]]] * 5
    assert "1 images of val have no box of their class and are left out" in caplog.text


def test_training_images_are_chosen_by_a_hash_and_have_a_box(tmp_path):
    root = make(tmp_path, "folders")
    table = build(root, train=4).table
    training = table[table["split"] != "test"]
    assert len(training) == 12
    assert (training["split"] == "held_out").sum() == 6
    for row in training.itertuples():
        assert row.boxes == ([[2, 0, 10, 5]] if row.image_id.endswith("_0") else [[0, 0, *SIZE]])
    chosen = {n: set(build(root, train=n).table.query("split != 'test'").image_id) for n in (1, 2, 3)}
    assert chosen[1] < chosen[2] < chosen[3] < set(training.image_id)
    assert [len(chosen[n]) for n in (1, 2, 3)] == [3, 6, 9]
    others = {frozenset(build(root, train=1, seed=seed).table.query("split != 'test'").image_id) for seed in range(5)}
    assert len(others) > 1
    assert build(root, test=1).table.query("split == 'test'").target.tolist() == [0, 1, 2]


def test_pixels_labels_and_the_saved_index(tmp_path):
    root = make(tmp_path, "kaggle")
    build(root).save(tmp_path / "index.parquet")
    data = ImageDataset(Index.load(tmp_path / "index.parquet"), root, 16)
    assert data.index.table.equals(build(root).table)
    shades = data.images(data.ids("test")).mean((1, 2, 3)) * 255
    numbers = [int(name[-8:]) for name in data.ids("test")]
    torch.testing.assert_close(shades, torch.tensor([200.0 + n for n in numbers]), atol=1.0, rtol=0)
    assert (data.labels("test").sum(1) == 1).all()
    assert not data.difficult("test").any()
    assert data.regions(data.pairs("test")).any((1, 2)).all()


def test_the_steps_run_on_it_with_the_configs_settings(tmp_path):
    """Index, then a network taken as it is, as the workflow calls them."""
    root = make(tmp_path / "imagenet", "devkit")
    tree = {
        "name": "small",
        "data": {"source": "imagenet", "root": str(root), "train_per_class": 2, "held_out": 0.5},
        "models": {"net": {"arch": "resnet_small", "image_size": 32, "options": {"width": 8}}},
        "classifier": {"epochs": 0},
        "methods": {"gradcam": None},
    }
    settings = config.load(tree)
    index, weights = tmp_path / "index.parquet", tmp_path / "net.pt"
    for arguments in (
        ["index", "--root", root, "--settings", step_of(settings, "index").to_json(), "--out", index],
        [
            *("classifier", "--model", "net", "--root", root, "--index", index, "--out", weights),
            *("--settings", step_of(settings, "classifier", model="net", replicate=0).to_json()),
        ],
    ):
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    assert torch.load(weights, weights_only=True)["head.2.weight"].shape == (3, 64)


def test_class_names_in_words(tmp_path):
    root = make(tmp_path, "folders")
    lines = [f"{TENCH} tench, Tinca tinca", f"{CRANE} crane", f"{CRANE_TOO} crane", "n01443537 goldfish, Carassius"]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    index = build(root)
    assert index.class_names == ("tench", "goldfish", f"crane ({CRANE})", f"crane ({CRANE_TOO})")
    assert set(index.table.target) == {0, 2, 3}


def test_boxes_in_another_size_than_the_files(tmp_path):
    root = make(tmp_path, "folders")
    box(root / "Annotations/CLS-LOC/val" / f"{image_id(1)}.xml", TENCH, (21, 11, 40, 20), size=(40, 20))
    test = build(root).table.query("split == 'test'").set_index("image_id")
    assert test.boxes[image_id(1)] == [[10, 5, 20, 10]]


def break_synsets(root):
    (root / "synsets.txt").write_text("\n".join(SYNSETS))


def break_count(root):
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")


def break_number(root):
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n1\n2\n9\n")


def break_names(root):
    (root / "synsets.txt").unlink()


def break_labels(root):
    (root / "ILSVRC2012_validation_ground_truth.txt").unlink()


def break_image(root):
    (root / "val" / f"{image_id(2)}.JPEG").write_bytes(b"no image")


def break_box(root):
    (root / "Annotations/CLS-LOC/val" / f"{image_id(2)}.xml").write_text("<annotation>")


def break_corner(root):
    box(root / "Annotations/CLS-LOC/val" / f"{image_id(2)}.xml", CRANE, ("", 1, 2, 2))


def break_class(root):
    (root / "LOC_synset_mapping.txt").write_text(f"{TENCH} tench\n{CRANE} crane\n")


def break_train(root):
    (root / "train").rename(root / "trian")


def break_boxes(root):
    (root / "Annotations").rename(root / "Anotations")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_synsets, r"5 images of val have boxes, but none of their class, .*in the devkit's order"),
        (break_count, "2 lines for 6 images"),
        (break_number, "9 is not the number of a synset"),
        (break_names, "put the devkit's meta.mat beside it, or synsets.txt"),
        (break_labels, "there are no synset folders, so the classes of the images must be in LOC_val_solution.csv"),
        (break_image, "ILSVRC2012_val_00000002.JPEG: the image cannot be read"),
        (break_box, "ILSVRC2012_val_00000002.xml: the boxes cannot be read"),
        (break_corner, "ILSVRC2012_val_00000002.xml: the boxes cannot be read"),
        (break_class, f"the synset {CRANE_TOO} of train is not in .*LOC_synset_mapping.txt"),
        (break_train, "ImageNet's train is missing; its path may be train or"),
        (break_boxes, "val has no image with a box"),
    ],
)
def test_faults_are_one_line(tmp_path, spoil, message):
    root = make(tmp_path, "synsets")
    spoil(root)
    with pytest.raises(ValueError, match=message) as error:
        build(root)
    assert "\n" not in str(error.value)
