"""Which results a summary has, and the values by which runs are compared."""

from summaries import CONFIG, record

from ibsgl import summary


def test_every_result_of_the_run_is_named_with_the_command_that_makes_it():
    found = summary.results(CONFIG, [])
    assert {result.key: result.command for result in found} == {
        "claims": "snakemake claims",
        **{f"table{number}": f"snakemake table{number}" for number in (1, 2, 3, 4)},
        "comparisons_resnet": "snakemake table1",
        "comparisons_vgg": "snakemake table2",
        **{f"figure{number}": "snakemake figures" for number in (2, 3, 4)},
    }
    assert [result.record for result in found] == [None] * len(found)
    (last,) = summary.results(CONFIG | {"alternatives": {"a": {}}}, [])[-1:]
    assert (last.key, last.command) == ("sensitivity", "snakemake sensitivity")
    assert [result.text() for result in found] == [None] * len(found)


def test_a_record_of_another_config_does_not_count():
    def found(settings, **changes):
        return {r.key for r in summary.results(settings, [record("table1", model="resnet", **changes)]) if r.record}

    assert found(CONFIG) == {"table1"}
    assert found(CONFIG | {"seed": 1}) == set()
    assert found(CONFIG | {"batch_size": 4}) == {"table1"}
    # A network's own values are those of its override.
    config = {"seed": 0, "data": {"source": "shapes"}, "guidance": {"mu": 4}}
    assert found(CONFIG, config=config) == set()
    overridden = CONFIG | {"models": {"resnet": {"override": {"guidance": {"mu": 4}}}}}
    assert found(overridden, config=config) == {"table1"}


def test_headline_values_are_ours_the_control_and_the_effects():
    tables = [
        record("table1", {f"{variant}.{method}.ebpg": 1.0 for variant in ("pretrained", "guided", "control", "sham")
                          for method in ("gradient", "rise")}, model="resnet"),
        record("table4", {"guided.gradient.average_drop": 2.0}, model="vgg"),
        record("claims", {"resnet.localisation": 0.5}),
        record("comparisons_resnet", {"guided.ebpg": 3.0}, model="resnet"),
    ]  # fmt: skip
    assert summary.headline(summary.results(CONFIG, tables)) == {
        "claims.resnet.localisation": 0.5,
        "resnet.guided.ebpg": 1.0,
        "resnet.control.ebpg": 1.0,
        "vgg.guided.average_drop": 2.0,
    }
