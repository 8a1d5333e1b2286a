"""The documentation agrees with the code: keys, commands, links, names, and the code of the examples."""

import ast
import importlib
import importlib.util
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from ibsgl import attribution, config
from ibsgl.config.schema import Config
from ibsgl.config.steps import STEPS
from ibsgl.data.loading import ImageDataset
from ibsgl.data.sources import DataSource
from ibsgl.guidance import training_losses
from ibsgl.guidance.registry import LOSSES, TEACHERS
from ibsgl.guidance.teachers import teacher_map
from ibsgl.metrics import METRICS, Evidence, Metric, further
from ibsgl.metrics.further.registry import FURTHER
from ibsgl.networks import SplitNetwork
from ibsgl.reporting.claims import read_claims
from ibsgl.reporting.verdicts import MINIMUM_REPLICATES, Verdict
from ibsgl.saliency import gradient_saliency

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FRUITS = DOCS / "fruits.yaml"
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
# On the site this page shows config/README.md.
CONFIG_PAGE = DOCS / "config.md"
# Commands of `ibsgl` that are no step of the workflow.
TOOLS = {"plan", "doctor", "settings", "track", "measured", "archive", "verify"}

every_page = pytest.mark.parametrize("page", PAGES)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def in_code(text):
    """Everything in a code block or between backticks."""
    blocks = re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*(line for block in blocks for line in block.splitlines()), *re.findall(r"`([^`]+)`", rest)]


def load(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    return load("config_reference")


@pytest.fixture(scope="module")
def effects():
    return load("measured_effects")


@pytest.fixture(scope="module")
def keys():
    """The documented keys, and every section above one of them."""
    documented = re.findall(r"^\| `([^`]+)` \|", text_of("config/README.md"), flags=re.MULTILINE)
    sections = {key.rsplit(".", depth)[0] for key in documented for depth in range(1, key.count(".") + 1)}
    return {*documented, *sections, *Config.model_fields, *(f"methods.{name}" for name in attribution.names())}


def test_config_reference_is_up_to_date(reference):
    text = reference.README.read_text(encoding="utf-8")
    assert reference.rewritten(text) == text, "run: python docs/config_reference.py"


def test_config_reference_notices_a_table_that_is_missing_or_unknown(reference):
    text = reference.README.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"missing: .'figures'"):
        reference.rewritten(text.replace("<!-- table: figures -->", ""))
    with pytest.raises(ValueError, match=r"unknown or doubled: .'colours'"):
        reference.rewritten(f"{text}\n<!-- table: colours -->\n<!-- end of table -->\n")


@pytest.mark.parametrize(
    ("section", "key", "expected"),
    [
        ("run", "seed", "integer ≥ 0 | `0`"),
        ("run", "name", "string | required"),
        ("data", "data.held_out", "0 < x < 1 | `0.1`"),
        ("data", "data.multilabel", "`true`, `false` | `false`"),
        ("data sources", "data.classes", "list of strings or `null` | `null`"),
        ("data sources", "data.download.images", "mapping: name to integer ≥ 1 | required"),
        ("suppression", "suppression.r", "0 < x ≤ 1 | `0.35`"),
        ("bottleneck", "bottleneck.reduction", "`mean`, `reference`, `sum` | `mean`"),
        ("metrics", "metrics.bbox.ties", "`strict`, `index` | `strict`"),
        ("methods", "methods.extremal_perturbation.areas", "list of numbers | `[0.1]`"),
    ],
)
def test_config_reference_puts_types_and_defaults_in_words(reference, section, key, expected):
    assert f"| `{key}` | {expected} | " in reference.tables()[section]


def test_config_reference_has_every_setting_of_the_methods(reference):
    shapes = yaml.safe_load(text_of("config/shapes.yaml"))["methods"]
    table = reference.tables()["methods"]
    for method in shapes:
        for field in fields(attribution.get(method)):
            assert f"| `methods.{method}.{field.name}` | " in table


def test_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 120


def test_start_page_has_the_commands_of_the_readme():
    command = re.compile(r"^pip install .*$", flags=re.MULTILINE)
    assert command.findall(text_of("docs/index.md")) == command.findall(text_of("README.md"))


def test_version_is_the_same_everywhere():
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == version
    assert re.search(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), flags=re.MULTILINE)[1] == version


def test_what_was_measured_is_up_to_date(effects):
    for page in effects.PAGES:
        text = page.read_text(encoding="utf-8")
        assert effects.rewritten(text) == text, "run: python docs/measured_effects.py"


