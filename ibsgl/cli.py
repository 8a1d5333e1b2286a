"""``ibsgl <step>``: every rule of the workflow is one of these commands, and a person can run each by hand.

``snakemake --printshellcmds`` (the default profile's habit) shows the full command of every job. ``--settings`` is the part of
the config that the step's result depends on, as JSON or as ``@file``; ``ibsgl settings`` prints it for any step.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ibsgl import config as configuration

# Errors as plain lines: a log is no place for boxes, which break a key or a path at the terminal's width.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)

Settings = Annotated[str, typer.Option("--settings", help="What the step depends on, as JSON or @file.")]
Out = Annotated[Path, typer.Option("--out", help="Written whole under a temporary name, then renamed.")]
IndexFile = Annotated[Path, typer.Option("--index", help="The data set's index.")]
Root = Annotated[Path, typer.Option("--root", help="The data set's folder.")]
Weights = Annotated[Path, typer.Option("--weights", help="State dict of the network.")]
Gpu = Annotated[int, typer.Option("--gpu", help="0: CPU; otherwise CUDA.", envvar="IBSGL_GPU")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images at a time; no result depends on it but for rounding.")
]
Records = Annotated[Path | None, typer.Option("--records", help="Where the step's record for MLflow goes.")]
Shard = Annotated[int, typer.Option("--shard", min=0, help="Which shard, from 0.")]
ConfigFiles = Annotated[
    list[Path], typer.Option("--config", help="The config file; another on top of it changes some keys. Repeatable.")
]
ModelName = Annotated[str, typer.Option("--model", help="The model's name in the config.")]


class StepSettings(configuration._Section):
    """The settings of one step; each step uses the few that :meth:`ibsgl.config.Config.settings` gives it."""

    class Network(configuration.Model):
        """A model of the config with the data set's kind of labels."""

        multilabel: bool

    seed: int | None = None
    network: Network | None = None
    networks: dict[str, Network] | None = None
    shapes: configuration.Shapes | None = None
    archives: list[configuration.Archive] | None = None
    splits: configuration.Splits | None = None
    imagenet: configuration.ImageNet | None = None
    classes: list[str] | None = None
    held_out: float | None = None
    difficult: str | None = None
    training: configuration.Classifier | None = None
    bottleneck: configuration.Bottleneck | None = None
    suppression: configuration.Suppression | None = None
    suppressions: dict[str, configuration.Suppression] | None = None
    guidance: configuration.Guidance | None = None
    methods: dict[str, dict[str, Any]] | None = None
    shards: int | None = None
    metrics: configuration.Metrics | None = None
    r: float | None = None
    cross_entropy: str | None = None
    resamples: int | None = None
    deletion: configuration.Deletion | None = None
    figures: configuration.Figures | None = None
    number: int | None = None
    model: str | None = None
    config: dict[str, Any] | None = None

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if (
            value is None
            and name in StepSettings.model_fields
            and name != "classes"
            and name not in self.model_fields_set
        ):
            raise typer.BadParameter(f"this step needs the setting {name!r}", param_hint="--settings")
        return value


def _parse(settings: str) -> StepSettings:
    try:
        text = Path(settings[1:]).read_text() if settings.startswith("@") else settings
        return StepSettings.model_validate(json.loads(text))
    except (OSError, json.JSONDecodeError) as error:
        raise typer.BadParameter(f"not readable as JSON: {error}", param_hint="--settings") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise typer.BadParameter(f"{key}: {first['msg']}", param_hint="--settings") from None


