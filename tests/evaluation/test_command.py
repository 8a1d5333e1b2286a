"""``ibsgl evaluate``: the five files of one shard."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from ibsgl import attribution, cli
from ibsgl.attribution.storage import write_maps
from ibsgl.bottleneck import FeatureStatistics
from ibsgl.config.steps import Evaluate
from ibsgl.data.index import shard
from ibsgl.networks import build_network
from ibsgl.networks.weights import digest_state

VARIANTS = ("pretrained", "control", "guided")
KEYS = {
    "scores": ["variant", "scored_on", "method", "image_id"],
    "losses": ["variant", "image_id"],
    "predictions": ["variant", "split", "image_id"],
    "curves": ["variant", "image_id", "repeat", "fraction"],
    "diagnostics": ["image_id"],
}


def settings(shards):
    return Evaluate.parse(
        json.dumps(
            {
                "seed": 0,
                "network": {"arch": "resnet_small", "options": {"width": 8}, "image_size": 32},
                "methods": {
                    "pretrained": {"gradient": {}, "oracle": {}},
                    "control": {"gradient": {}},
                    "guided": {"gradient": {}},
                },
                "metrics": {},
                "deletion": {"points": 3, "repeats": 1},
                "r": 0.35,
                "cross_entropy": "distribution",
                "shards": shards,
            }
        )
    )


@pytest.fixture(scope="module")
def run(small_shapes, tmp_path_factory):
    """``run(shards, *more)`` evaluates every shard; the folders of the shards, and the last call's result."""
    data, folder = small_shapes(trainval=12, test=4), tmp_path_factory.mktemp("run")
    table = data.index.table
    table.loc[table[table["split"] == "train"].index[:3], "split"] = "further"
    data.index.save(folder / "index.parquet")
    for number, variant in enumerate(VARIANTS):
        torch.manual_seed(number)
        network = build_network("resnet_small", 6, width=8).eval()
        (folder / variant).mkdir()
        torch.save(network.state_dict(), folder / variant / "network.pt")
        if variant == "pretrained":
            with torch.no_grad():
                features = network.stem(data.images(data.ids("train")))
            torch.save(FeatureStatistics().update(features).state_dict(), folder / "statistics.pt")
    maps = {name: torch.rand(len(data.pairs("held_out")), 2, 2) for name in ("held_out", "held_out_other")}
    torch.save(maps, folder / "bottleneck.pt")

    def evaluate(shards, *more):
        outs = []
        for number in range(shards):
            rows = shard(data.pairs("test"), number, shards)
            rise, path = (
                attribution.get("rise", masks=2),
                folder / "guided" / "maps" / "rise" / f"{shards}-{number}.parquet",
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            saliency = data.regions(rows).float()
            step = {"seed": 0, "methods": {"rise": {"masks": 2}}}
            write_maps(path, iter([(rows, {"rise": saliency})]), {"rise": rise}, 32, step)
            outs.append(folder / "evaluation" / str(shards) / str(number))
            arguments = ["--model=m", "--replicate=2", f"--index={folder / 'index.parquet'}", f"--root={data.root}"]
            arguments += [f"--weights={folder / variant / 'network.pt'}" for variant in VARIANTS]
            arguments += [f"--maps={path}", f"--statistics={folder / 'statistics.pt'}"]
            arguments += [f"--bottleneck={folder / 'bottleneck.pt'}", f"--settings={settings(shards).to_json()}"]
            arguments += [f"--shard={number}", "--gpu=0", "--batch-size=3", f"--out={outs[-1]}", *more]
            result = CliRunner().invoke(cli.app, ["evaluate", *arguments])
        return outs, result

    evaluate.data, evaluate.folder, evaluate.l_ib = data, folder, maps
    return evaluate


def test_shards_together_are_one(run):
    outs, result = run(1)
    assert result.exit_code == 0, result.output
    parts, result = run(2)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in outs[0].glob("[!.]*")) == sorted(f"{name}.parquet" for name in KEYS)
    for name, key in KEYS.items():
        whole = pd.read_parquet(outs[0] / f"{name}.parquet").sort_values(key, ignore_index=True)
        frames = [pd.read_parquet(part / f"{name}.parquet") for part in parts]
        together = pd.concat(frames, ignore_index=True).sort_values(key, ignore_index=True)
        pd.testing.assert_frame_equal(together, whole, rtol=1e-3, atol=1e-4)
        assert not whole.duplicated(key).any()
        assert (whole["model"] == "m").all()
        assert (whole["replicate"] == 2).all()


def test_the_rows_are_those_of_the_splits(run):
    outs, _ = run(1)
    read = {name: pd.read_parquet(outs[0] / f"{name}.parquet") for name in KEYS}
    data = run.data
    scores = read["scores"]
    assert set(scores["arch"]) == {"resnet_small"}
    rise = scores[scores["method"] == "rise"]
    assert set(rise["variant"]) == {"guided"}
    assert set(rise["label"]) == {"RISE"}
    assert (rise["ebpg"] == 1).all()
    assert len(scores) == (2 + 1 + 2 + 2 + 2) * 4
    further = read["predictions"][read["predictions"]["split"] == "further"]
    assert list(further["image_id"]) == data.ids("further") * 3
    assert len(read["predictions"]) == 3 * (4 + 3)
    assert list(read["diagnostics"]["image_id"]) == list(data.pairs("held_out")["image_id"])
    np.testing.assert_allclose(read["diagnostics"]["nats"], run.l_ib["held_out"].sum((1, 2)), rtol=1e-5)
    assert len(read["losses"]) == 3 * len(data.pairs("held_out"))
    assert len(read["curves"]) == 3 * 4 * 3


def test_the_metadata_tell_where_the_scores_come_from(run):
    outs, _ = run(1)
    facts = json.loads(pq.read_schema(outs[0] / "scores.parquet").metadata[b"ibsgl"])
    assert facts["data_digest"] == run.data.index.digest
    assert facts["seed"] == 0
    assert facts["class_names"] == list(run.data.index.class_names)
    assert facts["labels"]["rise"] == "RISE"
    assert facts["started"] > 0
    assert facts["seconds"] > 0
    assert facts["settings"].keys() == {
        *("pretrained/gradient", "pretrained/oracle", "control/gradient", "guided/gradient", "guided/rise"),
    }
    assert facts["settings"]["guided/rise"]["methods"] == {"rise": {"masks": 2}}
    assert facts["settings"]["pretrained/oracle"]["network"]["arch"] == "resnet_small"
    for variant in VARIANTS:
        state = torch.load(run.folder / variant / "network.pt", weights_only=True)
        assert facts["weights_digest"][variant] == digest_state(state)


def test_files_of_unknown_variants_are_refused(run, tmp_path):
    _, result = run(1, f"--weights={tmp_path / 'other' / 'network.pt'}")
    assert result.exit_code == 2
    assert (
        "give one file for each of control, guided, pretrained, not for pretrained, control, guided, other"
        in result.output
    )
    for path in ("other/maps/rise/0.parquet", "guided/rise/0.parquet", "0.parquet"):
        _, result = run(1, f"--maps={path}")
        assert result.exit_code == 2
        assert f"{path} is not …/<variant>/maps/<method>/<shard>.parquet" in result.output
