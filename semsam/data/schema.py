"""The contract on disk: one Arrow row per image, the same for all datasets.

`pipelines.sources` turn native files into `Record`s, `pipelines.prepare` writes them as Arrow IPC shards, and
`semsam.data.reader` and `semsam.evaluation` read nothing else.  Null means *not annotated*: what a record leaves null
teaches nothing, and nobody needs to know which dataset it came from to see that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple

import pyarrow as pa

SCHEMA_VERSION = 2  # 2: every row has a checksum, in a file beside its shard.

SPLITS = ("train", "val")


class Kind(StrEnum):
    """What sort of annotation a region is."""

    PANOPTIC = "panoptic"  # A segment of a panoptic map: thing or stuff, never overlapping another.
    INSTANCE = "instance"  # A whole object; beside panoptic segments it is there for AP alone.
    PART = "part"
    CLASS_AGNOSTIC = "class_agnostic"  # A mask without a name (SA-1B).
    DERIVED = "derived"  # An object mask made as the union of its parts (PartImageNet).


_KINDS = {kind.value: kind for kind in Kind}

REGION = pa.struct(
    [
        # The id in the native file, as text (COCO's integers exceed no int64, but PASCAL-Part has none at all).
        pa.field("annotation_id", pa.string(), nullable=False),
        # COCO compressed RLE `counts` in the stored image's own height and width; null where there are boxes only.
        pa.field("rle", pa.large_binary()),
        # Pixel edges in the stored image: x1 = max column + 1.  Tight around the mask where there is one, but for
        # COCO's instances: theirs is the annotated one, on which AP of boxes is measured.
        pa.field("box_xyxy", pa.list_(pa.float32(), 4), nullable=False),
        # Native area in *original* pixels: COCO's size classes are defined on it.
        pa.field("area", pa.float32(), nullable=False),
        # Indices into the manifest's vocabulary; null where the dataset gives no such name.
        pa.field("object_category", pa.int32()),
        pa.field("part_category", pa.int32()),
        # Index, in this record's regions, of the object that a part belongs to.
        pa.field("parent", pa.int32()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("is_thing", pa.bool_(), nullable=False),
        pa.field("is_crowd", pa.bool_(), nullable=False),
    ]
)

RECORD = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),  # JPEG
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("original_height", pa.int32(), nullable=False),
        pa.field("original_width", pa.int32(), nullable=False),
        pa.field("regions", pa.list_(REGION), nullable=False),
        # Federated datasets (PACO): names whose presence was checked, and those of them whose instances were not
        # all marked.  Null: every name of the vocabulary was checked, or marked exhaustively.
        pa.field("checked_objects", pa.list_(pa.int32())),
        pa.field("checked_parts", pa.list_(pa.int32())),
        pa.field("not_exhaustive_objects", pa.list_(pa.int32())),
    ],
    metadata={"semsam_schema_version": str(SCHEMA_VERSION)},
)


class Region(NamedTuple):  # An image of SA-1B has a hundred, and a frozen dataclass takes six times as long to make.
    """One mask or box of an image; fields as in `REGION`."""

    annotation_id: str
    rle: bytes | None
    box_xyxy: tuple[float, float, float, float]
    area: float
    kind: Kind
    object_category: int | None = None
    part_category: int | None = None
    parent: int | None = None
    is_thing: bool = True
    is_crowd: bool = False


@dataclass(frozen=True)
class Record:
    """One annotated image; fields as in `RECORD`."""

    dataset: str
    split: str
    sample_id: str
    image: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    regions: tuple[Region, ...] = field(default=())
    checked_objects: tuple[int, ...] | None = None
    checked_parts: tuple[int, ...] | None = None
    not_exhaustive_objects: tuple[int, ...] | None = None


def to_row(record: Record) -> pa.RecordBatch:
    """The record as a batch of one row, the unit in which shards are written and read."""
    row = {f.name: getattr(record, f.name) for f in fields(record)}
    row["regions"] = [plain_region(region) for region in record.regions]
    return pa.RecordBatch.from_pylist([row], schema=RECORD)


def from_row(row: pa.RecordBatch, index: int = 0) -> Record:
    """The record at `index` of a batch that has `RECORD`'s columns; the inverse of `to_row`."""
    row = row.slice(index, 1)
    values: dict[str, Any] = row.drop_columns(["regions"]).to_pylist()[0]
    for name in ("checked_objects", "checked_parts", "not_exhaustive_objects"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Record(regions=read_regions(row.column("regions").flatten()), **values)


def plain_region(region: Region) -> dict[str, Any]:
    """The region as Arrow takes it, a value of `REGION`."""
    return {name: _plain(value) for name, value in region._asdict().items()}


def read_regions(column: pa.StructArray) -> tuple[Region, ...]:
    """The regions of one row, read by column: half the time of going through a dict for each region."""
    columns = dict(zip(REGION.names, column.flatten(), strict=True))
    values = {name: columns[name].to_pylist() for name in columns if name != "box_xyxy"}
    corners = columns["box_xyxy"].flatten().to_pylist()
    values["box_xyxy"] = list(zip(*[iter(corners)] * 4, strict=True))
    values["kind"] = [_KINDS[kind] for kind in values["kind"]]
    return tuple(map(Region._make, zip(*(values[name] for name in Region._fields), strict=True)))


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return value