def _as_json(step: StepSettings) -> dict[str, Any]:
    return step.model_dump(mode="json", exclude_unset=True)


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """A path beside ``out`` that becomes ``out`` if the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.stem}.", suffix=out.suffix, dir=out.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; results are as readable as any other file of their owner.
        temporary.chmod(0o644)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _device(gpu: int):
    import torch

    from ibsgl import devices

    return devices.lease() if gpu else torch.device("cpu")


def _data(index_file: Path, root: Path, size: int):
    from ibsgl.data.loading import VOCData
    from ibsgl.data.voc import Index

    return VOCData(Index.load(index_file), root, size)


def _network(
    settings: StepSettings.Network, num_classes: int, weights: Path | None, device, *, new_classes: bool = False
):
    """The network of ``settings``, from its own start or with the state dict ``weights``."""
    from ibsgl.network import build_network

    return build_network(
        settings.arch,
        num_classes,
        weights or settings.weights,
        multilabel=settings.multilabel,
        source=settings.source,
        new_classes=new_classes,
        **settings.options,
    ).to(device)


def _record(
    records: Path | None,
    cell: str,
    kind: str,
    settings: dict[str, Any],
    *,
    started: float,
    seconds: float | None = None,
    metrics: dict[str, float],
    tags: dict[str, Any],
    history: list[dict[str, float]] = (),
    artifacts: list[Path] = (),
) -> None:
    if records is None:
        return
    from ibsgl import provenance

    provenance.write_record(
        records,
        cell,
        kind,
        settings=settings,
        metrics=metrics,
        history=list(history),
        artifacts=[str(path) for path in artifacts],
        tags=tags,
        started=started,
        seconds=time.time() - started if seconds is None else seconds,
    )


def _digest(*parts: object) -> str:
    import hashlib

    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def _config(files: list[Path], data: bool = True) -> configuration.Config:
    """The config of ``files``, each on top of the last as Snakemake takes them."""
    import yaml

    merged: dict[str, Any] = {}
    for file in files:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise configuration.ConfigError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise configuration.ConfigError(f"{file}: a config is a list of keys and values")
        merged = configuration.merge(merged, values)
    return configuration.load(merged, data=data)


@app.command()
def shapes(settings: Settings, out: Annotated[Path, typer.Option(help="The VOC2007 folder to make.")]) -> None:
    """Generate the built-in data set in VOC layout."""
    from ibsgl.data.shapes import generate

    step = _parse(settings)
    generate(out, seed=step.seed, **step.shapes.model_dump())


@app.command()
def fetch(
    root: Root,
    mirrors: Annotated[list[str], typer.Option("--mirror", help="Address or folder with the archives. Repeatable.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="What was found or fetched (JSON).")],
    folder: Annotated[Path, typer.Option("--folder", help="Where downloads are kept.")] = Path("data"),
) -> None:
    """Download, verify and unpack a data set in VOC layout; a folder that is there is taken as it is."""
    from ibsgl.data import download
    from ibsgl.provenance import folder_digest

    step = _parse(settings)
    fetched = download.fetch(root, step.archives, mirrors=mirrors, folder=folder)
    stamp = {
        "root": root.as_posix(),
        "archives": _as_json(step)["archives"] if fetched else "taken as it is",
        "files": folder_digest(root),
    }
    with _written(out) as temporary:
        temporary.write_text(json.dumps(stamp, indent=2) + "\n")


@app.command()
def index(root: Root, settings: Settings, out: Out) -> None:
    """Read a data set's folder once: check it, list its (image, class) pairs, take its digest."""
    from ibsgl.data import imagenet, voc

    step = _parse(settings)
    if "imagenet" in step.model_fields_set:
        built = imagenet.build_index(root, held_out=step.held_out, seed=step.seed, **step.imagenet.model_dump())
    else:
        built = voc.build_index(
            root,
            splits=step.splits.model_dump(),
            held_out=step.held_out,
            seed=step.seed,
            class_names=step.classes,
            difficult=step.difficult,
        )
    if len(built.class_names) < 2:
        raise ValueError(f"{root}: there is one class only, {built.class_names[0]!r}; a classifier needs two")
    with _written(out) as temporary:
        built.save(temporary)


