"""What preparing does to all masks of an image at once: a hundred calls into numpy cost more than the work itself.

A mask is its *toggles*, as in `semsam.data.rle`; here those of all masks lie one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64

from semsam.data import rle


def boxes_xyxy(counts: Sequence[bytes], height: int, width: int) -> Float64[np.ndarray, "m 4"]:
    """The tight boxes of masks in pixel edges (largest index + 1); zeros for an empty mask.

    Raises `ValueError` when any of the masks is no RLE of this size.
    """
    ends, mask = rle.toggles_of_many(counts, height, width)
    return _boxes(*_cancelled(ends, mask, height * width), len(counts), height, width)


def resize(
    counts: Sequence[bytes], height: int, width: int, new_height: int, new_width: int
) -> tuple[list[bytes], Float64[np.ndarray, "m 4"]]:
    """The masks at a smaller size, nearest neighbour at pixel centres, and their boxes."""
    assert new_height <= height
    assert new_width <= width
    ends, mask = rle.toggles_of_many(counts, height, width)
    rows, cols = rle.nearest(height, new_height), rle.nearest(width, new_width)
    moved = rle.resample_toggles(ends, height, width, rows, cols)
    size = new_height * new_width
    toggles, mask = _cancelled(moved, mask, size)
    stops = np.searchsorted(mask, np.arange(len(counts) + 1))
    resized = [
        rle.encode_counts(np.diff(toggles[start:stop], prepend=0, append=size))
        for start, stop in pairwise(stops.tolist())
    ]
    return resized, _boxes(toggles, mask, len(counts), new_height, new_width)


def _cancelled(
    toggles: Int64[np.ndarray, " r"], mask: Int64[np.ndarray, " r"], size: int
) -> tuple[Int64[np.ndarray, " s"], Int64[np.ndarray, " s"]]:
    """The toggles without those that occur twice in a mask, and without those past the last pixel."""
    is_inside = toggles < size
    toggles, mask = toggles[is_inside], mask[is_inside]
    is_first = np.ones(len(toggles), bool)
    is_first[1:] = (toggles[1:] != toggles[:-1]) | (mask[1:] != mask[:-1])
    first = np.flatnonzero(is_first)
    kept = first[np.diff(first, append=len(toggles)) % 2 == 1]
    return toggles[kept], mask[kept]


def _boxes(
    toggles: Int64[np.ndarray, " r"], mask: Int64[np.ndarray, " r"], num_masks: int, height: int, width: int
) -> Float64[np.ndarray, "m 4"]:
    """Boxes of masks whose toggles ascend strictly; every second one starts a run."""
    boxes = np.zeros((num_masks, 4))
    if not len(toggles):
        return boxes
    present, first, count = np.unique(mask, return_index=True, return_counts=True)
    # A run that goes on to the image's end has no second toggle: it gets one.
    open_masks = count % 2 == 1
    toggles = np.insert(toggles, (first + count)[open_masks], height * width)
    count = count + open_masks
    first = np.cumsum(count) - count
    starts, stops = toggles[0::2], toggles[1::2] - 1
    left, right = starts // height, stops // height
    is_wrapping = left != right  # It goes on into the next column, so it touches the image's bottom and its top.
    top = np.where(is_wrapping, 0, starts - left * height)
    bottom = np.where(is_wrapping, height - 1, stops - right * height)
    run = first // 2
    boxes[present, 0] = np.minimum.reduceat(left, run)
    boxes[present, 1] = np.minimum.reduceat(top, run)
    boxes[present, 2] = np.maximum.reduceat(right, run) + 1
    boxes[present, 3] = np.maximum.reduceat(bottom, run) + 1
    return boxes
