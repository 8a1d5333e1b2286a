"""Bad inputs: what is wrong, how to make it, and what must be said.

The order is that of the table in the documentation.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from tests.bad_inputs.finished import commands
from tests.config.shapes_config import values
from tests.small_voc import ANNOTATION, BOX, write_voc

# Sections of the table: kind → heading, and when the mistake is found.
KINDS = {
    "config": ("Values of a config", "before any job"),
    "config file": ("Files of a config", "before any job"),
    "call": ("Commands called by hand", "before the command does anything"),
    "download": ("Downloads", "by the first job, `fetch`"),
    "data": ("Data in VOC layout", "by the job `index`, before any other reads the data"),
    "weights": ("Files of weights", "by the first job that trains, `classifier`"),
    "result": ("Results that have changed or belong to another run", "by the job that reads them"),
}


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        kind: one of :data:`KINDS`.
        what: the input in words, or as code.
        make: called in the folder of a finished run; makes the input and returns the arguments of ``ibsgl``.
        said: what the message begins with; for data and results, what it has in it.
        snakemake: whether Snakemake is called with it too.
    """

    kind: str
    what: str
    make: Callable[[], list[str]]
    said: str
    snakemake: bool = False


CHECK = ["settings", "index", "--config", "my.yaml"]


def _code(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return text if len(text) < 150 else f"{text[:150]}…"


def _config(changes: dict[str, object], said: str) -> Case:
    def make() -> list[str]:
        Path("my.yaml").write_text(yaml.safe_dump(values(**changes)))
        return CHECK

    what = "; ".join(f"`{key.replace('__', '.')}: {_code(value)}`" for key, value in changes.items())
    return Case("config", what, make, said, next(iter(changes)) in THROUGH_SNAKEMAKE)


ARCHIVE = {"name": "set.tar", "md5": "0" * 32, "bytes": 1}
DOWNLOAD = {"mirrors": ["https://example.org/"], "archives": [ARCHIVE], "images": {"trainval": 2, "test": 1}}
# Some file that is there.
TORCHRAY = {"arch": "resnet50", "source": "torchray", "weights": "my.yaml"}
# Keys whose mistakes Snakemake is called with too.
THROUGH_SNAKEMAKE = {"sead", "methods__rises", "variants__control", "replicates"}

CONFIGS = [
    _config(changes, said)
    for changes, said in [
        ({"sead": 1}, "sead: there is no such key"),
        ({"precision": "half"}, "precision: Input should be 'float32', 'bfloat16' or 'auto' (it is 'half')"),
        ({"compile": "on"}, "compile: Input should be 'off' or 'auto' (it is 'on')"),
        ({"suppression__r": 1.5}, "suppression.r: Input should be less than or equal to 1 (it is 1.5)"),
        ({"suppression__r": 0}, "suppression.r: Input should be greater than 0 (it is 0.0)"),
        ({"seed": "one"}, "seed: Input should be a valid integer (it is 'one')"),
        ({"seed": True}, "seed: Input should be a valid integer (it is True)"),
        ({"guidance__training__lr": float("nan")}, "guidance.training.lr: Input should be a finite number (it is nan)"),
        ({"guidance__training__leraning_rate": 1}, "guidance.training.leraning_rate: there is no such key"),
        ({"metrics__bbox__ties": "loose"}, "metrics.bbox.ties: Input should be 'strict' or 'index' (it is 'loose')"),
        ({"data": None}, "data: this is a section with keys of its own, such as source: shapes (it is None)"),
        ({"data": {"source": None}}, "data: this is a section with keys of its own"),
        ({"models__resnet__arch": ":f"}, "models.resnet.arch: ':f' is not package.module:function"),
        (
            {"models__resnet__options": {"width": "x"}},
            "models.resnet.options: resnet_small: width must be an integer from 8",
        ),
        ({"metrics__bbox": "loose"}, "metrics.bbox: this is a section with keys of its own (it is 'loose')"),
        ({"models__resnet__arch": "resnet5"}, "models.resnet.arch: 'resnet5' is unknown"),
        ({"models__resnet__arch": "no_such_package:f"}, "models.resnet.arch: 'no_such_package:f': no module"),
        ({"models__resnet__weights": "gone.pt"}, "models.resnet.weights: there is no file 'gone.pt'"),
        ({"models": {}}, "models: give one network"),
        *[
            (
                {"models__vgg__options": {"width": width}},
                "models.vgg.options: vgg_small: width must be an integer from 1 to",
            )
            for width in (-2, 0, "two", True, 10**9)
        ],
        ({"models__vgg__options": {"num_classes": 7}}, "models.vgg.options: num_classes is the number of the data's"),
        ({"models__vgg__image_size": 16}, "models.vgg.image_size: vgg_small needs at least 32 pixels, not 16"),
        ({"models__vgg": {"arch": "vgg16", "image_size": 16}}, "models.vgg.image_size: vgg16 needs at least 32 pixels"),
        ({"models__vgg__image_size": 10**6}, "models.vgg.image_size: Input should be less than or equal to 4096"),
        ({"classifier__lr": "1e300"}, "classifier.lr: Input should be less than or equal to 1000 "),
        ({"classifier__epochs": 10**12}, "classifier.epochs: Input should be less than"),
        ({"methods__rise__masks": 10**11}, "methods.rise.masks: 1e+11 is more than 10000000"),
        ({"methods__rise__p": float("nan")}, "methods.rise"),
        ({"deletion__points": 10**9}, "deletion.points: Input should be less than or equal to 1001"),
        ({"deletion__repeats": 10**12}, "deletion.repeats: Input should be less than"),
        ({"replicates": 10**4}, "replicates: Input should be less than or equal to 1000"),
        ({"name": "a" * 300}, "name: String should have at most 100 characters"),
        ({"data__size": 10**7}, "data.size: Input should be less than or equal to 4096"),
        ({"data__source": "voc", "data__root": "{wildcards}"}, "data.root: Snakemake reads braces as wildcards"),
        (
            {"data__source": "voc", "data__root": "x", "data__classes": ["a", "a"]},
            "data.classes: 'a' is listed more than",
        ),
        ({"methods__rises": {}}, "methods.rises: no saliency method 'rises'; registered are"),
        ({"methods__rise__mask": 5}, "methods.rise: method 'rise' has no setting 'mask'; its settings:"),
        ({"methods__rise__masks": "many"}, "methods.rise: masks:"),
        ({"methods__rise__masks": 0}, "methods.rise: "),
        ({"methods__gradient": {}}, "methods: gradient is in every table anyway"),
        ({"methods__mine": {"use": "rises"}}, "methods.mine: no saliency method 'rises'; registered are"),
        ({"methods__mine": {"use": "rise", "label": ""}}, "methods.mine: label: this is the name in tables"),
        ({"methods__mine": {"use": "rise", "label": "RISE"}}, "methods.rise: mine is called 'RISE' in tables too"),
        ({"methods__rise": {"use": "gradcam"}}, "methods.rise: this name is that of a registered method"),
        ({"methods__noise": {"use": "random"}}, "methods: noise: random is a sanity method"),
        (
            {"methods__lift": {"use": "captum", "method": "DeepLift", "sign": "absolute"}},
            "methods.lift: captum's method DeepLift",
        ),
        ({"methods__sal": {"use": "captum", "method": "Saliency"}}, "methods.sal: sign: "),
        (
            {"methods__occ": {"use": "captum", "method": "Occlusion", "sign": "absolute"}},
            "methods.occ: arguments.sliding_window_shapes: captum's Occlusion needs this argument",
        ),
        (
            {"methods__cam": {"use": "grad_cam", "method": "LayersCAM"}},
            "methods.cam: grad-cam's method 'LayersCAM' is not known",
        ),
        (
            {"methods__lrp": {"use": "zennit", "composite": "x", "sign": "positive"}},
            "methods.lrp: zennit's composite 'x'",
        ),
        ({"methods__sise__layers": "all"}, "methods.sise: sise: layers must be before or after, not 'all'"),
        (
            {"further_metrics": {"pointing": None}},
            "further_metrics.pointing: no further metric 'pointing'; registered are",
        ),
        ({"further_metrics": {"ebpg": None}}, "further_metrics: ebpg is in Tables 1–4 anyway"),
        ({"further_metrics": {"road": {"share": 2}}}, "further_metrics.road: "),
        (
            {"further_metrics": {"flip": {"use": "quantus", "metric": "PixelFlipping"}}},
            "further_metrics.flip: ",
        ),
        ({"variants__mine": {"loss": "energies"}}, "variants.mine.loss: "),
        ({"variants__mine": {"loss": "energy", "settings": {"weight": -1}}}, "variants.mine.settings.weight: "),
        ({"variants__mine": {"loss": "rrr", "settings": {"wait": 1}}}, "variants.mine.settings"),
        ({"variants__mine": {"teacher": "oracle"}}, "variants.mine.teacher: "),
        ({"data__source": "voc"}, "data.root: give the folder"),
        ({"data__source": "voc", "data__root": "nowhere"}, "data.root: there is no folder 'nowhere'"),
        ({"data__download": DOWNLOAD}, "data.download: there is no such key where data.source is shapes"),
        (
            {"data__source": "voc", "data__root": "nowhere", "data__download": DOWNLOAD | {"images": {"test": 1}}},
            "data.download.images: give the number of images of the list 'trainval'",
        ),
        (
            {"data__source": "voc", "data__root": "nowhere", "data__download": DOWNLOAD | {"mirrors": []}},
            "data.download.mirrors: List should have at least 1 item",
        ),
        *[
            (
                {
                    "data__source": "voc",
                    "data__root": "x",
                    "data__download": DOWNLOAD | {"archives": [ARCHIVE | change]},
                },
                f"data.download.archives.0.{next(iter(change))}: ",
            )
            for change in ({"name": "../up.tar"}, {"md5": "0"}, {"bytes": 0}, {"sha256": "0"})
        ],
        (
            {
                "data__source": "voc",
                "data__root": "x",
                "data__download": DOWNLOAD | {"mirrors": ["https://me:secret@host/voc/"]},
            },
            "data.download.mirrors: an address with a user or a token would stand in logs; put them into ~/.netrc (it is "
            "['https://host/voc/'])",
        ),
        ({"models__vgg__override": {"metrics": {}}}, "models.vgg.override.metrics: only"),
        ({"models__vgg__override": {"guidance": {"mu": -1}}}, "models.vgg.override.guidance.mu: Input should be"),
        ({"classifier__epochs": -1}, "classifier.epochs: Input should be greater than or equal to 0 (it is -1)"),
        ({"guidance__training__epochs": 0}, "guidance.training.epochs: Input should be greater than or equal to 1"),
        ({"models__resnet__source": "caffe"}, "models.resnet.source: Input should be 'torchvision' or 'torchray'"),
        (
            {"models__resnet": TORCHRAY | {"weights": "gone.pt"}, "data__multilabel": True},
            "models.resnet.weights: there is no file 'gone.pt'",
        ),
        (
            {"models__resnet": TORCHRAY | {"weights": None}},
            "models.resnet.weights: give the file of TorchRay's resnet50",
        ),
        (
            {"models__resnet": TORCHRAY},
            "models.resnet.source: TorchRay's networks are multi-label; set data.multilabel to true",
        ),
        (
            {"models__resnet": TORCHRAY | {"arch": "vgg11"}, "data__multilabel": True},
            "models.resnet.source: TorchRay has resnet50 and vgg16, not vgg11",
        ),
        (
            {"models__resnet": TORCHRAY | {"weights": "imagenet"}, "data__multilabel": True},
            "models.resnet.weights: 'imagenet' is a name of torchvision's weights; give the file of TorchRay's network",
        ),
        (
            {"models__resnet": {"arch": "resnet18", "weights": "IMAGENET1K_V2"}},
            "models.resnet.weights: torchvision has IMAGENET1K_V1 for resnet18, not IMAGENET1K_V2",
        ),
        ({"data__source": "imagenet"}, "data.root: give the folder that holds ImageNet's train and val"),
        ({"data__source": "imagenet", "data__root": "nowhere"}, "data.root: there is no folder 'nowhere'"),
        ({"data__source": "imagenet", "data__root": ".", "data__multilabel": True}, "data.multilabel: ImageNet has"),
        (
            {"data__source": "imagenet", "data__root": ".", "data__classes": ["a", "b"]},
            "data.classes: there is no such key where data.source is imagenet",
        ),
        ({"replicates": 0}, "replicates: Input should be greater than or equal to 1 (it is 0)"),
        (
            {"variants__sham": {"teecher": "uniform"}},
            "variants.sham.teecher: a variant may change teacher, teacher_settings, loss, settings, mode of",
        ),
        ({"variants__sham": {"mu": 1}}, "variants.sham.mu: a variant may change teacher, "),
        ({"variants__sham": {"training": {"lr": 1}}}, "variants.sham.training: a variant may change"),
        (
            {"variants__sham": {"teacher": "me"}},
            "variants.sham.teacher: there is no such teacher; take one of bottleneck, ",
        ),
        (
            {"variants__sham": {"loss": "all"}},
            "variants.sham.loss: there is no such guidance loss; take one of energy, localization, ",
        ),
        (
            {"variants__sham": {"loss": "energy", "settings": {"weight": -1}}},
            "variants.sham.settings.weight: Input should be greater than or equal to 0 (it is -1",
        ),
        (
            {"variants__sham": {"loss": "energy", "settings": {"wieght": 1}}},
            "variants.sham.settings: loss 'energy' has no setting 'wieght'; its settings: weight",
        ),
        (
            {"variants__sham": {"settings": {"weight": 1}}},
            "variants.sham.settings: the loss localization has none; those of localization are keys of guidance itself",
        ),
        (
            {"variants__sham": {"loss": "energy", "teacher": "boxes"}},
            "variants.sham.teacher: the loss energy takes no teacher's map; remove it",
        ),
        (
            {"variants__sham": {"loss": "rrr", "mode": "feature"}},
            "variants.sham.mode: the loss rrr has no mode; remove it",
        ),
        (
            {"variants__sham": {"teacher": "boxes", "teacher_settings": {"size": 1}}},
            "variants.sham.teacher_settings: teacher 'boxes' has no setting 'size'; its settings: none",
        ),
        (
            {"variants__sham": {"loss": "saliency_guided", "settings": {"k": 1.5}}},
            "variants.sham.settings.k: Input should be less than or equal to 1 (it is 1.5)",
        ),
        ({"variants__sham": None}, "variants.sham: Input should be a valid dictionary (it is None)"),
        ({"variants__pretrained": {}}, "variants.pretrained: this variant has no guidance"),
        ({"variants__control": {"teacher": "none"}}, "variants.control: this variant is always there"),
        ({"variants__guided": {}}, "variants.guided: this variant is always there"),
        (
            {"methods_on__variants": ["sham"]},
            "methods_on.variants: there is no variant 'sham'; take pretrained, control,",
        ),
        ({"methods_on__replicates": 4}, "methods_on.replicates: 4 of 3 replicates; raise `replicates`"),
        ({"alternatives__a": {"metrics": {"miuo": {}}}}, "alternatives.a.metrics.miuo: there is no such key"),
        (
            {"alternatives__a": {"bottleneck": {"alpha": -1}}},
            "alternatives.a.bottleneck.alpha: Input should be greater",
        ),
        ({"alternatives__a": {"variants": {"x": {"mu": 1}}}}, "alternatives.a: variants.x.mu: a variant may change"),
        ({"alternatives__a": {"methods": {"rise": {"masks": 0}}}}, "alternatives.a.methods.rise: "),
        ({"alternatives__a": {"methods": {"rises": {}}}}, "alternatives.a.methods.rises: no saliency method 'rises'"),
        (
            {"alternatives__a": {"models": {"resnet": {"options": {"width": "x"}}}}},
            "alternatives.a.models.resnet.options: resnet_small: width must be",
        ),
        (
            {"alternatives__a": {"models": {"vgg": {"weights": "gone.pt"}}}},
            "alternatives.a.models.vgg.weights: there is no file 'gone.pt'",
        ),
        (
            {"alternatives__a": {"models": {"vgg": {"override": {"metrics": {}}}}}},
            "alternatives.a.models.vgg.override.metrics: only",
        ),
        ({"alternatives__a": {"seed": 1}}, "alternatives.a.seed: an alternative cannot change this key"),
        ({"alternatives__a": {"name": "b"}}, "alternatives.a.name: an alternative cannot change this key"),
        ({"alternatives__a": {"data": {"size": 64}}}, "alternatives.a.data: all alternatives use the images of the"),
        (
            {"models": {"net": {"arch": "vgg_small"}}, "alternatives__a": {"models": {"more": {"arch": "vgg_small"}}}},
            "alternatives.a.models: an alternative has the networks of the config, no others",
        ),
        ({"name": "../up"}, "name: String should match pattern"),
        (
            {"models__resnet__options": {"widht": 2}},
            "models.resnet.options: resnet_small: got an unexpected keyword argument 'widht'",
        ),
        ({"models__resnet__weights": "imagenet"}, "models.resnet.weights: resnet_small has no ImageNet weights"),
        ({"models": {"tables": {"arch": "vgg_small"}}}, "models: 'tables' is a folder of the results"),
        ({"metrics__kept__top": 1.0}, "metrics.kept.top: Input should be less than 1"),
        ({"bottleneck__gamma": float("nan")}, "bottleneck.gamma: Input should be a finite number"),
        ({"name": "ab" * 50}, "name: 'ab' is repeated twenty times, which Snakemake takes for a recursion"),
    ]
]


def _file(what: str, name: str, content: str | bytes, said: str, snakemake: bool = False) -> Case:
    def make() -> list[str]:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return [*CHECK[:-1], name]

    return Case("config file", what, make, f"{name}: {said}" if said else "", snakemake)


def _missing() -> list[str]:
    return [*CHECK[:-1], "gone.yaml"]


def _folder() -> list[str]:
    Path("folder.yaml").mkdir()
    return ["plan", "--config", "folder.yaml"]


ALIASES = "\n".join(["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)])
FILES = [
    Case("config file", "there is no such file", _missing, "there is no file gone.yaml"),
    Case("config file", "a folder", _folder, "folder.yaml: cannot be read: Is a directory"),
    _file("an empty file", "my.yaml", "", "a config is a list of keys and values"),
    _file("a list", "my.yaml", "- a\n", "a config is a list of keys and values"),
    _file("a broken line", "my.yaml", "a: [\n", "not readable as YAML"),
    _file("tabs", "my.yaml", "a:\n\tb: 1\n", "not readable as YAML"),
    _file("a NUL byte", "my.yaml", b"\0", "not readable as YAML"),
    _file("Latin-1", "my.yaml", "name: café\n".encode("latin-1"), "byte 9 is not UTF-8; save the file as UTF-8"),
    _file("an impossible date", "my.yaml", "a: 2020-13-45\n", "not readable as YAML"),
    _file(
        "the same key twice",
        "my.yaml",
        (Path(__file__).parents[1] / "configs/minimal.yaml").read_text() + "seed: 1\n",
        "the key 'seed' is there twice, in lines ",
        snakemake=True,
    ),
    _file("aliases of aliases", "my.yaml", ALIASES, "it has more than 100000 values"),
    _file("an alias within itself", "my.yaml", "a: &a [*a]\n", "it has more than 100000 values"),
    _file("1500 brackets", "my.yaml", "a: " + "[" * 1500, "its values are nested too deeply"),
    _file("a Python object", "my.yaml", "a: !!python/object/apply:os.getpid []\n", "not readable as YAML"),
    _file("`__use_yte__`", "my.yaml", "__use_yte__: true\n", "Snakemake would execute a config with __use_yte__"),
    _file("broken JSON", "my.json", "{", "not readable as JSON: Expecting property name"),
]


def _call(what: str, arguments: list[str], said: str) -> Case:
    return Case("call", what, lambda: arguments, said)


def _settings(settings: str, said: str) -> Case:
    arguments = ["data", "--settings", settings, "--out", "made"]
    return _call(f"`data --settings '{settings}'`", arguments, f"Error: Invalid value for --settings: {said}")


R = "results/minimal"
INDEX, ROOT, PAIR = f"{R}/index.parquet", f"{R}/data/VOCdevkit/VOC2007", f"{R}/resnet/0"
PRETRAINED, MAPS = f"{PAIR}/pretrained/network.pt", f"{PAIR}/pretrained/maps/rise/0.parquet"
STATISTICS, BOTTLENECK = f"{PAIR}/pretrained/statistics.pt", f"{PAIR}/pretrained/bottleneck.pt"
EVALUATION = f"{PAIR}/evaluation/0"
OTHER = "results/other/resnet/0/pretrained"
SPLIT = "results/other/split/index.parquet"


def replaced(arguments: list[str], **options: str) -> list[str]:
    """The arguments of a command with other values of some options."""
    arguments = list(arguments)
    for name, value in options.items():
        arguments[arguments.index(f"--{name.replace('_', '-')}") + 1] = value
    return arguments


def _maps(**options: str) -> list[str]:
    return replaced(commands()["maps"], **options)


CALLS = [
    _call("no such command", ["mops"], "Error: No such command 'mops'."),
    _call("no options", ["maps"], "Error: Missing option '--index'."),
    _call("no such option", ["index", "--rot", "x"], "Error: No such option: --rot"),
    _call("`maps --shard -1`", ["maps", "--shard", "-1"], "Error: Invalid value for '--shard'"),
    _call("`maps --batch-size 0`", ["maps", "--batch-size", "0"], "Error: Invalid value for '--batch-size'"),
    _call("`maps --gpu one`", ["maps", "--gpu", "one"], "Error: Invalid value for '--gpu'"),
    _call(
        "`plan --images test`", ["plan", "--images", "test"], "Error: Invalid value for --images: 'test' is not <list>="
    ),
    _call(
        "`plan --card gtx`",
        ["plan", "--card", "gtx"],
        "Error: Invalid value for --card: the card 'gtx' is unknown; take one of a100",
    ),
    _call(
        "`plan --device-profile` without the file",
        ["plan", "--device-profile", "gone.json"],
        "Error: Invalid value for --device-profile: there is no file gone.json",
    ),
    _call(
        "`settings mops`",
        ["settings", "mops", "--config", "minimal.yaml"],
        "Error: Invalid value for STEP: there is no",
    ),
    _call(
        "`settings maps` without a place",
        ["settings", "maps", "--config", "minimal.yaml"],
        "Error: Invalid value for --where: maps needs model=… and replicate=…",
    ),
    _settings("{", "not readable as JSON"),
    _settings("[]", "this is a section with keys of its own (it is [])"),
    _settings('{"seed": "x"}', "seed: Input should be a valid integer"),
    _settings('{"seed": 0, "data": {"sise": 3}}', "data.sise: there is no such key where data.source is shapes"),
    _settings('{"seed": 0, "data": {"source": "shape"}}', "data.source: there is no source 'shape'; take one of "),
    _settings('{"seed": 0}', "data: this key is missing"),
    _settings("@gone.json", "[Errno 2] No such file or directory: 'gone.json'"),
    Case(
        "call",
        "`maps --shard 1` of one",
        lambda: _maps(shard="1"),
        "there is no shard 1 of 1; they are numbered from 0",
    ),
    Case("call", "`maps --root gone`", lambda: _maps(root="gone"), "gone/JPEGImages/"),
    Case("call", "`maps --index gone`", lambda: _maps(index="gone.parquet"), "there is no file gone.parquet"),
    Case("call", "`maps --index` of a folder", lambda: _maps(index=R), f"{R}"),
]


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b"x" if kind == tarfile.REGTYPE else b""


INSIDE = _member("VOC/ImageSets/Main/test.txt")


def _fetch(what: str, content: bytes | None, said: str, **stated: object) -> Case:
    def make() -> list[str]:
        Path("mirror").mkdir()
        if content is not None:
            Path("mirror/set.tar").write_bytes(content)
        data = content or b"x"
        archive = {"name": "set.tar", "md5": hashlib.md5(data).hexdigest(), "bytes": len(data)} | stated
        settings = json.dumps({"archives": [archive]})
        return ["fetch", "--root", "new", "--mirror", "mirror", "--settings", settings, "--out", "data.json"]

    return Case("download", what, make, said)


DOWNLOADS = [
    _fetch("no mirror has the archive", None, "set.tar"),
    _fetch("another size", b"abc", "set.tar", bytes=4),
    _fetch("another checksum", b"abc", "set.tar", md5="0" * 32),
    _fetch("an HTML page", b"<html>not found</html>", "set.tar: it cannot be read as an uncompressed tar"),
    _fetch(
        "half an archive",
        _tar(INSIDE, (tarfile.TarInfo("VOC/a"), b"x" * 2000))[:1700],
        "has more bytes than the archive",
    ),
    _fetch("a file above the folder", _tar(INSIDE, _member("../a")), "'../a' would be outside the target"),
    _fetch(
        "a file with an absolute path",
        _tar(INSIDE, _member("/elsewhere/a")),
        "'/elsewhere/a' would be outside the target",
    ),
    _fetch("a link", _tar(INSIDE, _member("VOC/a", tarfile.SYMTYPE, "/etc")), "'VOC/a' is neither a file nor a folder"),
    _fetch("a device", _tar(INSIDE, _member("VOC/a", tarfile.BLKTYPE)), "'VOC/a' is neither a file nor a folder"),
    _fetch("no data set in it", _tar(_member("readme.txt")), "0 folders in VOC layout instead of one"),
    _fetch("two data sets in it", _tar(INSIDE, _member("b/ImageSets/x")), "2 folders in VOC layout instead of one"),
]


def _data(what: str, spoil: Callable[[Path], object], said: str, snakemake: bool = False, **settings: object) -> Case:
    def make() -> list[str]:
        spoil(write_voc(Path("my")))
        step = {"seed": 0, "data": {"source": "voc", "held_out": 0.4, "multilabel": True, **settings}}
        return ["index", "--root", "my", "--settings", json.dumps(step), "--out", "index.parquet"]

    return Case("data", what, make, said, snakemake)


def _annotation(what: str, text: str | bytes, said: str, snakemake: bool = False) -> Case:
    content = text.encode() if isinstance(text, str) else text
    return _data(
        what, lambda root: (root / "Annotations/a.xml").write_bytes(content), f"Annotations/a.xml: {said}", snakemake
    )


def _corner(old: str, new: str, said: str) -> Case:
    text = ANNOTATION.replace(BOX, BOX.replace(old, new), 1)
    return _annotation(f"`{new or 'no ' + old}`".replace("><", "> <"), text, f"object 1 (cat): {said}")


def _list(what: str, text: str | bytes, said: str, snakemake: bool = False) -> Case:
    content = text.encode() if isinstance(text, str) else text
    return _data(what, lambda root: (root / "ImageSets/Main/test.txt").write_bytes(content), said, snakemake)


def _image(what: str, write: Callable[[Path], object], said: str, snakemake: bool = False) -> Case:
    return _data(what, lambda root: write(root / "JPEGImages/a.png"), f"JPEGImages/a.png: {said}", snakemake)


def _truncate(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:150])


def _exchange(root: Path) -> None:
    Image.new("RGB", (8, 9)).save(root / "JPEGImages/a.png")
    (root / "Annotations/a.xml").write_text(ANNOTATION.replace("<width>8", "<width>9"))


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 8)).save(path, exif=exif)


