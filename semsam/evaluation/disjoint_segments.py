"""Segments that do not overlap, as runs of pixels: overlaps of two such divisions of an image, without dense maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from semsam.data import rle


def with_pixels(masks: Sequence[bytes], height: int, width: int) -> Bool[np.ndarray, " m"]:
    """Which of the masks a map of segments would show at all.

    Raises `ValueError` where two masks share a pixel: what needs a division of the image would count it twice.
    """
    starts, stops, owner = _runs(masks, height, width)
    _check_sorted(starts, stops)
    return np.bincount(owner, minlength=len(masks)) > 0


def overlaps(
    truth: Sequence[bytes], predicted: Sequence[bytes], height: int, width: int
) -> Int64[np.ndarray, "truth_plus_1 predicted_plus_1"]:
    """Pixels in common of every true and every predicted segment; the last row and column are what lies in none.

    Raises `ValueError` where two segments of one side share a pixel.
    """
    points, sides = [], []
    for masks in (truth, predicted):
        starts, stops, owner = _runs(masks, height, width)
        _check_sorted(starts, stops)
        # Where a label begins to hold: a run's owner at its start, nobody at its end.  A run that starts where
        # another stops comes later in the order, so its owner is the one that is left.
        edges = np.stack([starts, stops], 1).reshape(-1)
        labels = np.stack([owner, np.full_like(owner, len(masks))], 1).reshape(-1)
        points.append(np.concatenate([[0], edges]))
        sides.append(np.concatenate([[len(masks)], labels]))
    grid = np.sort(np.concatenate([*points, [height * width]]))
    lengths = np.diff(grid)  # Of equal points all but the last begin nothing.
    held = [
        side[np.searchsorted(point, grid[:-1], side="right") - 1] for point, side in zip(points, sides, strict=True)
    ]
    shape = len(truth) + 1, len(predicted) + 1
    cell = held[0] * shape[1] + held[1]
    counts: Float64[np.ndarray, " cells"] = np.bincount(cell, weights=lengths, minlength=shape[0] * shape[1])
    return counts.astype(np.int64).reshape(shape)


def _runs(
    masks: Sequence[bytes], height: int, width: int
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Start, stop and mask of every run of pixels inside, in the order of starts."""
    ends, owner = rle.toggles_of_many(masks, height, width)
    first_of_mask = np.searchsorted(owner, owner)
    place = np.arange(len(ends)) - first_of_mask
    is_stop = place % 2 == 1
    stops, owner = ends[is_stop], owner[is_stop]
    starts = ends[np.flatnonzero(is_stop) - 1]
    has_pixels = stops > starts
    starts, stops, owner = starts[has_pixels], stops[has_pixels], owner[has_pixels]
    order = np.argsort(starts, kind="stable")
    return starts[order], stops[order], owner[order]


def _check_sorted(starts: Int64[np.ndarray, " r"], stops: Int64[np.ndarray, " r"]) -> None:
    if (starts[1:] < stops[:-1]).any():
        raise ValueError("segments overlap")