@app.command()
def classifier(
    model: ModelName,
    index_file: IndexFile,
    root: Root,
    settings: Settings,
    out: Out,
    gpu: Gpu = 0,
    records: Records = None,
) -> None:
    """Train the network to be explained (Eq. 2), or with no epochs take it as it is."""
    import torch

    from ibsgl import provenance
    from ibsgl.metrics.classification import classification_metrics
    from ibsgl.network import is_torchvision_weights
    from ibsgl.randomness import derive_seed
    from ibsgl.training import predict, train_classifier

    started, step, device = time.time(), _parse(settings), _device(gpu)
    start = step.network.weights
    data = _data(index_file, root, step.network.image_size)
    torch.manual_seed(derive_seed(step.seed, model, "initialisation"))
    if step.network.source == "torchray":
        from ibsgl.torchray import check_classes

        check_classes(data.index.class_names)
    network = _network(step.network, len(data.index.class_names), None, device, new_classes=step.training.epochs > 0)
    checkpoint = out.with_suffix(".checkpoint")
    out.parent.mkdir(parents=True, exist_ok=True)
    history = train_classifier(
        network,
        data,
        step.training,
        name=f"{model} classifier",
        seed=step.seed,
        device=device,
        checkpoint=checkpoint,
        digest=_digest(
            json.dumps(_as_json(step), sort_keys=True),
            data.index.digest,
            *([provenance.digest_file(start)] if start and not is_torchvision_weights(start) else []),
            provenance.source_digest("ibsgl.training", "ibsgl.network", "ibsgl.data", "ibsgl.randomness"),
            device.type,
        ),
    )
    scores = classification_metrics(
        predict(network, data, "test", step.training.batch_size, device),
        data.labels("test"),
        data.index.class_names,
        multilabel=step.network.multilabel,
        ignored=data.difficult("test"),
    )
    with _written(out) as temporary:
        torch.save(network.state_dict(), temporary)
    _record(
        records,
        f"{model}/classifier",
        "training",
        _as_json(step),
        started=started,
        metrics={f"test_{key}": value for key, value in scores.items()},
        history=history,
        tags=provenance.collect(str(device), data_digest=data.index.digest, weights_digest=provenance.digest_file(out)),
    )
    checkpoint.unlink(missing_ok=True)
    key = next(iter(scores))
    typer.echo(f"{model}: test {key} {scores[key]:.4f}")


