"""What goes into an archive, what does not, and what a run without results is told."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import yaml
from finished_run import ROOT, record

from ibsgl import config
from ibsgl.archive import KINDS, collect

RESULTS = Path("results/minimal")
FILES = [Path("minimal.yaml")]


def collected(**options):
    return collect(config.read(FILES, data=False), FILES, **options)


def names(members, kind):
    return {member.name.removeprefix("results/minimal/") for member in members if member.kind == kind}


def test_each_file_has_its_kind(run):
    inside, outside = collected()
    assert names(outside, "images") == {"data/VOCdevkit/VOC2007/JPEGImages/1.jpg"}
    assert names(outside, "weights") == {"resnet/0/guided/network.pt", "resnet/0/pretrained/bottleneck.pt"}
    assert names(outside, "maps") == {"resnet/0/guided/maps/rise/0.parquet"}
    assert names(outside, "other") == {"logs/mlflow.log", "records/.logged/1.json", "notes.txt"}
    assert names(inside, "records") == {"records/claims.json", "records/table1.json"}
    assert names(inside, "logs") == {"logs/index.log", "benchmarks/resnet/0/guided.tsv"}
    assert names(inside, "index") == {"index.parquet"}
    assert len(names(inside, "evaluation")) == 10
    assert names(inside, "configs") == {"configs/1_minimal.yaml", "configs/resolved.yaml"}
    assert names(inside, "environment") == {
        f"environment/{name}" for name in ("constraints.txt", "environment.yml", "versions.json")
    }
    rules = {f"code/workflow/rules/{path.name}" for path in (ROOT / "workflow" / "rules").glob("*.smk")}
    assert names(inside, "code") == {"code/Snakefile", "code/source.json", *rules}
    assert {"tables/table1.tex", "claims/claims.md", "figures/figure4.pdf"} < names(inside, "results")
    assert {member.kind for member in [*inside, *outside]} == set(KINDS)
    assert not any(member.changed for member in inside)


def test_what_auto_was_goes_in(run):
    """Whoever unpacks the archive and runs again gets the same passes on another machine."""
    (RESULTS / "passes.json").write_text("{}")
    inside, _ = collected()
    assert "passes.json" in names(inside, "records")


def test_weights_and_maps_go_in_if_wanted(run):
    inside, outside = collected(maps=True, weights=True)
    assert {member.kind for member in outside} == {"images", "other"}
    assert names(inside, "maps") == {"resnet/0/guided/maps/rise/0.parquet"}
    assert len(names(inside, "weights")) == 2


def test_a_report_and_the_alternatives_of_a_study_go_in(run):
    for name in ("alternatives/a/logs/index.log", "alternatives/a/resnet/0/evaluation/0/scores.parquet"):
        path = RESULTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((RESULTS / "index.parquet").read_bytes())
    inside, _ = collected()
    assert names(inside, "report") == {"report/index.html", "report/maps/resnet/0.webp"}
    assert "alternatives/a/logs/index.log" in names(inside, "logs")
    assert "alternatives/a/resnet/0/evaluation/0/scores.parquet" in names(inside, "evaluation")


@pytest.mark.parametrize(
    ("missing", "target"),
    [
        ("tables/table3.tex", "tables/table3.tex"),
        ("claims/claims.csv", "claims/claims.csv"),
        ("figures/figure2.pdf", "figures/figure2.pdf"),
        # Snakemake sees the folder only, and no records.
        ("resnet/0/evaluation/1/curves.parquet", "resnet/0/evaluation/1 --force"),
        ("records/claims.json", "claims/claims.csv --force"),
    ],
)
def test_a_missing_result_is_one_line_with_its_command(run, missing, target):
    (RESULTS / missing).unlink()
    path = f"results/minimal/{missing}"
    command = f"snakemake results/minimal/{target} --cores all --configfile minimal.yaml"
    with pytest.raises(ValueError, match=f"^there is no {path}; the run has not finished: {re.escape(command)}$"):
        collected()


def test_without_a_clone_there_is_one_line(run):
    (run / "constraints.txt").unlink()
    with pytest.raises(ValueError, match=r"^there is no constraints.txt here; call this in the clone"):
        collected()


def test_results_of_another_config_are_refused(run):
    tree = yaml.safe_load(FILES[0].read_text())
    FILES[0].write_text(yaml.safe_dump(tree | {"bottleneck": {"steps": 3, "samples": 2}}))
    with pytest.raises(ValueError, match=r"claims.json: the results were made with another value of bottleneck.steps"):
        collected()


@pytest.mark.filterwarnings("ignore:.* is not a record")
def test_a_broken_record_is_one_line(run):
    (RESULTS / "records" / "claims.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^results/minimal/records/claims.json is no record of this benchmark; make"):
        collected()


def test_the_resolved_config_is_the_config(run):
    inside, _ = collected()
    (resolved,) = (member.content for member in inside if member.name == "configs/resolved.yaml")
    assert config.parse(yaml.safe_load(resolved)) == config.read(FILES)


def test_commits_and_versions_are_those_of_the_records(run):
    record(RESULTS, "table3", {}, started=1.8e9, commit="1" * 40, dirty=True, versions={"torch": "2.0"})
    content = {member.name: member.content for member in collected()[0]}
    source = json.loads(content["code/source.json"])
    assert source["made_with"] == [
        {"commit": "0" * 40, "dirty": False, "records": 2},
        {"commit": "1" * 40, "dirty": True, "records": 1},
    ]
    assert source["digests"].keys() == {"ibsgl", "baselines"}
    versions = json.loads(content["environment/versions.json"])
    assert [row["versions"] for row in versions] == [{"torch": "1.0"}, {"torch": "2.0"}]


def test_the_code_of_a_users_network_counts(run, monkeypatch):
    (run / "my_network.py").write_text("def build(classes):\n    return None\n")
    monkeypatch.syspath_prepend(run)
    tree = yaml.safe_load(FILES[0].read_text())
    loaded = config.parse(tree | {"models": {"resnet": {"arch": "my_network:build", "image_size": 32}}})
    from ibsgl.archive.contents import source_digests

    assert source_digests(loaded).keys() == {"ibsgl", "baselines", "my_network"}


def test_the_code_of_a_users_metric_and_guidance_counts(run, monkeypatch):
    from ibsgl.archive import contents

    tree = yaml.safe_load(FILES[0].read_text())
    changes = {"further_metrics": {"sparseness": None}, "variants": {"mine": {"loss": "energy"}}}
    loaded = config.parse(tree | changes)
    monkeypatch.setattr(contents.further, "module_of", lambda name: f"my_metrics.{name}")
    monkeypatch.setattr(contents.LOSSES, "module_of", lambda name: f"my_losses.{name}")
    monkeypatch.setattr(contents.TEACHERS, "module_of", lambda name: f"my_teachers.{name}")
    monkeypatch.setattr(contents, "source_digest", str)
    found = contents.source_digests(loaded).keys()
    assert found >= {"my_metrics.sparseness", "my_losses.energy", "my_losses.localization", "my_teachers.bottleneck"}


def test_without_an_archive_of_images_only_their_names_are_in_it(run, pack):
    with zipfile.ZipFile(pack(maps=True, weights=True)) as archive:
        assert not any(name.endswith((".jpg", ".db")) or ".snakemake" in name for name in archive.namelist())
