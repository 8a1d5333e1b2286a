"""Options that several commands have, and what each command does with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ibsgl import files, seals

if TYPE_CHECKING:
    import torch

    from ibsgl.bottleneck import FeatureStatistics
    from ibsgl.config.steps import Step
    from ibsgl.data.loading import ImageDataset

    S = TypeVar("S", bound=Step)


def reads(kind: str | None, beside: str = "") -> Callable[[Any], Any]:
    """For an option of files: each is checked against its seal, and so is the file with the suffix ``beside``.

    With the kind ``None``, what it was made from is not compared with the other files.
    """

    def check(value: Path | Sequence[Path] | None) -> Path | Sequence[Path] | None:
        for path in [value] if isinstance(value, Path) else value or ():
            seals.check(path, kind)
            if beside:
                seals.check(path.with_suffix(beside), kind)
        return value

    return check


Settings = Annotated[str, typer.Option("--settings", help="What the step depends on, as JSON or @file.")]
Out = Annotated[Path, typer.Option("--out", help="The output file. It appears when it is complete.")]
IndexFile = Annotated[Path, typer.Option("--index", callback=reads("index"), help="The data set's index.")]
Root = Annotated[Path, typer.Option("--root", help="The data set's folder.")]
Weights = Annotated[Path, typer.Option("--weights", callback=reads("weights"), help="State dict of the network.")]
WeightsFiles = Annotated[
    list[Path],
    typer.Option("--weights", callback=reads("weights"), help="State dicts …/<variant>/network.pt. Repeatable."),
]
StatisticsFile = Annotated[
    Path | None, typer.Option("--statistics", callback=reads("statistics"), help="Feature statistics of the network.")
]
MapsFiles = Annotated[
    list[Path],
    typer.Option(
        "--maps", callback=reads("maps"), help="Stored maps: …/<variant>/maps/<method>/<shard>.parquet. Repeatable."
    ),
]
BottleneckFile = Annotated[
    Path | None, typer.Option("--bottleneck", callback=reads("bottleneck"), help="L^ib of the pairs.")
]
Gpu = Annotated[int, typer.Option("--gpu", help="0: CPU; otherwise CUDA.", envvar="IBSGL_GPU")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images at a time. It changes results only by rounding.")
]
Records = Annotated[Path | None, typer.Option("--records", help="Folder for the step's record, which MLflow shows.")]
Shard = Annotated[int, typer.Option("--shard", min=0, help="Number of the shard, from 0.")]
ModelName = Annotated[str, typer.Option("--model", help="The model's name in the config.")]
Variant = Annotated[str, typer.Option("--variant", help="The variant's name: control, guided, or one of the config.")]
Replicate = Annotated[int, typer.Option("--replicate", min=0, help="Number of the replicate, from 0.")]
Evaluations = Annotated[
    list[Path],
    typer.Option(
        "--evaluation",
        callback=reads("evaluation"),
        help="Measured values: <model>/<replicate>/evaluation/<shard>. Repeatable.",
    ),
]
ConfigFiles = Annotated[
    list[Path],
    typer.Option("--config", help="The config file. A further file changes some keys of the first. Repeatable."),
]
DEFAULT_CONFIG = [Path("config/shapes.yaml")]


def parse(kind: type[S], settings: str) -> S:
    """The step's settings from the option ``--settings``. The files of the other options are checked to belong together."""
    seals.check_together()
    try:
        text = Path(settings[1:]).read_text(encoding="utf-8") if settings.startswith("@") else settings
        return kind.parse(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--settings") from None


def device_of(gpu: int) -> torch.device:
    """The CPU, or a GPU that no other step uses."""
    import torch

    from ibsgl import devices

    return devices.lease() if gpu else torch.device("cpu")


def dataset(index_file: Path, root: Path, size: int) -> ImageDataset:
    """The data set at the network's input size."""
    from ibsgl.data.index import Index
    from ibsgl.data.loading import ImageDataset

    return ImageDataset(Index.load(index_file), root, size)


def load_statistics(path: Path, device: torch.device) -> FeatureStatistics:
    """The feature statistics in the file ``path``."""
    from ibsgl.bottleneck import FeatureStatistics

    state = files.read_tensors(path)
    with files.named(path):
        statistics = FeatureStatistics.from_state_dict(state)
    return statistics.to(device)


def load_bottleneck(path: Path, *splits: str) -> list[torch.Tensor]:
    """L^ib of the pairs of each of ``splits``, from the file ``path``."""
    l_ib = files.read_tensors(path)
    if not isinstance(l_ib, dict) or not l_ib.keys() >= set(splits):
        raise ValueError(f"{path} has no L^ib of this benchmark; give a file of ibsgl bottleneck")
    return [l_ib[split] for split in splits]


def write_record(
    records: Path | None,
    result_id: str,
    kind: str,
    settings: Mapping[str, Any],
    *,
    started: float,
    metrics: Mapping[str, float],
    tags: Mapping[str, Any],
    history: Sequence[Mapping[str, float]] = (),
    artifacts: Sequence[Path] = (),
    seconds: float | None = None,
) -> None:
    """The record of this step, if a folder for records is given; see :func:`ibsgl.provenance.write_record`."""
    if records is None:
        return
    from ibsgl import provenance

    provenance.write_record(
        records,
        result_id,
        kind,
        settings=settings,
        metrics=metrics,
        history=list(history),
        artifacts=[str(path) for path in artifacts],
        tags=tags,
        started=started,
        seconds=time.time() - started if seconds is None else seconds,
    )