@app.command()
def statistics(
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    settings: Settings,
    out: Out,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Mean and deviation of the feature map over the training images (Section 3.2)."""
    import torch

    from ibsgl.training import feature_statistics

    step, device = _parse(settings), _device(gpu)
    data = _data(index_file, root, step.network.image_size)
    network = _network(step.network, len(data.index.class_names), weights, device)
    with _written(out) as temporary:
        torch.save(feature_statistics(network, data, batch_size, device).state_dict(), temporary)


def _load_statistics(path: Path, device):
    import torch

    from ibsgl.bottleneck import FeatureStatistics

    return FeatureStatistics.from_state_dict(torch.load(path, weights_only=True)).to(device)


StatisticsFile = Annotated[Path | None, typer.Option("--statistics", help="Feature statistics of the network.")]


@app.command()
def bottleneck(
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    statistics_file: StatisticsFile,
    settings: Settings,
    out: Out,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """L^ib of every training and held-out pair, for the guidance (Eq. 4–9)."""
    import torch

    from ibsgl import attribution
    from ibsgl.evaluation import bottleneck_maps

    step, device = _parse(settings), _device(gpu)
    data = _data(index_file, root, step.network.image_size)
    network = _network(step.network, len(data.index.class_names), weights, device)
    method = attribution.get("bottleneck", **step.bottleneck.model_dump())
    feature_statistics = _load_statistics(statistics_file, device)
    maps = {
        split: bottleneck_maps(
            network,
            data,
            data.pairs(split),
            method,
            feature_statistics,
            seed=step.seed,
            batch_size=batch_size,
            device=device,
        )
        for split in ("train", "held_out")
    }
    with _written(out) as temporary:
        torch.save(maps, temporary)


@app.command()
def guide(
    model: ModelName,
    network_name: Annotated[str, typer.Option("--network", help="guided, or control: as long, without guidance.")],
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    settings: Settings,
    out: Out,
    bottleneck_file: Annotated[Path | None, typer.Option("--bottleneck", help="Cached L^ib; not for control.")] = None,
    statistics_file: StatisticsFile = None,
    gpu: Gpu = 0,
    records: Records = None,
) -> None:
    """Guided training (Algorithm 1), or its control."""
    import torch

    from ibsgl import provenance
    from ibsgl.metrics.classification import classification_metrics
    from ibsgl.training import predict, train_guided

    started, step, device = time.time(), _parse(settings), _device(gpu)
    guided = network_name == "guided"
    data = _data(index_file, root, step.network.image_size)
    network = _network(step.network, len(data.index.class_names), weights, device)

    def score() -> dict[str, float]:
        return classification_metrics(
            predict(network, data, "test", step.training.batch_size, device),
            data.labels("test"),
            data.index.class_names,
            multilabel=step.network.multilabel,
            ignored=data.difficult("test"),
        )

    before = score()
    key = next(iter(before))
    current = guided and step.guidance.bottleneck_network == "current"
    checkpoint = out.with_suffix(".checkpoint")
    out.parent.mkdir(parents=True, exist_ok=True)
    history = train_guided(
        network,
        data,
        step.training,
        guidance=step.guidance if guided else None,
        suppression=step.suppression if guided else None,
        l_ib=torch.load(bottleneck_file, weights_only=True)["train"] if guided and not current else None,
        bottleneck=step.bottleneck if current else None,
        statistics=_load_statistics(statistics_file, device) if current else None,
        name=f"{model} {network_name}",
        seed=step.seed,
        device=device,
        checkpoint=checkpoint,
        digest=_digest(
            json.dumps(_as_json(step), sort_keys=True),
            data.index.digest,
            *(provenance.digest_file(file) for file in (weights, bottleneck_file, statistics_file) if file),
            provenance.source_digest("ibsgl"),
            device.type,
        ),
    )
    after = score()
    with _written(out) as temporary:
        torch.save(network.state_dict(), temporary)
    _record(
        records,
        f"{model}/{network_name}",
        "training",
        _as_json(step),
        started=started,
        metrics={f"test_{key}_before": before[key]} | {f"test_{name}": value for name, value in after.items()},
        history=history,
        tags=provenance.collect(str(device), data_digest=data.index.digest, weights_digest=provenance.digest_file(out)),
    )
    checkpoint.unlink(missing_ok=True)
    typer.echo(f"{model} {network_name}: test {key} {before[key]:.4f} before, {after[key]:.4f} after")


@app.command()
def maps(
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    settings: Settings,
    out: Out,
    shard_number: Shard = 0,
    statistics_file: StatisticsFile = None,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Saliency maps of one or several methods on one network for the test pairs of one shard."""
    from ibsgl import attribution
    from ibsgl.evaluation import compute_maps, shard, write_maps

    step, device = _parse(settings), _device(gpu)
    methods = {name: attribution.get(name, **chosen) for name, chosen in step.methods.items()}
    data = _data(index_file, root, step.network.image_size)
    network = _network(step.network, len(data.index.class_names), weights, device)
    batches = compute_maps(
        network,
        data,
        shard(data.pairs("test"), shard_number, step.shards),
        methods,
        seed=step.seed,
        batch_size=batch_size,
        device=device,
        statistics=_load_statistics(statistics_file, device) if statistics_file else None,
    )
    with _written(out) as temporary:
        write_maps(temporary, batches, methods, data.size, _as_json(step))


MapsFiles = Annotated[list[Path], typer.Option("--maps", help="Maps: …/<group>/<shard>.parquet. Repeatable.")]


@app.command()
def scores(
    model: ModelName,
    network_name: Annotated[str, typer.Option("--network", help="pretrained, control or guided.")],
    index_file: IndexFile,
    root: Root,
    weights: Weights,
    maps_files: MapsFiles,
    settings: Settings,
    out: Out,
    shard_number: Shard = 0,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Localisation and faithfulness of the maps of one shard: one row per (method, image, class)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ibsgl import provenance
    from ibsgl.evaluation import Maps, score_maps, shard

    started, step, device = time.time(), _parse(settings), _device(gpu)
    data = _data(index_file, root, step.network.image_size)
    network = _network(step.network, len(data.index.class_names), weights, device)
    maps = Maps(maps_files, shard(data.pairs("test"), shard_number, step.shards))
    table = score_maps(network, data, maps, step.metrics, batch_size=batch_size, device=device)
    labels = table["method"].map(maps.labels)
    table = table.assign(model=model, arch=step.network.arch, network=network_name, label=labels)
    tags = provenance.collect(
        str(device),
        data_digest=data.index.digest,
        weights_digest=provenance.digest_file(weights),
        class_names=list(data.index.class_names),
    )
    made_with = {
        name: made | {"methods": {name: made["methods"][name]}} | _as_json(step) for name, made in maps.settings.items()
    }
    facts = {"seed": next(iter(made_with.values()))["seed"], "settings": made_with}
    facts |= {"started": started, "seconds": time.time() - started}
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    with _written(out) as temporary:
        pq.write_table(arrow.replace_schema_metadata({"ibsgl": json.dumps(tags | facts)}), temporary)


@app.command()
def evaluation(
    scores_files: Annotated[list[Path], typer.Option("--scores", help="Scores of every shard. Repeatable.")],
    out: Out,
    records: Records = None,
) -> None:
    """One network's scores: those of the shards in one file, and a record per method."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ibsgl.metrics import METRICS

    parts = [pq.read_table(file) for file in scores_files]
    facts = [json.loads(part.schema.metadata.pop(b"ibsgl")) for part in parts]
    settings, started, seconds = (facts[0].pop(key) for key in ("settings", "started", "seconds"))
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts], promote_options="permissive")
    with _written(out) as temporary:
        pq.write_table(table.replace_schema_metadata({"ibsgl": json.dumps(facts[0])}), temporary)
    columns = [*METRICS, "p_full", "p_kept"]
    means = table.group_by("method", use_threads=False).aggregate([(column, "mean") for column in columns])
    model, network = (table[key][0].as_py() for key in ("model", "network"))
    tags = {key: value for key, value in facts[0].items() if key != "seed"}
    for row in means.to_pylist():
        _record(
            records,
            f"{model}/{network}/{row['method']}",
            "evaluation",
            settings[row["method"]],
            started=started,
            seconds=seconds + sum(other["seconds"] for other in facts[1:]),
            metrics={column: row[f"{column}_mean"] for column in columns},
            tags=tags,
            artifacts=[out],
        )


@app.command()
def effect(
    model: ModelName,
    index_file: IndexFile,
    root: Root,
    weights: Annotated[list[Path], typer.Option("--weights", help="State dicts named <network>.pt. Repeatable.")],
    bottleneck_file: Annotated[Path, typer.Option("--bottleneck", help="Cached L^ib.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="Per-image losses (Parquet).")],
    predictions_out: Annotated[Path, typer.Option("--predictions", help="Test logits and labels (Parquet).")],
    table_out: Annotated[Path, typer.Option("--table", help="The comparison as CSV; .md goes beside it.")],
    classes_out: Annotated[
        Path, typer.Option("--classes", help="Each network's classification, class by class (CSV).")
    ],
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
    records: Records = None,
) -> None:
    """Did guidance do what it optimises? L_CE, L_SS and accuracy of every network, and guided against control."""
    import pandas as pd
    import torch

    from ibsgl import provenance, tables
    from ibsgl.evaluation import guidance_effect

    started, step, device = time.time(), _parse(settings), _device(gpu)
    data = _data(index_file, root, step.network.image_size)
    l_ib = torch.load(bottleneck_file, weights_only=True)["held_out"]
    losses, predictions = [], []
    for file in weights:
        network = _network(step.network, len(data.index.class_names), file, device)
        of_losses, of_predictions = guidance_effect(
            network, data, l_ib, r=step.r, cross_entropy=step.cross_entropy, batch_size=batch_size, device=device
        )
        losses.append(of_losses.assign(network=file.stem))
        predictions.append(of_predictions.assign(network=file.stem))
    losses, predictions = pd.concat(losses, ignore_index=True), pd.concat(predictions, ignore_index=True)
    table = tables.guidance_table(
        losses, predictions, multilabel=step.network.multilabel, seed=step.seed, resamples=step.resamples
    )
    classes = tables.classification_table(
        predictions, data.index.class_names, data.difficult("test").numpy(), multilabel=step.network.multilabel
    )
    with (
        _written(out) as a,
        _written(predictions_out) as b,
        _written(table_out) as c,
        _written(classes_out) as d,
    ):
        losses.to_parquet(a)
        predictions.to_parquet(b)
        tables.write_csv(table, c)
        tables.write_csv(classes, d)
    with _written(table_out.with_suffix(".md")) as temporary:
        tables.write_guidance_markdown(table, temporary, model=model)
    _record(
        records,
        f"{model}/effect",
        "table",
        _as_json(step),
        started=started,
        metrics={f"{row.network}.{row.metric}": float(row.value) for row in table.itertuples()},
        tags=provenance.collect(str(device), data_digest=data.index.digest),
        artifacts=[table_out, table_out.with_suffix(".md"), classes_out],
    )


@app.command()
def deletion(
    index_file: IndexFile,
    root: Root,
    weights: Annotated[list[Path], typer.Option("--weights", help="State dicts named <network>.pt. Repeatable.")],
    maps_files: Annotated[list[Path], typer.Option("--maps", help="Eq. 3 maps, a file for each of --weights.")],
    settings: Settings,
    out: Out,
    shard_number: Shard = 0,
    gpu: Gpu = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Deletion curves of every network's own Eq. 3 maps, for the test pairs of one shard (Figure 4)."""
    import pandas as pd

    from ibsgl.evaluation import Maps, deletion_curves, shard

    step, device = _parse(settings), _device(gpu)
    data = _data(index_file, root, step.network.image_size)
    if len(weights) != len(maps_files):
        raise typer.BadParameter(f"{len(weights)} networks and {len(maps_files)} files of maps", param_hint="--maps")
    pairs = shard(data.pairs("test"), shard_number, step.shards)
    curves = []
    for file, maps_file in zip(weights, maps_files, strict=True):
        network = _network(step.network, len(data.index.class_names), file, device)
        of_network = deletion_curves(
            network,
            data,
            Maps([maps_file], pairs, ["gradient"]),
            step.deletion,
            r=step.r,
            seed=step.seed,
            batch_size=batch_size,
            device=device,
        )
        curves.append(of_network.assign(network=file.stem))
    with _written(out) as temporary:
        pd.concat(curves, ignore_index=True).to_parquet(temporary)


@app.command()
def table(
    scores_files: Annotated[list[Path], typer.Option("--scores", help="Score files. Repeatable.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The CSV; .md and .tex go beside it.")],
    published: Annotated[Path, typer.Option("--published", help="The paper's figures.")] = Path("results/published"),
    records: Records = None,
) -> None:
    """One of Tables 1–4 as CSV, Markdown and LaTeX, beside the published figures."""
    from ibsgl import provenance, tables

    started, step = time.time(), _parse(settings)
    scores = tables.read_scores(scores_files)
    resolved = configuration.Config.model_validate(step.config)
    reference = tables.read_published_settings(published, step.number)
    ours = resolved.comparable_settings(step.model) | {"data": tables.data_set(scores, resolved.name, reference)}
    made = tables.build_table(
        scores,
        step.number,
        published,
        seed=resolved.seed,
        deviations=tables.deviations(ours, reference),
        average=resolved.tables.average,
        resamples=resolved.tables.resamples,
    )
    notes = resolved.variants(step.model)
    with (
        _written(out) as csv,
        _written(out.with_suffix(".md")) as markdown,
        _written(out.with_suffix(".tex")) as latex,
    ):
        tables.write_csv(made, csv)
        tables.write_markdown(made, markdown, notes=notes)
        tables.write_latex(made, latex, notes=notes)
    _record(
        records,
        f"table{step.number}",
        "table",
        _as_json(step),
        started=started,
        metrics={
            f"{row.network}.{row.method}.{row.metric}": float(row.value)
            for row in made[made["value"] != tables.NOT_RUN].itertuples()
        },
        tags=provenance.collect("cpu", data_digest=next(iter(scores.attrs["metadata"].values()))["data_digest"]),
        artifacts=[out, out.with_suffix(".md"), out.with_suffix(".tex")],
    )


def _network_of(step: StepSettings, model: str) -> StepSettings.Network:
    """What the settings say of ``model``, a name that was read from a file's path."""
    if model not in step.networks:
        known = ", ".join(step.networks)
        raise typer.BadParameter(f"networks: a file is of the model {model!r}, not of {known}", param_hint="--settings")
    return step.networks[model]


@app.command()
def figure(
    index_file: IndexFile,
    root: Root,
    weights: Annotated[list[Path], typer.Option("--weights", help="State dicts <model>/<network>.pt. Repeatable.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The PNG; the PDF goes beside it.")],
    gpu: Gpu = 0,
    records: Records = None,
) -> None:
    """Figure 2 (saliency of c and of p) or 3 (the target's map), before and after guidance."""
    from ibsgl import figures, provenance

    started, step, device = time.time(), _parse(settings), _device(gpu)
    if step.number not in (2, 3):
        raise typer.BadParameter(f"number: this step draws Figure 2 or 3, not {step.number}", param_hint="--settings")
    files = {(file.parent.name, file.stem): file for file in weights}
    examples = {}
    for model in dict.fromkeys(file.parent.name for file in weights):
        spec = _network_of(step, model)
        data = _data(index_file, root, spec.image_size)
        networks = {}
        for network in ("pretrained", "guided"):
            if (model, network) not in files:
                raise typer.BadParameter(f"give {model}/{network}.pt too", param_hint="--weights")
            networks[network] = _network(spec, len(data.index.class_names), files[model, network], device)
        pairs = figures.choose_pairs(data.pairs("test"), step.figures.examples, step.seed)
        # Figure 3 shows no L_SS and so depends on no r.
        r = step.suppressions[model].r if step.number == 2 else configuration.Suppression().r
        examples[model] = figures.suppression_examples(
            networks["pretrained"], networks["guided"], data, pairs, device, r=r
        )
    draw = figures.figure2 if step.number == 2 else figures.figure3
    figures.save(draw(examples, seed=step.seed), out)
    _record(
        records,
        f"figure{step.number}",
        "figure",
        _as_json(step),
        started=started,
        metrics={},
        tags=provenance.collect(str(device), data_digest=data.index.digest),
        artifacts=[out, out.with_suffix(".pdf")],
    )


@app.command()
def figure4(
    curves_files: Annotated[
        list[Path], typer.Option("--curves", help="…/<model>/deletion/<shard>.parquet. Repeatable.")
    ],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="The PNG; the PDF and the plotted values (CSV) go beside it.")],
    records: Records = None,
) -> None:
    """Figure 4: deletion curves before and after guidance, with their areas."""
    import pandas as pd

    from ibsgl import figures, provenance, tables

    started, step = time.time(), _parse(settings)
    frames = []
    for file in curves_files:
        model = file.parent.parent.name
        _network_of(step, model)
        frames.append(pd.read_parquet(file).assign(model=model))
    drawn, values = figures.figure4(
        pd.concat(frames, ignore_index=True),
        r={model: suppression.r for model, suppression in step.suppressions.items()},
        seed=step.seed,
        resamples=step.resamples,
    )
    figures.save(drawn, out)
    with _written(out.with_suffix(".csv")) as temporary:
        tables.write_csv(values, temporary)
    areas = values.drop_duplicates(["model", "network"])
    _record(
        records,
        "figure4",
        "figure",
        _as_json(step),
        started=started,
        metrics={f"{row.model}.{row.network}.area": float(row.area) for row in areas.itertuples()},
        tags=provenance.collect("cpu"),
        artifacts=[out, out.with_suffix(".pdf"), out.with_suffix(".csv")],
    )


