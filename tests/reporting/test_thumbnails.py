"""The pictures of the map browser: which images, what a picture holds, and the list of them."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ibsgl import attribution
from ibsgl.attribution.storage import Maps, write_maps
from ibsgl.data.index import Index, shard
from ibsgl.data.loading import ImageDataset
from ibsgl.maps import compute_maps
from ibsgl.networks import build_network
from ibsgl.reporting.page.thumbnails import (
    choose_images,
    disagreement,
    maps_of_sample,
    picture,
    shrunk,
    write_thumbnails,
)


def pairs(*ids):
    return pd.DataFrame({"image_id": list(ids), "target": 0})


def test_a_hash_chooses_the_images():
    table = pairs("a", "b", "b", "c", "d")
    some = choose_images(table, 2, seed=0)
    assert some["image_id"].nunique() == 2
    assert list(some.index) == sorted(some.index)
    reordered = choose_images(table[::-1], 2, seed=0)
    assert set(reordered["image_id"]) == set(some["image_id"])
    assert len(choose_images(table, 9, seed=0)) == 5
    chosen = {frozenset(choose_images(table, 2, seed=seed)["image_id"]) for seed in range(20)}
    assert len(chosen) > 2


def test_disagreement():
    ramp = torch.arange(4.0).view(1, 2, 2)
    assert disagreement([ramp, 2 * ramp]).tolist() == pytest.approx([0])
    assert disagreement([ramp, 3 - ramp]).tolist() == pytest.approx([2])
    # The pairs have r = 1, -1 and -1.
    assert disagreement([ramp, ramp + 1, 3 - ramp]).tolist() == pytest.approx([1 + 1 / 3])
    assert math.isnan(disagreement([ramp, torch.ones(1, 2, 2)]).item())
    assert math.isnan(disagreement([ramp]).item())


def test_a_picture_is_the_image_and_its_maps():
    image = torch.zeros(3, 2, 2)
    image[0] = 1
    # Ten cells: two rows of eight. The map of cell 9 is zero.
    maps = torch.zeros(9, 2, 2)
    maps[:8, 0, 0] = 4
    maps[:8, 1, 1] = 2
    pixels = np.asarray(picture(image, maps))
    assert pixels.shape == (4, 16, 3)
    assert (pixels[:2, :2] == [255, 0, 0]).all()
    assert pixels[0, 2].tolist() == [255] * 3
    assert pixels[1, 3].tolist() == [128] * 3
    assert (pixels[2:, 2:4] == 0).all()


def test_shrinking_keeps_the_mean():
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    small = shrunk(maps, 4)
    assert small.shape == (2, 4, 4)
    assert small.mean((1, 2)).tolist() == pytest.approx(maps.mean((1, 2)).tolist(), rel=0.1)
    assert shrunk(torch.rand(2, 3, 8, 8), 4).shape == (2, 3, 4, 4)


def test_the_list_of_the_pictures(tmp_path):
    rows = pd.DataFrame(
        {
            "image_id": ["../x", "<b>"],
            "class_name": ["cat", "dog"],
            "target": [0, 1],
            "boxes": [[[2, 1, 6, 3]], [[0, 0, 8, 4]]],
            "width": 8,
            "height": 4,
        }
    )
    maps = {
        "pretrained": {"gradient": torch.rand(2, 2, 2), "gradcam": torch.rand(2, 2, 2)},
        "guided": {"gradient": torch.rand(2, 2, 2)},
    }
    folder = tmp_path / "maps"
    write_thumbnails(folder, [(rows, torch.rand(2, 3, 2, 2), maps)], {"gradient": "Eq. 3", "gradcam": "Grad-CAM"})
    listed = json.loads((folder / "maps.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["0.webp", "1.webp", "maps.json"]
    assert listed["maps"][2] == ["guided", "gradient", "Eq. 3"]
    assert listed["pairs"][0]["boxes"] == [[0.25, 0.25, 0.5, 0.5]]
    assert Image.open(folder / "1.webp").size == (8, 2)


def test_maps_are_those_that_were_scored(tmp_path):
    """Stored maps in two shards, and maps that are made here, of three of five images."""
    folder = tmp_path / "JPEGImages"
    folder.mkdir()
    rows = []
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        for target in range(1 + number % 2):
            place = {"width": 32, "height": 32, "file": f"JPEGImages/{number}.png", "sha256": "", "difficult": []}
            names = {"split": "test", "image_id": str(number), "class_name": f"c{target}", "target": target}
            rows.append({**names, "boxes": [[0, 0, 9, 9]], **place})
    data = ImageDataset(Index(("c0", "c1"), "digest", pd.DataFrame(rows)), tmp_path, 32)
    networks = {}
    for variant in ("pretrained", "guided"):
        torch.manual_seed(len(variant))
        networks[variant] = build_network("resnet_small", 2).eval()
    cpu, test = torch.device("cpu"), data.pairs("test")
    made = {"gradient": attribution.get("gradient")}
    score_cam = {"score_cam": attribution.get("score_cam", chunk=4)}
    shared = {"seed": 3, "batch_size": 2, "device": cpu}
    stored = []
    for number in range(2):
        pairs, file = shard(test, number, 2), tmp_path / f"{number}.parquet"
        write_maps(file, compute_maps(networks["pretrained"], data, pairs, score_cam, **shared), score_cam, 32, {})
        stored.append(Maps([file], pairs))
    sample = choose_images(test, 3, seed=0)
    batches = list(
        maps_of_sample(
            networks,
            data,
            sample,
            dict.fromkeys(networks, made),
            {"pretrained": stored},
            statistics=None,
            **shared,
        )
    )
    assert pd.concat([rows for rows, _, _ in batches]).index.tolist() == sample.index.tolist()
    assert {variant: list(maps) for variant, maps in batches[0][2].items()} == {
        "pretrained": ["gradient", "score_cam"],
        "guided": ["gradient"],
    }
    for variant, method, methods in (
        ("pretrained", "score_cam", score_cam),
        ("pretrained", "gradient", made),
        ("guided", "gradient", made),
    ):
        whole = torch.cat([maps[method] for _, maps in compute_maps(networks[variant], data, test, methods, **shared)])
        shown = torch.cat([maps[variant][method] for _, _, maps in batches])
        torch.testing.assert_close(shown, shrunk(whole[sample.index.tolist()], 32), rtol=1e-4, atol=1e-6)
