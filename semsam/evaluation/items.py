"""What an evaluation keeps of each image: what the model answered and what was true there.

Numbers are pure functions of items in the order of their images; so it does not matter which worker answered what, or
when.  Masks are run lengths or numbers about them, never pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64

from semsam.data.named_mask import NamedMask
from semsam.data.schema import REGION, Region, plain_region, read_regions

ITEMS_VERSION = 1
BEST = 5  # Names that are kept of each answer, the likeliest first.

NAMED_MASK = pa.struct(
    [
        pa.field("rle", pa.large_binary(), nullable=False),  # COCO's compressed `counts` at the image's own size.
        pa.field("box_xyxy", pa.list_(pa.float32(), 4), nullable=False),  # As the model says, in the image's pixels.
        pa.field("object_category", pa.int32(), nullable=False),
        pa.field("part_category", pa.int32()),  # Null: a whole object.
        pa.field("score", pa.float32(), nullable=False),
    ]
)


class Ask(IntEnum):
    """How a region is asked for."""

    INNERMOST = 0  # A click on its pixel farthest from its edge.
    RANDOM = 1  # A click on any of its pixels.
    BOX = 2


@dataclass(frozen=True)
class Prompted:
    """The `p` prompts put to an image, and of each the model's `k` levels; NaN is what there is no truth for."""

    ask: Int32[np.ndarray, " p"]  # An `Ask`.
    region: Int32[np.ndarray, " p"]  # Which of the image's regions is asked for.
    click_xy: Int32[np.ndarray, "p 2"]  # A pixel; -1 for boxes.
    chosen: Int32[np.ndarray, " p"]  # The level to answer with where only one may be.
    iou_predictions: Float32[np.ndarray, "p k"]
    ious: Float32[np.ndarray, "p k"]  # True IoU with the region asked for; NaN where that has a box only.
    # The regions that teach and lie under a click, the one asked for among them; those of prompt i are
    # under[under_starts[i] : under_starts[i + 1]].  None under a box.
    under_starts: Int64[np.ndarray, " p+1"]
    under: Int32[np.ndarray, " u"]
    under_ious: Float32[np.ndarray, "u k"]
    level_ious: Float32[np.ndarray, "p k k"]  # Of the levels' masks with each other; two empty ones are the same.
    # Names are positions in the dataset's vocabulary, -1 past its last; scores are of the level.
    objects: Int32[np.ndarray, "p k best"]
    object_scores: Float32[np.ndarray, "p k best"]
    true_object_score: Float32[np.ndarray, "p k"]  # Of the region's own name; NaN where it has none.
    parts: Int32[np.ndarray, "p k best"]
    part_scores: Float32[np.ndarray, "p k best"]
    true_part_score: Float32[np.ndarray, "p k"]

    def __len__(self) -> int:
        return len(self.ask)

    def take(self, kept: Int64[np.ndarray, " t"]) -> Prompted:
        """Some of the prompts, in this order."""
        counts = np.diff(self.under_starts)[kept]
        starts = np.concatenate([[0], np.cumsum(counts)])
        under = np.arange(starts[-1]) + np.repeat(self.under_starts[kept] - starts[:-1], counts)
        ragged = {"under_starts": starts, "under": self.under[under], "under_ious": self.under_ious[under]}
        others = vars(self).keys() - ragged.keys()
        return Prompted(**ragged, **{name: getattr(self, name)[kept] for name in others})


@dataclass(frozen=True)
class ImageItem:
    """One image: its truth, as the record has it, and what was answered.  None: was not asked."""

    sample_id: str
    height: int
    width: int
    # Of the image as annotated: the sizes that COCO's areas refer to.
    original_height: int
    original_width: int
    regions: tuple[Region, ...]
    checked_objects: tuple[int, ...] | None = None
    checked_parts: tuple[int, ...] | None = None
    not_exhaustive_objects: tuple[int, ...] | None = None
    prompted: Prompted | None = None
    instances: tuple[NamedMask, ...] | None = None  # Things, or objects and parts; the best score first.
    panoptic: tuple[NamedMask, ...] | None = None  # Segments without overlaps.
    semantic: tuple[NamedMask, ...] | None = None  # At most one mask of each object name, without overlaps.