def _huge(path: Path) -> None:
    """A PNG of 65 kB that says it has 30 000 × 30 000 pixels."""
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 30))
DATA = [
    _annotation(
        "an HTML page", "<html><body>not found</body></html>", "it is no annotation; its first tag is 'html'", True
    ),
    _annotation("an empty annotation", "", "malformed XML"),
    _annotation("an annotation without its end", ANNOTATION[:-20], "malformed XML"),
    _annotation("an unknown encoding", f'<?xml version="1.0" encoding="x"?>{ANNOTATION}', "malformed XML"),
    _annotation(
        "entities of entities", f'<!DOCTYPE a [<!ENTITY e0 "x">{ENTITIES}]><annotation>&e29;</annotation>', "malformed"
    ),
    _annotation(
        "an entity of another file",
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation>&e;</annotation>',
        "malformed XML",
    ),
    _annotation(
        "an object without a name", ANNOTATION.replace("<name>cat</name>", ""), "object 1 (without a name): it has no"
    ),
    _annotation("an object without a box", ANNOTATION.replace(BOX, "", 1), "object 1 (cat): it has no bndbox"),
    _corner("<xmax>6</xmax>", "", "its bndbox has no xmax"),
    _corner("<xmin>2<", "<xmin>left<", "xmin is 'left', not a number of pixels"),
    _corner("<xmin>2<", "<xmin>nan<", "xmin is 'nan', not a number of pixels"),
    _corner("<ymax>6<", "<ymax>inf<", "ymax is 'inf', not a number of pixels"),
    _corner("<xmin>2<", "<xmin>7<", "xmin 7 is greater than xmax 6"),
    _corner("<xmax>6<", "<xmax>9<", "its box (xmin 2, ymin 2, xmax 9, ymax 6) reaches outside the image of 8×8 pixels"),
    _corner("<xmin>2<", "<xmin>-1<", "its box (xmin -1, ymin 2, xmax 6, ymax 6) reaches outside the image"),
    _data("no annotation", lambda root: (root / "Annotations/a.xml").unlink(), "Annotations/a.xml: no such file"),
    _data("no image", lambda root: (root / "JPEGImages/a.png").unlink(), "JPEGImages/a.jpg: no such file"),
    _image("an empty image", lambda path: path.write_bytes(b""), "the image cannot be read"),
    _image("an HTML page as image", lambda path: path.write_bytes(b"<html>"), "the image cannot be read"),
    _image("half an image", _truncate, "the image cannot be read", True),
    _image("an image of 900 million pixels", _huge, "the image cannot be read"),
    _image(
        "pixels that are real numbers",
        lambda path: Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(path, "TIFF"),
        "its pixels are floating-point numbers",
    ),
    _image(
        "pixels of 32 bits",
        lambda path: Image.fromarray(np.zeros((8, 8), dtype=np.int32)).save(path, "TIFF"),
        "its pixels are 32-bit integers",
    ),
    _image("a turn in EXIF, sides equal", _turned, "an EXIF tag turns the image"),
    _data("width and height exchanged", _exchange, "Annotations/a.xml: the size is 9×8 but the file's is 8×9"),
    _list("an empty list", "\n", "my/ImageSets/Main/test.txt: the split list is empty"),
    _list("an image twice", "d\nd\n", "my/ImageSets/Main/test.txt: 'd' is listed more than once"),
    _list("an image of no file", "x\n", "Annotations/x.xml: no such file, but a split list names 'x'"),
    _list("a list in Latin-1", "é\n".encode("latin-1"), "my/ImageSets/Main/test.txt: byte 0 is not UTF-8", True),
    _list("an image above the folder", "../d\n", "'../d' is outside the folder JPEGImages", True),
    _list("an absolute path", "/d\n", "'/d' is outside the folder JPEGImages"),
    _list("a name of 300 letters", "d" * 300, "File name too long"),
    _list("a NUL byte in a name", "d\0\n", "my/ImageSets/Main/test.txt: 'd\\x00' is no name of an image"),
    _list("a training image", "a\n", "my: 'a' is listed for training and for test"),
    _data("no test list", lambda root: (root / "ImageSets/Main/test.txt").unlink(), "test.txt: no such split list"),
    _data(
        "no folder JPEGImages",
        lambda root: (root / "JPEGImages").rename(root / "Images"),
        "my/JPEGImages: no such folder",
    ),
    _data(
        "held_out: 0.1 of three images",
        lambda root: None,
        "held_out: 0.1 of the 3 training images is less",
        held_out=0.1,
    ),
    _data(
        "held_out: 0.9 of three images",
        lambda root: None,
        "held_out: 0.9 of the 3 training images leaves",
        held_out=0.9,
    ),
    _data("a class that is not in `classes`", lambda root: None, "class 'dog' is not among", classes=["cat", "cow"]),
    _data(
        "a class that only test images show",
        lambda root: (root / "Annotations/d.xml").write_text(ANNOTATION.replace("dog", "zebra")),
        "test images show 'zebra' and no training image does",
        True,
    ),
    _data(
        "only difficult objects, which are dropped",
        lambda root: (root / "Annotations/d.xml").write_text(ANNOTATION.replace("<difficult>0", "<difficult>1")),
        "my: no image of the list 'test' has an object",
        difficult="drop",
    ),
]