def test_the_answer_is_complete():
    """The study's verdicts are on every claim and network. Which they are is for the study to say."""
    table = pd.read_csv(DOCS / "measured" / "study.csv")
    claims = read_claims(ROOT / "results" / "published")
    assert list(dict.fromkeys(table["claim"])) == [claim.key for claim in claims]
    assert set(table["verdict"]) <= set(map(str, Verdict))
    single = table[table["arch"].notna()]
    assert len(single) == 2 * sum(claim.same_claim_on_all is None for claim in claims)


def test_the_page_for_evaluators_has_every_claim_and_is_short():
    text = text_of("docs/artifact.md")
    rows = re.findall(r"^\| (.+?) \| `(\w+)` \|", text, flags=re.MULTILINE)
    assert rows == [(claim.title, claim.key) for claim in read_claims(ROOT / "results" / "published")]
    assert len(text.splitlines()) <= 120


def test_every_alternative_and_form_has_its_place_among_the_decisions(effects, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import forms

    text = text_of("docs/decisions.md")
    named = {name for match in effects.PART.finditer(text) for name in match["names"].split()}
    assert named == set(yaml.safe_load(text_of("config/sensitivity.yaml"))["alternatives"]) | set(forms.FORMS)
    by_hand = re.findall(r"^- \*\*Measured effect:\*\* not measured\. \S", text, flags=re.MULTILINE)
    assert len(by_hand) <= 3


def test_a_measured_effect_in_words(effects, tmp_path, monkeypatch):
    rows = [
        ("localisation", "ebpg", True, "points", -0.5, -1, 0),
        ("localisation", "miou", False, "points", 0.5, 0.25, 0.75),
        ("teacher", "l_ce", True, "nats", 0.125, 0.1, 0.15),
        ("deletion", "deletion_area_relative", True, "points", 0.2, -1, 1.4),
    ]
    columns = ["claim", "metric", "judged", "unit", "change", "low", "high"]
    table = pd.DataFrame(rows, columns=columns).assign(model="resnet", comparison="guided - control")
    sensitivity = pd.concat(
        [
            table.assign(alternative="one_step", override='{"guidance": {"steps": 1}}'),
            # The config has another value by now.
            table.assign(alternative="alpha_10", override='{"bottleneck": {"alpha": 11}}'),
        ]
    )
    sensitivity.to_csv(tmp_path / "sensitivity_changes.csv", index=False)
    form = {"form": "a", "description": "b is c", "model": "vgg", "difference": 0.5, "low": 0, "high": 1, "r": 0.75}
    pd.DataFrame([form]).to_csv(tmp_path / "forms.csv", index=False)
    monkeypatch.setattr(effects, "MEASURED", tmp_path)
    assert effects.measured_effects() == {
        "one_step": "    - `guidance.steps: 1`: EBPG, guided - control: -0.50 [-1.00, +0.00] points with resnet. 2 of 3 other "
        "intervals exclude zero; the clearest: L_CE(L^c, L^ib), guided - control: +0.125 [+0.100, +0.150] nats with resnet; "
        "mIoU, guided - control: +0.50 [+0.25, +0.75] points with resnet.",
        "a": "    - B is c: EBPG of the map +0.500 [+0.000, +1.000] points with vgg (r of the maps 0.7500).",
    }


def test_decisions_name_switches_that_exist(keys):
    switches = re.findall(
        r"^- \*\*Switch:\*\* (.+?)(?:\.(?:\s|$)|;)", text_of("docs/decisions.md"), flags=re.MULTILINE | re.DOTALL
    )
    named = [name for switch in switches for name in re.findall(r"`([a-z_.]+)`", switch)]
    assert len(switches) > 30
    assert len(named) > 30
    assert [name for name in named if name not in keys] == []


@every_page
def test_keys_in_the_text_exist(page, keys):
    if page == "docs/bad-inputs.md":
        pytest.skip("it lists keys that do not exist")
    sections = "|".join(Config.model_fields)
    named = {
        match[1]
        for code in in_code(text_of(page))
        if (match := re.fullmatch(rf"((?:{sections})(?:\.[a-z_0-9<>]+)+)(?:: .+)?", code))
    }
    # Example keys: a metric's own, a file in the results, and the values of placeholders.
    named = {name for name in named if "<key>" not in name and not name.endswith((".json", ".md"))}
    assert sorted(named - keys) == []


@every_page
def test_commands_exist(page):
    rules = {"all"}
    for file in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]:
        rules |= set(re.findall(r"^\s*rule (\w+):", file.read_text(encoding="utf-8"), flags=re.MULTILINE))
    for code in in_code(text_of(page)):
        for command in re.findall(r"(?:^|uv run )ibsgl ([a-z]\w*)", code):
            assert command in {*STEPS, *TOOLS}, code
        for target in re.findall(r"(?:^|\s)snakemake ([a-z]\w*)(?: |$)", code):
            assert target in rules, code
        for target in re.findall(r"--forcerun (\w+)", code):
            assert target in rules, code


