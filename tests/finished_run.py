"""A folder like a clone with the results of a finished run, in miniature: one line or row per file."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ibsgl import config
from ibsgl.config.steps import step_of

ROOT = Path(__file__).parents[1]
TREE = yaml.safe_load((ROOT / "tests" / "configs" / "minimal.yaml").read_text())
TAGS = {"commit": "0" * 40, "dirty": False, "device": "a processor", "platform": "Linux", "versions": {"torch": "1.0"}}


def finished_run(folder, **changes):
    """Make ``folder`` the working directory of a finished run; its config is ``minimal.yaml`` with ``changes``."""
    folder.mkdir(parents=True)
    for name in ("Snakefile", "workflow", "constraints.txt", "environment.yml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "minimal.yaml").write_text(yaml.safe_dump(TREE | changes))
    loaded = config.parse(TREE | changes)
    results = folder / "results" / "minimal"
    texts = [f"tables/table{number}.{kind}" for number in (1, 3) for kind in ("csv", "md", "tex")]
    texts += [f"tables/{name}_resnet.csv" for name in ("comparisons", "classification", "cross_scoring", "diagnostics")]
    texts += ["tables/comparisons_resnet.md", "claims/claims.md", "logs/index.log", "logs/mlflow.log", "notes.txt"]
    texts += [f"figures/figure{number}.{kind}" for number in (2, 3, 4) for kind in ("png", "pdf")]
    texts += ["benchmarks/resnet/0/guided.tsv", "data/VOCdevkit/VOC2007/JPEGImages/1.jpg", "records/.logged/1.json"]
    texts += ["resnet/0/guided/network.pt", "resnet/0/pretrained/bottleneck.pt"]
    texts += ["report/index.html", "report/maps/resnet/0.webp"]
    for name in texts:
        write(results / name, f"{name}\n")
    write(results / "claims" / "claims.csv", "claim,model\nlocalisation,resnet\nlocalisation,vgg\naccuracy,resnet\n")
    parquet(results / "index.parquet", {"root": "results/minimal/data", "class_names": ["/m/0k4j", "a"]})
    parquet(results / "resnet/0/guided/maps/rise/0.parquet", {})
    for shard in range(2):
        for name in ("scores", "losses", "predictions", "curves", "diagnostics"):
            facts = {"settings": {"guided/rise": {"shards": 2}}} if name == "scores" else {}
            parquet(results / f"resnet/0/evaluation/{shard}/{name}.parquet", facts)
    record(results, "claims", step_of(loaded, "claims").to_dict(), started=1.7e9)
    record(results, "table1", {"data": {"classes": ["/m/0k4j"]}}, started=1.7e9 + 100)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def parquet(path, facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"value": [1.5, 2.5]})
    pq.write_table(table.replace_schema_metadata({"ibsgl": json.dumps(facts)}), path)


def record(results, name, settings, started, **tags):
    content = {"result_id": name, "kind": "table", "settings": settings, "metrics": {}, "history": [], "artifacts": []}
    content |= {"tags": TAGS | tags, "started": started, "seconds": 50.0}
    write(results / "records" / f"{name}.json", json.dumps(content, indent=1) + "\n")
