"""Measurements of a run that are made up: every variant's effect is given, the rest is noise that the variants share."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ibsgl.reporting.measurements import Measurements

METADATA = {"data_digest": "d1", "seed": 0, "class_names": ["cat", "dog"], "weights_digest": {"guided": "w1"}}
VARIANTS = ["pretrained", "control", "guided", "shuffled", "uniform", "boxes"]
BASELINES = ["gradcam", "gradcam_pp", "extremal_perturbation", "rise", "score_cam", "integrated_gradients", "fullgrad"]
FRACTIONS = (0.0, 0.5, 1.0)


def run(
    effects=None,
    *,
    model="resnet",
    replicates=6,
    images=40,
    variants=VARIANTS,
    methods=(),
    method_replicates=None,
    accuracy=None,
    spread=0.002,
    nats=30.0,
):
    """The measurements of one network.

    Args:
        effects: by variant, what is added to EBPG and, three times, to Average Increase, and what is taken from Average Drop,
            L_CE, L_SS and the deletion curve after its start. Without an entry 0.
        methods: on pretrained and control, with an Average Drop of 0.5 and an Average Increase of 0.5.
        accuracy: by variant, the share of correct images. Without an entry 0.9.
        spread: of the noise that differs between variants and replicates.
    """
    effects, accuracy = effects or {}, accuracy or {}
    rng = np.random.default_rng(0)
    ids = [f"{i:03}" for i in range(images)]
    names = np.where(np.arange(images) % 2 == 0, "cat", "dog")
    base = rng.normal(0, 0.05, images)
    scores, losses, predictions, curves, diagnostics = [], [], [], [], []
    for replicate in range(replicates):
        keys = pd.DataFrame({"replicate": replicate, "image_id": ids, "class_name": names})
        diagnostics.append(keys.assign(nats=nats, r_other=0.9, r_activation=0.8, r_gradient=0.1, region_share=0.3))
        for variant in variants:
            effect = effects.get(variant, 0.0) + base + rng.normal(0, spread, images) + rng.normal(0, spread)
            of_variant = keys.assign(variant=variant)
            increase = (np.arange(images) / images < 0.5 + 3 * effects.get(variant, 0.0)).astype(float)
            made = of_variant.assign(
                model=model,
                arch=f"{model}_small",
                scored_on=variant,
                target=0,
                p_full=0.8,
                p_kept=0.4,
                ebpg=0.5 + effect,
                miou=0.3 + effect,
                bbox=0.4 + effect,
                average_drop=0.5 - effect,
                average_increase=increase,
            )
            scores.append(made.assign(method="gradient", label="Eq. 3"))
            if variant != "pretrained":
                for maps_of, scored_on in ((variant, "pretrained"), ("pretrained", variant)):
                    crossed = made.assign(variant=maps_of, scored_on=scored_on, average_drop=0.6)
                    scores.append(crossed.assign(method="gradient", label="Eq. 3"))
            if variant in ("pretrained", "control") and replicate < (method_replicates or replicates):
                for method in methods:
                    drop = 0.5 - base + rng.normal(0, spread, images)
                    rows = made.assign(
                        average_drop=drop, average_increase=(np.arange(images) / images < 0.5).astype(float)
                    )
                    scores.append(rows.assign(method=method, label=method.upper()))
            losses.append(of_variant.assign(l_ce=6 - effect, l_ss=0.14 - effect, overlap=0.5 - effect))
            right = (np.arange(images) < accuracy.get(variant, 0.9) * images).astype(float)
            label = (names == "dog").astype(float)
            guess = np.where(right > 0, label, 1 - label)
            predictions.append(
                of_variant.drop(columns="class_name").assign(
                    split="test", correct=right, logit_0=1 - guess, logit_1=guess, label_0=1 - label, label_1=label
                )
            )
            for fraction in FRACTIONS:
                curves.append(
                    of_variant.assign(
                        model=model,
                        repeat=0,
                        fraction=fraction,
                        probability=0.8 - fraction * 0.5 - (fraction > 0) * effect,
                    )
                )
    frames = (pd.concat(parts, ignore_index=True) for parts in (scores, losses, predictions, curves, diagnostics))
    return Measurements(model, f"{model}_small", *frames, dict(METADATA))


def write(measurements, root, shards=1, **metadata):
    """Write ``measurements`` as the files of a run, and return the folders."""
    folders = []
    for replicate in sorted(map(int, measurements.scores["replicate"].unique())):
        for shard in range(shards):
            folder = root / measurements.model / str(replicate) / "evaluation" / str(shard)
            folder.mkdir(parents=True)
            for name in ("scores", "losses", "predictions", "curves", "diagnostics"):
                frame = getattr(measurements, name)
                rows = frame[(frame["replicate"] == replicate) & (frame["image_id"].astype(int) % shards == shard)]
                table = pa.Table.from_pandas(rows, preserve_index=False)
                facts = {b"ibsgl": json.dumps(METADATA | {"replicate": replicate} | metadata).encode()}
                pq.write_table(
                    table.replace_schema_metadata(facts if name == "scores" else None), folder / f"{name}.parquet"
                )
            folders.append(folder)
    return folders
