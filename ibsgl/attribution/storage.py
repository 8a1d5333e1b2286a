"""Saliency maps on disk: one Parquet file per method and shard of the test pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ibsgl.attribution.registry import Attribution
from ibsgl.files import named

_IDENTITY = {"image_id": pa.string(), "target": pa.int64()}


def write_maps(
    path: Path,
    batches: Iterator[tuple[pd.DataFrame, dict[str, torch.Tensor]]],
    methods: Mapping[str, Attribution],
    size: int,
    settings: Mapping[str, Any],
) -> None:
    """Write maps batch by batch to a Parquet file with one row per pair and one column per method.

    Maps are stored without loss as float32, with their bytes split by significance and compressed. The file's metadata has the
    methods' labels and ``settings``.

    Args:
        path: the file.
        batches: those of :func:`ibsgl.maps.compute_maps`.
        methods: by name.
        size: side of a map in pixels.
        settings: the settings of the step that computed the maps.
    """
    labels = {name: method.label for name, method in methods.items()}
    saliency = pa.list_(pa.float32(), size * size)
    schema = pa.schema(
        _IDENTITY | dict.fromkeys(methods, saliency),
        metadata={"ibsgl": json.dumps({"labels": labels, "settings": settings})},
    )
    leaves = [f"{name}.list.element" for name in methods]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        use_byte_stream_split=leaves,
    ) as writer:
        for rows, maps in batches:
            columns = [pa.array(rows[key].to_numpy(), kind) for key, kind in _IDENTITY.items()]
            columns += [
                pa.FixedSizeListArray.from_arrays(maps[name].contiguous().numpy().ravel(), type=saliency)
                for name in methods
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _has_maps(schema: pa.Schema, facts: object) -> bool:
    """Whether these are schema and metadata of :func:`write_maps`."""
    if not isinstance(facts, dict) or not all(isinstance(facts.get(key), dict) for key in ("labels", "settings")):
        return False
    columns = dict(zip(schema.names, schema.types, strict=True))
    saliency = [columns.pop(name, None) for name in facts["labels"]]
    return columns == _IDENTITY and all(
        kind is not None and pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32() for kind in saliency
    )


def _read(file: pq.ParquetFile, path: Path, names: Sequence[str], batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """{method: saliency (B,H,W)} for successive ``batch_size`` rows of ``file``, which is that of ``path``."""
    rows = 0
    with named(path):
        for part in file.iter_batches(batch_size, columns=list(names)):
            maps = {}
            for name, column in zip(part.schema.names, part.columns, strict=True):
                values = column.flatten().to_numpy()
                side = math.isqrt(column.type.list_size)
                maps[name] = torch.from_numpy(values.reshape(-1, side, side).copy())
            rows += part.num_rows
            yield maps
        if rows != file.metadata.num_rows:
            raise ValueError(f"{path} has {rows} maps for {file.metadata.num_rows} pairs; delete it and run again")


class Maps:
    """The maps of one shard of test pairs. They are read a few at a time from the files of :func:`write_maps`.

    Args:
        files: those of the shard. Each has the maps of other methods.
        pairs: the shard's pairs, in order.
        methods: the methods whose maps are read. ``None``: all.

    Raises:
        ValueError: the pairs of a file are not ``pairs``, or a method is missing.
    """

    def __init__(self, files: Sequence[Path], pairs: pd.DataFrame, methods: Sequence[str] | None = None):
        self.pairs = pairs
        self.labels: dict[str, str] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self._files: list[tuple[pq.ParquetFile, Path, list[str]]] = []
        for path in files:
            # With pre_buffer the whole file would be in memory in the end.
            with named(path):
                file = pq.ParquetFile(path, pre_buffer=False)
                facts = json.loads((file.schema_arrow.metadata or {}).get(b"ibsgl", b"{}"))
                if not _has_maps(file.schema_arrow, facts):
                    raise ValueError(f"{path} has no saliency maps of this benchmark; delete it and run again")
                names = [name for name in facts["labels"] if methods is None or name in methods]
                if file.read(list(_IDENTITY)).to_pydict() != {key: pairs[key].tolist() for key in _IDENTITY}:
                    raise ValueError(f"{path}: the maps do not belong to this index; delete the file and run again")
            self.labels |= {name: facts["labels"][name] for name in names}
            self.settings |= dict.fromkeys(names, facts["settings"])
            self._files.append((file, path, names))
        if missing := sorted(set(methods or ()) - self.labels.keys()):
            raise ValueError(f"{files[0].parent}: there are no maps of {missing[0]}; delete the folder and run again")

    def batches(self, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """{method: saliency (B,H,W)} for successive ``batch_size`` pairs."""
        readers = [_read(file, path, names, batch_size) for file, path, names in self._files if names]
        for parts in zip(*readers, strict=True):
            yield {name: saliency for part in parts for name, saliency in part.items()}