@app.command()
def track(
    configfiles: ConfigFiles = [Path("config/shapes.yaml")],  # noqa: B006
) -> None:
    """Log to MLflow the records that it does not have yet; the workflow does this by itself."""
    from ibsgl import tracking

    loaded = _config(configfiles)
    tracking.flush(loaded.name, Path(f"results/{loaded.name}/records"), loaded.model_dump(mode="json"))


@app.command()
def plan(
    configfiles: ConfigFiles = [Path("config/shapes.yaml")],  # noqa: B006
    images: Annotated[
        list[str], typer.Option("--images", help="<list>=<images>, for data that is not there. Repeatable.")
    ] = [],  # noqa: B006
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Time some passes here, with random weights.")
    ] = True,
    out: Annotated[Path | None, typer.Option("--json", help="Write the numbers there too.")] = None,
) -> None:
    """What a run will cost, before anything runs: pairs, passes, FLOPs, disk, and the time on this machine."""
    from rich.console import Console

    from ibsgl import plan as planning

    counts = {}
    for item in images:
        name, _, number = item.partition("=")
        if not number.isdigit():
            raise typer.BadParameter(f"{item!r} is not <list>=<images>, like test=4952", param_hint="--images")
        counts[name] = int(number)
    loaded = _config(configfiles, data=False)
    made = planning.plan(loaded, counts, calibrate)
    if out is not None:
        with _written(out) as temporary:
            temporary.write_text(json.dumps(made.as_dict(), indent=1, ensure_ascii=False) + "\n")
    # Where nobody looks, a table is as wide as it needs to be.
    planning.show(made, Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200))