# Of entry points. They look like modules.
GROUPS = {registry.group for registry in (attribution.METHODS, FURTHER, LOSSES, TEACHERS)}


@every_page
def test_modules_and_names_exist(page):
    """Of code like `ibsgl.networks.SplitNetwork`, and of mkdocstrings' `::: ibsgl.saliency`."""
    text = text_of(page)
    dotted = re.compile(r"(?:ibsgl|baselines)(?:\.\w+)+")
    named = {code for code in in_code(text) if dotted.fullmatch(code)}
    named |= set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))
    for name in sorted(named - GROUPS):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            for part in parts[length:]:
                found = getattr(found, part)
            break


@every_page
def test_files_exist(page):
    """Of code like `config/shapes.yaml`. Results, data and the examples' own files are not in the repository."""
    folders = "ibsgl|baselines|config|docs|benchmarks|tests|profiles|workflow|results/published|\\.ci|\\.github"
    for code in in_code(text_of(page)):
        for path in re.findall(rf"(?:^|\s)((?:{folders})/[\w./-]*)", code):
            if not path.startswith(("ibsgl/metrics/hit", "ibsgl/data/sources/folders")):
                assert (ROOT / path).exists(), path


def anchors(file):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(ROOT / "config" / "README.md" if file == CONFIG_PAGE else file), target


@pytest.mark.parametrize(
    "page", [*PAGES, "docs/fruits.yaml", "docs/fruits_network.py", "mkdocs.yml", ".github/workflows/ci.yml"]
)
def test_no_path_of_one_machine(page):
    assert not re.search(r"(?<![\w.…*])/(work|home|tmp|root|Users)/", text_of(page))


def test_every_page_of_the_site_is_in_its_menu():
    navigation = re.findall(r"[\w/-]+\.md", text_of("mkdocs.yml").partition("\nnav:\n")[2].partition("\nhooks:")[0])
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    # Users make further pages there.
    assert sorted(navigation) == sorted(
        page for page in pages if page in navigation or not page.startswith("measured/")
    )


def test_own_photographs_example_parses():
    values = yaml.safe_load(FRUITS.read_text(encoding="utf-8"))
    loaded = config.parse(values)
    assert loaded.data.multilabel
    study = config.parse(config.merge(values, yaml.safe_load(text_of("docs/fruits_study.yaml"))))
    assert study.replicates >= MINIMUM_REPLICATES
    assert set(study.variants) == {"shuffled", "uniform", "boxes"}
    eight = set(yaml.safe_load(text_of("config/shapes.yaml"))["methods"])
    assert set(loaded.methods) == eight
    for method, settings in loaded.methods.items():
        attribution.get(method, **settings)