class Program:
    """Pickled, it would be executed when it is read."""

    def __reduce__(self) -> tuple:
        return print, ("executed",)


def _weights(what: str, content: object, said: str) -> Case:
    def make() -> list[str]:
        if isinstance(content, bytes):
            Path("w.pt").write_bytes(content)
        else:
            torch.save(content, "w.pt")
        arguments = commands()["classifier"]
        settings = json.loads(arguments[arguments.index("--settings") + 1])
        settings["network"]["weights"] = "w.pt"
        settings["training"]["epochs"] = 0
        return replaced(arguments, settings=json.dumps(settings), out="new.pt")

    return Case("weights", what, make, said)


def _state(arch: str = "resnet_small", classes: int = 6, width: int = 8) -> dict[str, torch.Tensor]:
    from ibsgl.networks import build_network

    return build_network(arch, classes, width=width).state_dict()


def _not_finite() -> dict[str, torch.Tensor]:
    return {name: value + torch.nan if value.is_floating_point() else value for name, value in _state().items()}


WEIGHTS = [
    _weights("an empty file", b"", "w.pt: "),
    _weights("a text", b"weights", "w.pt: torch.load cannot read it"),
    _weights("an HTML page", b"<html>", "w.pt: torch.load cannot read it"),
    _weights("a program", {"a": Program()}, "w.pt: torch.load cannot read it as a file of tensors alone"),
    _weights("a list", [torch.zeros(1)], "w.pt: it must hold a state dict"),
    _weights("an empty dictionary", {}, "w.pt: it must hold a state dict"),
    _weights("numbers as names", {0: torch.zeros(1)}, "w.pt: it must hold a state dict"),
    _weights("numbers as values", {"a": 1}, "w.pt: it must hold a state dict"),
    _weights("a sparse tensor", {"a": torch.eye(2).to_sparse()}, "w.pt: it must hold a state dict"),
    _weights("another architecture", _state("vgg_small"), "w.pt: these are not the weights of resnet_small; missing:"),
    _weights("another width", _state(width=16), "w.pt: these are not the weights of resnet_small; another shape:"),
    _weights("another number of classes", _state(classes=5), "w.pt: these are not the weights of resnet_small"),
    _weights(
        "values that are not finite",
        _not_finite(),
        "resnet classifier 0: the network has collapsed",
    ),
]


