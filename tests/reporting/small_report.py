"""A small finished report, with names that would do harm if they were not escaped."""

import shutil
from pathlib import Path

import pandas as pd
import torch
import yaml
from table_rows import PUBLISHED, ROOT, build, group, measurements

from ibsgl import config
from ibsgl.reporting import figures
from ibsgl.reporting.formats import write_table
from ibsgl.reporting.page import build as page
from ibsgl.reporting.page import content
from ibsgl.reporting.page.thumbnails import write_thumbnails

HOSTILE = "<img src=x onerror=alert(1)>"
LABEL = "A|B <script>alert(2)</script> & 5%"
SIDE = 8


def small_report(folder: Path, images: int = 6) -> Path:
    """Write a report of one network into ``folder``; its page."""
    settings = config.parse(yaml.safe_load((ROOT / "config" / "shapes.yaml").read_text(encoding="utf-8")))
    settings = settings.model_copy(update={"models": {"resnet": settings.models["resnet"]}})
    g = torch.Generator().manual_seed(0)
    pairs = [(f"image {number}", HOSTILE if number % 2 else "cat") for number in range(images)]
    drop = [number / images for number in range(images)]
    groups = [
        group("pretrained", "gradient", "Eq. 3", pairs=pairs, average_drop=0.5),
        group("pretrained", "gradcam", "Grad-CAM", pairs=pairs, average_drop=drop[::-1]),
        group("pretrained", "mine", LABEL, pairs=pairs, average_drop=0.25),
        group("guided", "gradient", "Eq. 3", pairs=pairs, average_drop=drop),
    ]
    scores = pd.concat(groups, ignore_index=True)
    scores["target"] = (scores["class_name"] == HOSTILE).astype(int)
    measured = measurements(scores, settings={}, replicates={0: {}})

    rows = pd.DataFrame(pairs, columns=["image_id", "class_name"])
    rows = rows.assign(target=(rows["class_name"] == HOSTILE).astype(int), boxes=[[[1, 1, 4, 5]]] * images)
    rows = rows.assign(width=SIDE, height=SIDE)
    shown = {
        "pretrained": {name: torch.rand(images, SIDE, SIDE, generator=g) for name in ("gradient", "gradcam", "mine")},
        "guided": {"gradient": torch.rand(images, SIDE, SIDE, generator=g)},
    }
    labels = {"gradient": "Eq. 3", "gradcam": "Grad-CAM", "mine": LABEL}
    write_thumbnails(
        folder / "maps" / "resnet", [(rows, torch.rand(images, 3, SIDE, SIDE, generator=g), shown)], labels
    )

    tables = []
    for number in (1, 3):
        tables.append(folder / "source" / f"table{number}.csv")
        write_table(build(*groups, number=number, deviations=["data set: shapes"]), tables[-1])
    tables.append(folder / "source" / "comparisons_resnet.csv")
    compared = {"metric": "average_drop", "comparison": "guided - control", "value": 1.5, "low": -1.0, "high": 4.0}
    compared |= {"unit": "percentage points", "replicates": 2, "images": images, "by_replicate": "1.0; 2.0"}
    pd.DataFrame([compared]).to_csv(tables[-1], index=False)
    tables.append(folder / "source" / "metrics_resnet.csv")
    measured_further = {"variant": "pretrained", "label": LABEL, "metric_label": "Sparseness (Gini)", "published": ""}
    known = {
        "value": 0.25,
        "low": 0.125,
        "high": 0.375,
        "pairs": images,
        "rank": 2.0,
        "mark": "is marked",
        "reason": "",
    }
    unknown = {
        "value": None,
        "low": None,
        "high": None,
        "pairs": 0,
        "rank": None,
        "mark": "",
        "reason": "too many passes",
    }
    pd.DataFrame([measured_further | known, measured_further | unknown]).to_csv(tables[-1], index=False)

    history = pd.DataFrame(
        [
            {
                "model": "resnet",
                "replicate": 0,
                "variant": variant,
                "epoch": epoch,
                "held_out_accuracy": 0.5 + epoch / 10,
            }
            for variant in ("pretrained", "control", "guided")
            for epoch in (1, 2)
        ]
    )
    png = folder / "figures" / "training.png"
    figures.save(figures.training_curves(history), png)
    (folder / "config.yaml").write_text("name: shapes\n", encoding="utf-8")
    record = {
        "kind": "training",
        "result_id": "resnet/0/guided",
        "started": 0.0,
        "seconds": 3600.0,
        "history": [],
        "tags": {"commit": "abc", "dirty": True, "device": "a CPU", "platform": "Linux", "versions": {"torch": "2"}},
    }
    maps = {"resnet": content.browser(folder / "maps" / "resnet", scores)}
    context = content.page_context(
        settings,
        {"resnet": measured},
        maps,
        claims=ROOT / "docs" / "measured" / "study.csv",
        tables=tables,
        figures=[png],
        records=[record],
        published=PUBLISHED,
    )
    page.write_page(folder / "index.html", context, maps)
    shutil.rmtree(folder / "source")
    return folder / "index.html"
