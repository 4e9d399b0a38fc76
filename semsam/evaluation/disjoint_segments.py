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
    points, labels = [], []
    for masks in (truth, predicted):
        starts, stops, owner = _runs(masks, height, width)
        _check_sorted(starts, stops)
        # Where a label begins to hold: a run's owner at its start, nobody from its end on.
        points.append(np.concatenate([[0], np.stack([starts, stops], 1).reshape(-1)]))
        nobody = np.full_like(owner, len(masks))
        labels.append(np.concatenate([[len(masks)], np.stack([owner, nobody], 1).reshape(-1)]))
    is_truth = np.arange(len(points[0]) + len(points[1])) < len(points[0])
    at = np.concatenate(points)
    # Stable: where one run stops and the next starts, the owner of the latter is the one that is left.
    order = np.argsort(at, kind="stable")
    lengths = np.diff(at[order], append=height * width)
    cell = _held(labels, is_truth[order], order, 0) * (len(predicted) + 1) + _held(labels, ~is_truth[order], order, 1)
    shape = len(truth) + 1, len(predicted) + 1
    counts: Float64[np.ndarray, " cells"] = np.bincount(cell, weights=lengths, minlength=shape[0] * shape[1])
    return counts.astype(np.int64).reshape(shape)


def _held(
    labels: list[Int64[np.ndarray, " l"]],
    is_ours: Bool[np.ndarray, " p"],
    order: Int64[np.ndarray, " p"],
    side: int,
) -> Int64[np.ndarray, " p"]:
    """The label of one side that holds from each point on: the last one at or before it."""
    last = np.maximum.accumulate(np.where(is_ours, np.arange(len(order)), 0))
    ours = order - (0 if side == 0 else len(labels[0]))
    return np.where(is_ours[last], labels[side][np.where(is_ours, ours, 0)][last], 0)


def _runs(
    masks: Sequence[bytes], height: int, width: int
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Start, stop and mask of every run of pixels inside, in the order of starts."""
    ends, owner = rle.toggles_of_many(masks, height, width)
    num_ends = np.bincount(owner, minlength=len(masks))
    place = np.arange(len(ends)) - np.repeat(np.cumsum(num_ends) - num_ends, num_ends)
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