def _flip(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def _cut(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:100])


def _seal(path: str) -> Path:
    return Path(path).with_name(f".{Path(path).name}.seal")


def _foreign(path: str) -> None:
    _seal(path).unlink()
    if path.endswith(".parquet"):
        pq.write_table(pa.table({"a": [1]}), path)
    elif path.endswith(".pt"):
        torch.save({"a": torch.zeros(1)}, path)
    else:
        Path(path).write_text("a\n1\n")


def _page(path: str) -> None:
    _seal(path).unlink()
    Path(path).write_text("<html>")


def _of_seal(path: str) -> None:
    _seal(path).write_text("{}")


def _an_image() -> str:
    """An image that the maps are made of."""
    name = Path(ROOT, "ImageSets/Main/test.txt").read_text().split()[0]
    return str(next(Path(ROOT, "JPEGImages").glob(f"{name}.*")))


def _flip_image() -> None:
    _flip(_an_image())


# What reads each file: its name in the table, the file, the command.
READ = {
    "the index": (INDEX, "classifier"),
    "weights": (PRETRAINED, "maps"),
    "statistics": (STATISTICS, "evaluate"),
    "L^ib": (BOTTLENECK, "guide"),
    "maps": (MAPS, "evaluate"),
    "scores": (f"{EVALUATION}/scores.parquet", "tables"),
    "deletion curves": (f"{EVALUATION}/curves.parquet", "figure4"),
}


