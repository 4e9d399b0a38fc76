"""Smaller copies of records: image, masks and boxes together, so that they still lie on each other."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import UInt8

from pipelines.prepare.many_masks import resize as resize_masks
from pipelines.prepare.validate import Fault, without
from pipelines.sources.source import Read
from semsam.data import rle
from semsam.data.images import decode_jpeg, decode_jpeg_eighths, encode_jpeg
from semsam.data.schema import Kind, Record, Region

# One task is one core; OpenCV's own threads would only fight with the other tasks.
cv2.setNumThreads(1)


def resize(read: Read, max_long_side: int, jpeg_quality: int) -> Read:
    """The record with its long side brought down to `max_long_side`; one that is no longer comes back untouched.

    Original size and native areas are kept.  Masks are sampled at pixel centres, and every pixel of the new image is
    the mean of exactly the area it covers, so both move alike.  Masks too thin to hold any pixel centre are dropped.
    Boxes that are tight around their masks stay so; others are scaled.
    """
    record = read.record
    height, width = fitted_size(record.height, record.width, max_long_side)
    if (height, width) == (record.height, record.width):
        return read
    regions, has_vanished = _resized_regions(record, height, width)
    vanished = {
        position: Fault("mask vanished in the resize", f"area {regions[position].area:g} in the original")
        for position in has_vanished
    }
    pixels = _decode_reduced(record, height, width)
    smaller = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
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


def _decode_reduced(record: Record, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image, or half, a quarter or an eighth of it where that is enough and divides its size.

    The decoder rounds sizes that do not divide up to whole pixels, which would shift image against masks.
    """
    for eighths in (1, 2, 4):
        sides = ((record.height, height), (record.width, width))
        if all(old * eighths % 8 == 0 and old * eighths >= new * 8 for old, new in sides):
            return decode_jpeg_eighths(record.image, eighths)
    return decode_jpeg(record.image)


def _resized_regions(record: Record, height: int, width: int) -> tuple[tuple[Region, ...], list[int]]:
    """The regions, and which of them have no pixel left."""
    masks = [region.rle for region in record.regions if region.rle is not None]
    counts, boxes = resize_masks(masks, record.height, record.width, height, width)
    of_masks = zip(counts, boxes.tolist(), strict=True)
    y, x = height / record.height, width / record.width
    regions, vanished = [], []
    for position, region in enumerate(record.regions):
        x1, y1, x2, y2 = region.box_xyxy
        scaled = x1 * x, y1 * y, x2 * x, y2 * y
        if region.rle is None:
            regions.append(region._replace(box_xyxy=scaled))
            continue
        smaller, box = next(of_masks)
        if box[0] == box[2]:
            vanished.append(position)
        resized_box = scaled if _has_box_of_its_own(region, record) else tuple(box)
        regions.append(region._replace(rle=smaller, box_xyxy=resized_box))
    return tuple(regions), vanished


def _has_box_of_its_own(region: Region, record: Record) -> bool:
    """Whether an instance was annotated with a box that is not the tight one of its mask."""
    if region.kind is not Kind.INSTANCE or region.rle is None:
        return False
    return region.box_xyxy != rle.box_xyxy(region.rle, record.height, record.width)