def test_own_photographs_example_names_a_factory_that_is_there():
    """By its source: its packages are not installed with this project."""
    (model,) = config.parse(yaml.safe_load(FRUITS.read_text(encoding="utf-8"))).models.values()
    module, function = model.arch.split(":")
    tree = ast.parse((DOCS / f"{module}.py").read_text(encoding="utf-8"))
    (factory,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    assert [argument.arg for argument in factory.args.args] == ["num_classes"]
    assert factory.returns.id == "SplitNetwork"


@pytest.fixture(scope="module")
def examples():
    """The names that the Python code in docs/own.md defines, by the file in its first line."""
    found = {}
    for block in re.findall(r"^```python\n(.*?)^```", text_of("docs/own.md"), flags=re.MULTILINE | re.DOTALL):
        names = {"__name__": "own_example"}
        exec(compile(block, "docs/own.md", "exec"), names)
        found[block.partition("\n")[0].removeprefix("# ")] = names
    return found


def test_example_of_the_api():
    (block,) = re.findall(r"^```python\n(.*?)^```", text_of("docs/api/index.md"), flags=re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(block, "docs/api/index.md", "exec"), names)
    assert names["saliency"].shape == (2, 96, 96)


def test_example_of_a_network(examples):
    network = examples["my_networks.py"]["mobilenet"](3).eval()
    maps, _ = network.stage_maps(torch.rand(1, 3, 64, 64))
    assert [found.shape[-1] for found in maps] == [32, 16, 8, 4, 2]
    assert isinstance(network, SplitNetwork)
    with torch.inference_mode():
        features = network.stem(torch.rand(1, 3, 64, 64))
        assert features.shape == (1, 1280, 2, 2)
        assert (features >= 0).all()
        assert network.head(features).shape == (1, 3)


def test_example_of_a_method(examples):
    method = examples["my_package/edges.py"]["Edges"](power=2.0)
    images = torch.zeros(1, 3, 4, 4)
    images[..., 2:] = 1.0
    saliency = method(None, images, torch.tensor([0]))
    expected = torch.zeros(1, 4, 4)
    expected[..., 1] = 1.0
    assert torch.equal(saliency, expected)
    assert method.cost(8) == attribution.Cost()
    assert (method.label, method.requires) == ("Edges", frozenset())


def test_example_of_a_further_metric(examples):
    contrast = examples["my_package/contrast.py"]["Contrast"](floor=0.5)
    saliency = torch.tensor([[[3.5, 0.5], [0.5, 0.5]], [[1.0, 1.0], [1.0, 1.0]]])
    region = torch.tensor([[[True, False], [False, False]], [[True, True], [True, True]]])
    targets, objects = torch.tensor([0, 0]), (further.Objects((), 2, 2),) * 2
    values = contrast(further.PairEvidence(saliency, region, targets, objects, ()))
    # (3.5 + 0.5) / (0.5 + 0.5) = 2².
    assert values[0].item() == 2
    assert values[1].isnan()
    assert (contrast.requires, contrast.higher_is_better) == ("maps", True)


def test_the_page_of_metrics_has_every_metric_that_is_built_in(reference):
    named = re.findall(
        r"^\| `(\w+)` \|.*\|.*\|.*\|.+\|$", text_of("docs/metrics.md").partition("## Quantus")[0], flags=re.M
    )
    assert sorted(named) == reference._own_metrics()


def test_example_of_a_metric(examples):
    metric = examples["ibsgl/metrics/hit.py"]["Hit"]
    assert issubclass(metric, Metric)
    assert metric.key not in METRICS
    assert metric.range == (0.0, 1.0)
    saliency = torch.tensor([[[0.0, 3.0], [1.0, 2.0]], [[4.0, 3.0], [1.0, 2.0]]])
    region = torch.tensor([[[False, True], [False, False]]]).expand(2, 2, 2)
    p = torch.ones(2)
    assert metric()(Evidence(saliency, region, p, p)).tolist() == [1.0, 0.0]


def test_example_of_a_guidance_loss_and_a_teacher(examples, networks, images, targets):
    names = examples["my_package/guidance.py"]
    network, labels = networks["vgg"], torch.nn.functional.one_hot(targets, 4).float()
    teacher = names["Middle"](width=0.2)

    def losses(teach):
        return training_losses(network, images, labels, targets, names["Distance"](weight=10.0), teach=teach)

    found = losses(lambda features: teacher_map("middle", teacher, features, targets, None, None))
    assert found["guidance"].shape == (3,)
    assert (found["guidance"] > 0).all()
    torch.testing.assert_close(found["loss"], found["classification"] + 10 * found["guidance"])
    found["loss"].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)
    # L^c itself has no distance.
    nothing = losses(lambda features: gradient_saliency(network.head, features, targets))
    torch.testing.assert_close(nothing["guidance"], torch.zeros(3), atol=1e-6, rtol=0)
    map_of_two = teacher(torch.rand(2, 5, 3, 4), None, None, None)
    assert map_of_two.shape == (2, 3, 4)
    assert map_of_two[0].argmax() in (5, 6)


def test_example_of_a_data_source(examples, tmp_path):
    kind = examples["ibsgl/data/sources/folders.py"]["Folders"]
    assert issubclass(kind, DataSource)
    for split, number in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (20, 10), (i, 0, 0)).save(tmp_path / split / name / f"{i}.jpg")
    source = kind(root=str(tmp_path), held_out=0.25)
    assert source.folder == str(tmp_path)
    counts = source.count(tmp_path, {})
    assert (counts.train.images, counts.test.pairs, counts.classes) == (8, 4, 2)
    assert source.test_images(tmp_path) == 4
    index = source.build_index(tmp_path, seed=0)
    assert index.class_names == ("cat", "dog")
    data = ImageDataset(index, tmp_path, 8)
    assert [len(data.ids(split)) for split in ("train", "held_out", "test")] == [6, 2, 4]
    assert data.regions(data.pairs("test")).all()
    assert data.images(data.ids("test")).shape == (4, 3, 8, 8)