_COLUMNS = {
    "ask": (pa.int32(), np.int32),
    "region": (pa.int32(), np.int32),
    "click_xy": (pa.int32(), np.int32),
    "chosen": (pa.int32(), np.int32),
    "iou_predictions": (pa.float32(), np.float32),
    "ious": (pa.float32(), np.float32),
    "under_starts": (pa.int64(), np.int64),
    "under": (pa.int32(), np.int32),
    "under_ious": (pa.float32(), np.float32),
    "level_ious": (pa.float32(), np.float32),
    "objects": (pa.int32(), np.int32),
    "object_scores": (pa.float32(), np.float32),
    "true_object_score": (pa.float32(), np.float32),
    "parts": (pa.int32(), np.int32),
    "part_scores": (pa.float32(), np.float32),
    "true_part_score": (pa.float32(), np.float32),
}
# Arrays are flat; their shapes follow from the number of levels and their lengths.
PROMPTED = pa.struct(
    [
        pa.field("levels", pa.int32(), nullable=False),
        *(pa.field(name, pa.list_(kind), nullable=False) for name, (kind, _) in _COLUMNS.items()),
    ]
)
ITEM = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("original_height", pa.int32(), nullable=False),
        pa.field("original_width", pa.int32(), nullable=False),
        pa.field("regions", pa.list_(REGION), nullable=False),
        pa.field("checked_objects", pa.list_(pa.int32())),
        pa.field("checked_parts", pa.list_(pa.int32())),
        pa.field("not_exhaustive_objects", pa.list_(pa.int32())),
        pa.field("prompted", PROMPTED),
        pa.field("instances", pa.list_(NAMED_MASK)),
        pa.field("panoptic", pa.list_(NAMED_MASK)),
        pa.field("semantic", pa.list_(NAMED_MASK)),
    ],
    metadata={"semsam_items_version": str(ITEMS_VERSION)},
)


def to_table(items: list[ImageItem]) -> pa.Table:
    """The items as a table of one row per image."""
    return pa.Table.from_pylist([_row(item) for item in items], schema=ITEM)


def from_table(table: pa.Table) -> list[ImageItem]:
    """The inverse of `to_table`.  Raises `ValueError` for a table of another version."""
    version = (table.schema.metadata or {}).get(b"semsam_items_version", b"none").decode()
    if version != str(ITEMS_VERSION):
        raise ValueError(f"items of version {version}, not {ITEMS_VERSION}; evaluate again")
    items = []
    for index in range(len(table)):
        row = table.slice(index, 1).combine_chunks()
        values: dict[str, Any] = row.drop_columns(["regions", "prompted"]).to_pylist()[0]
        for name in ("checked_objects", "checked_parts", "not_exhaustive_objects"):
            values[name] = None if values[name] is None else tuple(values[name])
        for name in ("instances", "panoptic", "semantic"):
            values[name] = None if values[name] is None else tuple(_named_mask(one) for one in values[name])
        regions = read_regions(row["regions"].combine_chunks().flatten())
        items.append(ImageItem(regions=regions, prompted=_prompted(row["prompted"].combine_chunks()), **values))
    return items


def join_prompted(parts: Sequence[Prompted], levels: int) -> Prompted:
    """The prompts of an image one after the other; none of `levels` levels where there are no parts."""
    if not parts:
        shape = (0, levels)
        best, best_scores = np.zeros((*shape, BEST), np.int32), np.zeros((*shape, BEST), np.float32)
        none, scores = np.zeros(0, np.int32), np.zeros(shape, np.float32)
        starts, clicks, pairs = (
            np.zeros(1, np.int64),
            np.zeros((0, 2), np.int32),
            np.zeros((*shape, levels), np.float32),
        )
        return Prompted(
            *(none, none, clicks, none, scores, scores, starts, none, scores, pairs),
            *(best, best_scores, scores, best, best_scores, scores),
        )
    ends = np.cumsum([0, *(part.under_starts[-1] for part in parts)])
    moved = [part.under_starts[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
    names = [name for name in vars(parts[0]) if name != "under_starts"]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Prompted(under_starts=np.concatenate([*moved, ends[-1:]]), **joined)


def _row(item: ImageItem) -> dict[str, Any]:
    row = dict(vars(item))
    row["regions"] = [plain_region(region) for region in item.regions]
    if item.prompted is not None:
        columns = {name: getattr(item.prompted, name).reshape(-1) for name in _COLUMNS}
        row["prompted"] = {"levels": item.prompted.iou_predictions.shape[1], **columns}
    for name in ("instances", "panoptic", "semantic"):
        row[name] = None if row[name] is None else [vars(one) for one in row[name]]
    return row


def _named_mask(values: Mapping[str, Any]) -> NamedMask:
    return NamedMask(**{**values, "box_xyxy": tuple(values["box_xyxy"])})


def _prompted(column: pa.StructArray) -> Prompted | None:
    if column.null_count:
        return None
    fields = dict(zip(PROMPTED.names, column.flatten(), strict=True))
    levels = fields["levels"][0].as_py()
    shapes = {"click_xy": (2,), "level_ious": (levels, levels)}
    shapes |= dict.fromkeys(("objects", "object_scores", "parts", "part_scores"), (levels, BEST))
    shapes |= dict.fromkeys(("ask", "region", "chosen", "under_starts", "under"), ())
    arrays = {}
    for name, (_, kind) in _COLUMNS.items():
        flat = np.asarray(fields[name].flatten(), kind)
        shape = shapes.get(name, (levels,))
        arrays[name] = flat.reshape(len(flat) // max(int(np.prod(shape)), 1), *shape)
    return Prompted(**arrays)
