"""The content of a data set without its pixels: one row per image and class that it shows, in up to four splits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ibsgl.files import named
from ibsgl.randomness import derive_seed

# further: images that only the accuracy is measured on. Only generated data sets have them.
SPLITS = ("train", "held_out", "test", "further")

_SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "image_id": pa.string(),
        "class_name": pa.string(),
        "target": pa.int64(),
        "boxes": pa.list_(pa.list_(pa.int32())),
        "width": pa.int64(),
        "height": pa.int64(),
        "file": pa.string(),
        "sha256": pa.string(),
        "mask_sha256": pa.string(),
        "difficult": pa.list_(pa.int64()),
    }
)


# What the file's metadata has.
_FACTS = {"class_names", "digest"}


@dataclass(frozen=True, eq=False)
class Index:
    """The content of a data set without its pixels.

    Attributes:
        class_names: the K names. A target is a position in this list.
        digest: SHA-256 of the splits and of the bytes of every annotation, image and mask that is used.
        table: one row per image and class that it shows: ``split`` (one of :data:`SPLITS`), ``image_id``, ``class_name``,
            ``target``, ``boxes`` (list of [x0, y0, x1, y1], 0-based and half-open), ``width`` and ``height`` of the image's
            file, ``file`` (the image's path below the root), ``sha256`` and ``mask_sha256`` (those of the files of the image
            and of its mask; empty without a mask) and ``difficult`` (the targets of the classes whose
            objects in this image are all marked difficult). Lengths are in pixels of the file. The order is that of the
            splits, then of the images in their list, then of the targets.
    """

    class_names: tuple[str, ...]
    digest: str
    table: pd.DataFrame

    def save(self, path: Path) -> None:
        """Write as Parquet. The metadata of the schema has all attributes except the table."""
        table = pa.Table.from_pandas(self.table, schema=_SCHEMA, preserve_index=False)
        facts = {"class_names": self.class_names, "digest": self.digest}
        table = table.replace_schema_metadata({"ibsgl": json.dumps(facts, ensure_ascii=False)})
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read a file of :meth:`save`. ``ValueError`` if ``path`` is another Parquet file, or an index of an older version."""
        with named(path):
            table = pq.read_table(path)
            table.validate(full=True)
            facts = json.loads((table.schema.metadata or {}).get(b"ibsgl", "{}"))
            texts = [*facts["class_names"], facts["digest"]] if set(facts) >= _FACTS else [None]
            if table.schema != _SCHEMA or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{path} is not a data index; build it again")
            lists = ["boxes", "difficult"]
            frame = table.drop_columns(lists).to_pandas()
            for name in lists:
                frame.insert(_SCHEMA.get_field_index(name), name, table[name].to_pylist())
        return cls(tuple(facts["class_names"]), facts["digest"], frame)


def as_table(rows: Mapping[str, Sequence[dict]]) -> pd.DataFrame:
    """:attr:`Index.table` from the rows of each split. The rows have all columns except ``split``.

    Without ``sha256`` no step checks that the image is that of the index. Without ``mask_sha256`` the image has no mask.

    Raises:
        ValueError: a row has a key that is no column.
    """
    keys = {key for of_split in rows.values() for row in of_split for key in row}
    if unknown := sorted(keys - set(_SCHEMA.names)):
        raise ValueError(f"the index has no column {unknown[0]!r}; its columns are {', '.join(_SCHEMA.names)}")
    return pd.DataFrame(
        [{"split": split, "sha256": "", "mask_sha256": "", **row} for split in SPLITS for row in rows.get(split, ())],
        columns=_SCHEMA.names,
    )


def set_aside(ids: Sequence[str], held_out: float, seed: int) -> set[str]:
    """The share ``held_out`` of the training images ``ids``. ``ValueError`` if that is no image, or all of them."""
    # Sorted by a hash of the id, so that the choice does not depend on the order of the list.
    ranked = sorted(ids, key=lambda image_id: (derive_seed(seed, "held_out", image_id), image_id))
    aside = set(ranked[: round(held_out * len(ids))])
    if held_out > 0 and not aside:
        raise ValueError(f"held_out: {held_out} of the {len(ids)} training images is less than one image; raise it")
    if len(aside) == len(ids):
        raise ValueError(f"held_out: {held_out} of the {len(ids)} training images leaves none to train on")
    return aside


def shard(pairs: pd.DataFrame, number: int, shards: int) -> pd.DataFrame:
    """The pairs of every ``shards``-th image, from image ``number`` on. An image's classes stay together.

    Raises:
        ValueError: there is no shard ``number``.
    """
    if not 0 <= number < shards:
        raise ValueError(f"there is no shard {number} of {shards}; they are numbered from 0")
    image = pairs.groupby("image_id", sort=False).ngroup()
    return pairs[image % shards == number]


def mask_path(root: Path, image_id: str) -> Path:
    """The path of the image's class mask, if it has one."""
    return Path(root) / "SegmentationClass" / f"{image_id}.png"