def _result(what: str, command: str, said: str, spoil: Callable[[], object] = lambda: None, **options: str) -> Case:
    def make() -> list[str]:
        spoil()
        return replaced(commands()[command], **options)

    return Case("result", what, make, said)


def _damaged(what: str, spoil: Callable[[str], object], said: str) -> list[Case]:
    return [
        _result(f"{name}: {what}", command, said.format(file=file, name=Path(file).name), lambda file=file: spoil(file))
        for name, (file, command) in READ.items()
    ]


RESULTS = [
    *_damaged("one bit flipped", _flip, "{file} has changed since it was written; delete"),
    *_damaged("cut off", _cut, "{file} has changed since it was written; delete"),
    *_damaged("its seal broken", _of_seal, ".{name}.seal is not a seal of this benchmark"),
    *_damaged("an HTML page without a seal", _page, "{file}"),
    *_damaged("of another program, without a seal", _foreign, "{file}"),
    _result(
        "maps: of other weights",
        "evaluate",
        "was made from other weights than",
        maps=f"{OTHER}/maps/rise/0.parquet",
    ),
    _result(
        "the index: with another split",
        "maps",
        "are of different data or of different splits",
        index=SPLIT,
    ),
    _result(
        "L^ib: of other weights",
        "guide",
        "was made from other weights than",
        weights=f"{OTHER}/network.pt",
    ),
    _result(
        "statistics: of other weights",
        "evaluate",
        "was made from other weights than",
        statistics=f"{OTHER}/statistics.pt",
    ),
    _result(
        "an image: one bit flipped",
        "maps",
        " is another file than when the index was made; delete the folder",
        _flip_image,
    ),
    _result("an image: one bit flipped before the index is made", "index", "has changed since the folder", _flip_image),
    _result("an image: deleted", "maps", "there is no file", lambda: Path(_an_image()).unlink()),
    _result("scores: missing", "tables", "there is no file", lambda: Path(f"{EVALUATION}/scores.parquet").unlink()),
    Case(
        "result",
        "the same measurements twice",
        lambda: [*commands()["tables"], "--evaluation", EVALUATION],
        "give each folder",
    ),
]


def _archive(what: str, content: bytes, said: str) -> Case:
    def make() -> list[str]:
        Path("run.zip").write_bytes(content)
        return ["verify", "run.zip"]

    return Case("result", what, make, said)


RESULTS += [
    _archive("an archive: an HTML page", b"<html>", "run.zip"),
    _archive("an archive: an empty zip", b"PK\5\6" + bytes(18), "ro-crate-metadata.json is missing"),
]

CASES = [*CONFIGS, *FILES, *CALLS, *DOWNLOADS, *DATA, *WEIGHTS, *RESULTS]
