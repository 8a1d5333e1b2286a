"""Saliency maps on disk: one Parquet file per method and shard of the test pairs.

Nothing is lost. If a method has ``coarse`` (:class:`ibsgl.attribution.Attribution`), its small maps are stored, and resized
when they are read. The bits of the float32 numbers are taken as integers. Where maps are smooth, their second differences are
stored: they are small numbers, which compress well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, Field, ValidationError

from ibsgl.attribution.registry import Attribution
from ibsgl.files import named
from ibsgl.networks.split import upsample

_IDENTITY = {"image_id": pa.string(), "target": pa.int64()}
# Along which differences are taken, one after the other.
_AXES = (1, 2, 1, 2)
_CPU = torch.device("cpu")
# So that the product of two fits into Arrow's 32 bits.
_Side: TypeAlias = Annotated[int, Field(ge=1, le=2**15)]


class _Facts(BaseModel):
    """The metadata of a file.

    Attributes:
        labels: by method, its label.
        size: side of a finished map.
        sides: by method, height and width of a stored map.
        differences: the methods whose maps are stored as differences.
        settings: of the step that computed the maps.
    """

    labels: dict[str, str]
    size: _Side
    sides: dict[str, tuple[_Side, _Side]]
    differences: list[str]
    settings: dict[str, Any]

    def arrow_schema(self) -> pa.Schema:
        """That of a file with these facts."""
        kinds = {name: pa.list_(pa.uint32(), height * width) for name, (height, width) in self.sides.items()}
        return pa.schema(_IDENTITY | kinds, metadata={"ibsgl": json.dumps(self.model_dump())})

    @classmethod
    def of(cls, schema: pa.Schema) -> Self | None:
        """The facts of a file with ``schema``; ``None`` if it is not one of :func:`write_maps`."""
        try:
            facts = cls.model_validate_json((schema.metadata or {}).get(b"ibsgl", b""))
        except ValidationError:
            return None
        return facts if facts.labels.keys() == facts.sides.keys() and schema.equals(facts.arrow_schema()) else None


def write_maps(
    path: Path,
    batches: Iterator[tuple[pd.DataFrame, dict[str, torch.Tensor]]],
    methods: Mapping[str, Attribution],
    size: int,
    settings: Mapping[str, Any],
) -> None:
    """Write maps batch by batch to a Parquet file with one row per pair and one column per method.

    The bytes of the numbers are split by significance and compressed. The file's metadata has the methods' labels, the
    maps' sides and ``settings``.

    Args:
        path: the file.
        batches: those of :func:`ibsgl.maps.compute_maps`, finished or coarse.
        methods: by name.
        size: side of a finished map in pixels.
        settings: the settings of the step that computed the maps.
    """
    first = next(batches, None)
    sides = {name: (size, size) if first is None else tuple(first[1][name].shape[1:]) for name in methods}
    labels = {name: method.label for name, method in methods.items()}
    differences = [name for name in methods if first is not None and _shrinks(first[1][name].numpy())]
    facts = _Facts(labels=labels, size=size, sides=sides, differences=differences, settings=dict(settings))
    schema = facts.arrow_schema()
    kinds = {name: schema.field(name).type for name in methods}
    leaves = [f"{name}.list.element" for name in methods]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        use_byte_stream_split=leaves,
    ) as writer:
        for rows, maps in chain([] if first is None else [first], batches):
            columns = [pa.array(rows[key].to_numpy(), kind) for key, kind in _IDENTITY.items()]
            columns += [
                pa.FixedSizeListArray.from_arrays(
                    (_differences if name in differences else _bits)(maps[name].numpy()).ravel(), type=kind
                )
                for name, kind in kinds.items()
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _bits(maps: np.ndarray) -> np.ndarray:
    """Maps (B,h,w) float32 → their bits (B,h,w) uint32."""
    return np.ascontiguousarray(maps, np.float32).view(np.uint32)


def _shrinks(maps: np.ndarray) -> bool:
    """Whether the differences of maps (B,h,w) compress better than the bits. Those of a rough map do not."""
    plain, differences = (
        pa.compress(np.ascontiguousarray(form(maps).ravel().view(np.uint8).reshape(-1, 4).T), "zstd").size
        for form in (_bits, _differences)
    )
    return differences < plain


def _differences(maps: np.ndarray) -> np.ndarray:
    """Maps (B,h,w) float32 → (B,h,w) uint32, their bits as differences; :func:`_undo` is the reverse.

    Second differences are taken along both axes, modulo 2³². They are small where a map is a sum of linear pieces, as RISE's
    is. The sign is moved to the lowest bit, so that small differences of both signs have zeros in their upper bytes.
    """
    bits = _bits(maps)
    for axis in _AXES:
        bits = np.diff(bits, axis=axis, prepend=np.zeros_like(bits.take([0], axis)))
    return (bits << 1) ^ -(bits >> 31)


def _undo(differences: np.ndarray) -> np.ndarray:
    """(B,h,w) uint32 of :func:`_differences` → maps (B,h,w) float32."""
    bits = (differences >> 1) ^ -(differences & 1)
    for axis in _AXES:
        bits = bits.cumsum(axis, dtype=np.uint32)
    return bits.view(np.float32)


def _read(
    file: pq.ParquetFile,
    path: Path,
    facts: _Facts,
    names: Sequence[str],
    batch_size: int,
    device: torch.device,
) -> Iterator[dict[str, torch.Tensor]]:
    """{method: saliency (B,H,W)} for successive ``batch_size`` rows of ``file``, which is that of ``path``."""
    rows, size = 0, (facts.size, facts.size)
    with named(path):
        for part in file.iter_batches(batch_size, columns=list(names)):
            maps = {}
            for name, column in zip(part.schema.names, part.columns, strict=True):
                bits = column.flatten().to_numpy().reshape(-1, *facts.sides[name])
                values = _undo(bits) if name in facts.differences else bits.view(np.float32).copy()
                saliency = torch.from_numpy(values).to(device)
                maps[name] = saliency if saliency.shape[1:] == size else upsample(saliency, size)
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
        self._files: list[tuple[pq.ParquetFile, Path, _Facts, list[str]]] = []
        for path in files:
            # With pre_buffer the whole file would be in memory in the end.
            with named(path):
                file = pq.ParquetFile(path, pre_buffer=False)
                facts = _Facts.of(file.schema_arrow)
                if facts is None:
                    raise ValueError(f"{path} has no saliency maps of this benchmark; delete it and run again")
                names = [name for name in facts.labels if methods is None or name in methods]
                if file.read(list(_IDENTITY)).to_pydict() != {key: pairs[key].tolist() for key in _IDENTITY}:
                    raise ValueError(f"{path}: the maps do not belong to this index; delete the file and run again")
            self.labels |= {name: facts.labels[name] for name in names}
            self.settings |= dict.fromkeys(names, facts.settings)
            self._files.append((file, path, facts, names))
        if missing := sorted(set(methods or ()) - self.labels.keys()):
            raise ValueError(f"{files[0].parent}: there are no maps of {missing[0]}; delete the folder and run again")

    def batches(self, batch_size: int, device: torch.device = _CPU) -> Iterator[dict[str, torch.Tensor]]:
        """{method: saliency (B,H,W)} on ``device`` for successive ``batch_size`` pairs, all at the size of the image.

        Small maps are resized on ``device``. On the device that computed them, the result equals the method's to the bit.
        """
        readers = [_read(*of_file, batch_size, device) for of_file in self._files if of_file[-1]]
        for parts in zip(*readers, strict=True):
            yield {name: saliency for part in parts for name, saliency in part.items()}
