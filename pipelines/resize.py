"""Smaller copies of records: image, masks and boxes together, so that they still lie on each other."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from pipelines.sources.source import Read
from pipelines.validate import Fault, without
from semsam.data import rle
from semsam.data.images import decode_jpeg, encode_jpeg
from semsam.data.schema import Region

# One task is one core; OpenCV's own threads would only fight with the other tasks.
cv2.setNumThreads(1)


def resize(read: Read, max_long_side: int, jpeg_quality: int) -> Read:
    """The record with its long side brought down to `max_long_side`; one that is no longer comes back untouched.

    Original size and native areas are kept.  Masks are sampled at pixel centres, and every pixel of the new image is
    the mean of exactly the area it covers, so both move alike.  Masks too thin to hold any pixel centre are dropped.
    """
    record = read.record
    height, width = fitted_size(record.height, record.width, max_long_side)
    if (height, width) == (record.height, record.width):
        return read
    old_size, new_size = (record.height, record.width), (height, width)
    regions = tuple(_resized_region(region, old_size, new_size) for region in record.regions)
    vanished = {
        position: Fault("mask vanished in the resize", f"area {region.area:g} in the original")
        for position, region in enumerate(regions)
        if region.box_xyxy[0] == region.box_xyxy[2]
    }
    smaller = cv2.resize(decode_jpeg(record.image), (width, height), interpolation=cv2.INTER_AREA)
    resized = replace(
        record,
        image=encode_jpeg(np.asarray(smaller, np.uint8), jpeg_quality),
        height=height,
        width=width,
        regions=regions,
    )
    return Read(*without(resized, vanished, read.dropped))


def fitted_size(height: int, width: int, max_long_side: int) -> tuple[int, int]:
    """Height and width after fitting the long side into `max_long_side`, rounded, never larger and at least 1."""
    long_side = max(height, width)
    if long_side <= max_long_side:
        return height, width
    new_height, new_width = ((2 * side * max_long_side + long_side) // (2 * long_side) for side in (height, width))
    return max(1, new_height), max(1, new_width)


def _resized_region(region: Region, old_size: tuple[int, int], new_size: tuple[int, int]) -> Region:
    if region.rle is not None:
        counts = rle.resize(region.rle, *old_size, *new_size)
        return replace(region, rle=counts, box_xyxy=rle.box_xyxy(counts, *new_size))
    y, x = (new / old for new, old in zip(new_size, old_size, strict=True))
    x1, y1, x2, y2 = region.box_xyxy
    return replace(region, box_xyxy=(x1 * x, y1 * y, x2 * x, y2 * y))
