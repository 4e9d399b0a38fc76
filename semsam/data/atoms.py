"""All masks of an image as one label map: the common refinement of regions that nest and overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, Int64, UInt

from semsam.data.label_runs import LabelRuns, runs_and_table, runs_of_labels, sorted_events, take_columns
from semsam.data.rle import group_edges, resample_toggles, toggles_of_many

MAX_TABLE_BYTES = 2**28


@dataclass(frozen=True)
class AtomMap:
    """Each label is one exact set of covering masks; label 0 is pixels that no mask covers.

    Labels that were told apart by masks which are no longer in the table (void and crowds) stay apart.

    `labels` is uint16, or uint32 where there are more labels than that.  `table[label, j]` says whether mask `j` covers
    the label's pixels, so mask `j` is `table[labels, j]`: look points up, never build the stack of masks.
    """

    labels: UInt[np.ndarray, "h w"]
    table: Bool[np.ndarray, "a m"]
    known_runs: LabelRuns | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def from_rles(
        rles: Sequence[bytes | None],
        height: int,
        width: int,
        rows: Int[np.ndarray, " y"] | None = None,
        cols: Int[np.ndarray, " x"] | None = None,
        max_table_bytes: int = MAX_TABLE_BYTES,
    ) -> AtomMap:
        """The map of masks given as COCO RLE strings (None: a region without mask, an empty column of the table).

        With `rows` and `cols` the same masks as `.resample(rows, cols)` of it, several times faster, because the
        source's pixels are never visited: `rows` must ascend and have -1 at its end only; `cols` may come in any order.
        Raises `TooManyAtomsError` before it makes a table of more than `max_table_bytes`.

        Sets of masks are told apart by 64-bit hashes, the same in every process.  Two of `a` labels coincide with odds
        of a^2 / 2^65: one in 10^14 images of 400 labels, one in 10^7 for a million labels of noise.
        """
        with_mask = np.array([j for j, rle in enumerate(rles) if rle is not None], np.int64)
        toggles, mask = toggles_of_many([rle for rle in rles if rle is not None], height, width)
        rows = np.arange(height) if rows is None else np.asarray(rows)
        cols = np.arange(width) if cols is None else np.asarray(cols)
        inner_rows, inner_cols = _inner(rows, cols, height, width)
        inner_cols, place = np.unique(inner_cols, return_inverse=True)
        toggles = resample_toggles(toggles, height, width, inner_rows, inner_cols)
        order = sorted_events(toggles, with_mask[mask], len(rles), len(inner_rows), len(inner_cols))
        runs, table = runs_and_table(*order, len(rles), len(inner_rows), len(inner_cols), max_table_bytes)
        return _paint(take_columns(runs, place, np.flatnonzero(cols >= 0)), table, len(rows), len(cols))

    @property
    def num_masks(self) -> int:
        """How many masks the table has columns for, empty ones included."""
        return self.table.shape[1]

    def resample(self, rows: Int[np.ndarray, " y"], cols: Int[np.ndarray, " x"]) -> AtomMap:
        """The map whose pixel (i, j) is this one's (rows[i], cols[j]); -1 stands for outside, which has label 0.

        `rows` must ascend, and have -1 at the end only; `cols` may come in any order.  Labels that no longer occur are
        left out of the table, so they may be renumbered; masks keep their columns.
        """
        inner_rows, inner_cols = _inner(rows, cols, *self.labels.shape)
        rows_before = np.searchsorted(inner_rows, np.arange(self.labels.shape[0] + 1))
        row = rows_before[self.runs.row]
        length = rows_before[self.runs.row + self.runs.length] - row
        kept = length > 0
        runs = LabelRuns(self.runs.label[kept], row[kept], self.runs.col[kept], length[kept])
        runs = take_columns(runs, inner_cols, np.flatnonzero(cols >= 0))
        occurs = np.bincount(runs.label, minlength=len(self.table)) > 0
        occurs[0] = True
        runs = replace(runs, label=(np.cumsum(occurs) - 1)[runs.label])
        return _paint(runs, self.table[occurs], len(rows), len(cols))

    def keep_masks(self, kept: Int[np.ndarray, " k"]) -> AtomMap:
        """The map of masks `kept` alone, in that order.  The masks left out must be empty: no two labels become one."""
        if np.array_equal(kept, np.arange(self.num_masks)):
            return self
        return replace(self, table=np.ascontiguousarray(self.table[:, kept]))

    def mask(self, j: int) -> Bool[np.ndarray, "h w"]:
        """Mask `j`, dense."""
        return self.table[:, j][self.labels]

    def areas(self) -> Int64[np.ndarray, " m"]:
        """How many pixels each mask covers."""
        pixels = np.bincount(self.runs.label, self.runs.length, len(self.table))
        mask, label = self._members
        return np.bincount(mask, pixels[label], self.num_masks).astype(np.int64)

    def boxes_xyxy(self) -> Float[np.ndarray, "m 4"]:
        """The masks' tight boxes in pixel edges (largest index + 1), float32; zeros for an empty mask."""
        return self._boxes.astype(np.float32)

    def covering(self, ys: Int[np.ndarray, " p"], xs: Int[np.ndarray, " p"]) -> Bool[np.ndarray, "p m"]:
        """Which masks cover each of the pixels."""
        return self.table[self.labels[ys, xs]]

    def random_pixel(self, mask: int, rng: np.random.Generator) -> tuple[int, int]:
        """A pixel (y, x) of the mask, each with the same probability.  Raises `ValueError` for an empty mask."""
        ys, xs = self.random_pixels(np.array([mask]), rng)
        return int(ys[0]), int(xs[0])

    def random_pixels(
        self, masks: Int[np.ndarray, " n"], rng: np.random.Generator
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """A pixel (ys, xs) of each of the masks, uniform over the mask's pixels and independent of one another.

        Pixels are drawn in the mask's box until one falls into the mask; for a mask that fills little of its box the
        last step is a draw among its runs, which needs no luck.  Raises `ValueError` for an empty mask.
        """
        x1, y1, x2, y2 = self._boxes[masks].T
        if (x1 == x2).any():
            raise ValueError(f"mask {masks[x1 == x2][0]} covers no pixel to draw")
        tries = rng.random((2, 16, len(masks)))
        ys = y1 + (tries[0] * (y2 - y1)).astype(np.int64)
        xs = x1 + (tries[1] * (x2 - x1)).astype(np.int64)
        hits = self.table[self.labels[ys, xs], masks]
        first = hits.argmax(0), np.arange(len(masks))
        ys, xs = ys[first], xs[first]
        for i in np.flatnonzero(~hits[first]):
            ys[i], xs[i] = self._random_pixel_of_runs(int(masks[i]), rng)
        return ys, xs

    @cached_property
    def runs(self) -> LabelRuns:
        """The map as runs down its columns."""
        return self.known_runs or runs_of_labels(self.labels)

    def _random_pixel_of_runs(self, mask: int, rng: np.random.Generator) -> tuple[int, int]:
        inside = np.flatnonzero(self.table[self.runs.label, mask])
        stops = np.cumsum(self.runs.length[inside])
        drawn = int(rng.integers(stops[-1]))
        run = int(np.searchsorted(stops, drawn, side="right"))
        return int(self.runs.row[inside[run]] + stops[run] - 1 - drawn), int(self.runs.col[inside[run]])

    @cached_property
    def _members(self) -> tuple[Int64[np.ndarray, " i"], Int64[np.ndarray, " i"]]:
        """The table as pairs (masks, labels), ordered by mask."""
        pairs = np.flatnonzero(np.ascontiguousarray(self.table.T))
        mask = pairs // len(self.table)
        return mask, pairs - mask * len(self.table)

    @cached_property
    def _boxes(self) -> Int64[np.ndarray, "m 4"]:
        """Boxes of the labels from their runs, then of the masks from their labels."""
        runs = self.runs
        order = np.argsort(runs.label.astype(self.labels.dtype), kind="stable")  # Column order within a label.
        label, row, col = runs.label[order], runs.row[order], runs.col[order]
        groups = group_edges(label)
        first, last = groups[:-1], groups[1:] - 1
        edges = np.zeros((4, len(self.table)), np.int64)
        boxes = np.zeros((4, self.num_masks), np.int64)
        if len(first):
            bottoms = np.maximum.reduceat(row + runs.length[order], first)
            edges[:, label[first]] = col[first], np.minimum.reduceat(row, first), col[last] + 1, bottoms
        mask, label = self._members
        first = group_edges(mask)[:-1]
        for side, smallest_or_largest in enumerate((np.minimum, np.minimum, np.maximum, np.maximum)):
            if len(first):
                boxes[side, mask[first]] = smallest_or_largest.reduceat(edges[side, label], first)
        return boxes.T


def _inner(
    rows: Int[np.ndarray, " y"], cols: Int[np.ndarray, " x"], height: int, width: int
) -> tuple[Int[np.ndarray, " v"], Int[np.ndarray, " u"]]:
    """The rows and columns that lie inside; raises `ValueError` for tables that cannot be followed run by run."""
    inner_rows, inner_cols = rows[rows >= 0], cols[cols >= 0]
    if (rows[len(inner_rows) :] >= 0).any() or (np.diff(inner_rows) < 0).any():
        raise ValueError("rows must ascend, with -1 at the end only")
    if inner_rows.max(initial=-1) >= height or inner_cols.max(initial=-1) >= width:
        raise ValueError(f"rows or columns reach beyond a map of {height} x {width}")
    return inner_rows, inner_cols


def _paint(runs: LabelRuns, table: Bool[np.ndarray, "a m"], height: int, width: int) -> AtomMap:
    """The map of these runs; pixels that are in none have label 0."""
    inside = _repeat(runs.label.astype(_label_type(len(table))), runs.length)
    if inside.size == height * width:
        return AtomMap(_transposed(inside.reshape(width, height)), table, runs)
    canvas = np.zeros((width, height), inside.dtype)
    is_filled = np.zeros(width, bool)
    is_filled[runs.col] = True
    num_filled = int(is_filled.sum())
    if num_filled:
        canvas[is_filled, : inside.size // num_filled] = inside.reshape(num_filled, -1)
    return AtomMap(_transposed(canvas), table, runs)


def _repeat(values: UInt[np.ndarray, " r"], lengths: Int64[np.ndarray, " r"]) -> UInt[np.ndarray, " n"]:
    """`np.repeat` for positive lengths, which here frees the interpreter's lock: other threads make samples as well."""
    ends = pa.array(np.cumsum(lengths, dtype=np.int64))
    found: np.ndarray = pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, pa.array(values))).to_numpy()
    return found


def _transposed(columns: UInt[np.ndarray, "w h"]) -> UInt[np.ndarray, "h w"]:
    """The map row by row in memory, as those who read it expect; numpy takes five times as long over the copy."""
    if not columns.size:
        return columns.T
    signed = columns.view(np.int16 if columns.dtype == np.uint16 else np.int32)
    return cv2.transpose(signed).view(columns.dtype)


def _label_type(num_labels: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if num_labels <= 2**16 else np.uint32
