"""The three forms of COCO's `segmentation`: polygons, run lengths, and run lengths packed into a string."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipelines.sources.regions import Regions
from pipelines.sources.source import BadSample
from pipelines.sources.values import as_coordinates, as_ints, as_list, as_size, shown
from semsam.data import rle


def read_segmentation(segmentation: object, annotation_id: str, regions: Regions) -> bytes | None:
    """COCO counts, strings unchanged; None for a mask that was dropped.

    Drops "empty mask", "broken polygon" and "broken RLE"; raises `BadSample` "RLE size differs from image".
    """
    is_rle = isinstance(segmentation, dict)
    try:
        make = _run_lengths if is_rle else _polygons
        counts = make(segmentation, annotation_id, regions)
    except ValueError as error:
        regions.drop("broken RLE" if is_rle else "broken polygon", f"annotation {annotation_id}: {error}")
        return None
    if not counts:
        regions.drop("empty mask", f"annotation {annotation_id}: {shown(segmentation)}")
    return counts


def _run_lengths(segmentation: Any, annotation_id: str, regions: Regions) -> bytes | None:
    size = [as_size(number) for number in as_list(segmentation.get("size"))]
    height, width = regions.image.height, regions.image.width
    if len(size) == 2 and size != [height, width]:
        detail = f"{regions.file}: annotation {annotation_id}: RLE {size}, image [{height}, {width}]"
        raise BadSample("RLE size differs from image", regions.sample_id, detail)
    if len(size) != 2:
        raise ValueError(f"size {shown(size)} is not height and width")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        return counts.encode("ascii")
    runs = as_ints(counts)
    if any(not 0 <= run <= height * width for run in runs):
        raise ValueError(f"a run of {shown(counts)} does not fit the image")
    return rle.encode_counts(np.array(runs, np.int64))


def _polygons(segmentation: Any, annotation_id: str, regions: Regions) -> bytes | None:
    """The union of a list of polygons, or of a single one without the outer list; None where nothing is enclosed."""
    if segmentation is None:
        return None
    rows = as_list(segmentation)
    is_single = rows and not any(isinstance(row, list) for row in rows)
    polygons = [as_coordinates(row) for row in ([rows] if is_single else rows)]
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError(f"an odd number of coordinates in {shown(segmentation)}")
    # Two points or fewer enclose nothing; and pycocotools would take four numbers for a box.
    found = [polygon for polygon in polygons if len(polygon) >= 6]
    if not found:
        return None
    for polygon in polygons:
        if len(polygon) < 6:
            regions.drop("polygon of two points or fewer", f"annotation {annotation_id}: {shown(polygon)}")
    pieces = coco_mask.frPyObjects(found, regions.image.height, regions.image.width)
    counts: bytes = coco_mask.merge(pieces)["counts"]
    return counts
