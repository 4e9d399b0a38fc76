"""A mask with its names: what a model finds in an image without being asked for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NamedMask:
    """Something found in an image; names are positions in the vocabulary."""

    rle: bytes  # COCO's compressed `counts` at the image's own size.
    box_xyxy: tuple[float, float, float, float]  # In the image's pixels.
    object_category: int
    part_category: int | None  # None: a whole object.
    score: float