@app.command()
def settings(
    step: Annotated[str, typer.Argument(help="classifier, guide, maps, …")],
    configfiles: ConfigFiles = [Path("config/shapes.yaml")],  # noqa: B006
    where: Annotated[
        list[str], typer.Option("--where", help="model=…, network=…, group=…, number=…. Repeatable.")
    ] = [],  # noqa: B006
) -> None:
    """Print the settings that a step of this config depends on, ready for --settings."""
    loaded = _config(configfiles)
    if step not in configuration._STEPS:
        known = ", ".join(configuration._STEPS)
        raise typer.BadParameter(f"there is no step {step!r}; take one of {known}", param_hint="STEP")
    wildcards = dict(item.partition("=")[::2] for item in where)
    # A step's function takes the config and the wildcards that it cannot do without.
    needed = [
        name for name, p in signature(configuration._STEPS[step]).parameters.items() if p.kind is not p.VAR_KEYWORD
    ]
    if missing := [name for name in needed[1:] if not wildcards.get(name)]:
        raise typer.BadParameter(f"{step} needs {' and '.join(f'{name}=…' for name in missing)}", param_hint="--where")
    if "model" in wildcards and wildcards["model"] not in loaded.models:
        known = ", ".join(loaded.models)
        raise typer.BadParameter(f"there is no model {wildcards['model']!r}; take one of {known}", param_hint="--where")
    try:
        typer.echo(loaded.settings(step, **wildcards))
    except configuration.ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--where") from None


def main() -> None:
    """The console script: errors that a user can mend are one line, everything else keeps its traceback."""
    try:
        app()
    except FileNotFoundError as error:
        sys.exit(f"ibsgl: error: there is no file {error.filename or error}")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"ibsgl: error: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "TrainingError":
            raise
        sys.exit(f"ibsgl: error: {error}")
