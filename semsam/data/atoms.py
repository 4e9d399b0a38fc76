"""All masks of an image as one label map: the common refinement of regions that nest and overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, UInt, UInt64

from semsam.data.rle import resample_toggles, toggles_of_many

MAX_TABLE_BYTES = 2**28


class TooManyAtomsError(ValueError):
    """The table of labels x masks would be larger than allowed: masks of noise, not of things."""


@dataclass(frozen=True)
class LabelRuns:
    """A label map as runs down its columns: run `i` is `length[i]` pixels from `row[i]` down in column `col[i]`.

    Runs are in column-major order, never cross into the next column, and leave out only what lies outside the image,
    which has label 0.
    """

    label: Int64[np.ndarray, " r"]
    row: Int64[np.ndarray, " r"]
    col: Int64[np.ndarray, " r"]
    length: Int64[np.ndarray, " r"]


@dataclass(frozen=True)
class AtomMap:
    """Each label is one exact set of covering masks; label 0 is the pixels that no mask covers.

    `labels` is uint16, or uint32 where there are more labels than that.  `table[label, j]` says whether mask `j` covers
    the label's pixels, so mask `j` is `table[labels, j]`: look points up, never build the stack of masks.  In memory
    `labels` lies column by column, as COCO's runs do.
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
        inner_rows = _inner(rows)
        inner_cols, place = np.unique(cols[cols >= 0], return_inverse=True)
        toggles = resample_toggles(toggles, height, width, inner_rows, inner_cols)
        order = _sorted_events(toggles, with_mask[mask], len(rles), len(inner_rows), len(inner_cols))
        runs, table = _runs_and_table(*order, len(rles), len(inner_rows), len(inner_cols), max_table_bytes)
        return _paint(_take_columns(runs, place, np.flatnonzero(cols >= 0)), table, len(rows), len(cols))

    @property
    def num_masks(self) -> int:
        """How many masks the table has columns for, empty ones included."""
        return self.table.shape[1]

    def resample(self, rows: Int[np.ndarray, " y"], cols: Int[np.ndarray, " x"]) -> AtomMap:
        """The map whose pixel (i, j) is this one's (rows[i], cols[j]); -1 stands for outside, which has label 0.

        `rows` must ascend, and have -1 at the end only; `cols` may come in any order.  Labels that no longer occur are
        left out of the table, so they may be renumbered; masks keep their columns.
        """
        inner_rows, inner_cols = _inner(rows), cols[cols >= 0]
        rows_before = np.searchsorted(inner_rows, np.arange(self.labels.shape[0] + 1))
        row = rows_before[self.runs.row]
        length = rows_before[self.runs.row + self.runs.length] - row
        kept = length > 0
        runs = LabelRuns(self.runs.label[kept], row[kept], self.runs.col[kept], length[kept])
        runs = _take_columns(runs, inner_cols, np.flatnonzero(cols >= 0))
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
        return self.known_runs or _runs_of_labels(self.labels)

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
        first = np.flatnonzero(np.diff(label, prepend=-1))
        last = np.append(first[1:], len(label))[: len(first)] - 1
        edges = np.zeros((4, len(self.table)), np.int64)
        boxes = np.zeros((4, self.num_masks), np.int64)
        if len(first):
            bottoms = np.maximum.reduceat(row + runs.length[order], first)
            edges[:, label[first]] = col[first], np.minimum.reduceat(row, first), col[last] + 1, bottoms
        mask, label = self._members
        first = np.flatnonzero(np.diff(mask, prepend=-1))
        for side, smallest_or_largest in enumerate((np.minimum, np.minimum, np.maximum, np.maximum)):
            if len(first):
                boxes[side, mask[first]] = smallest_or_largest.reduceat(edges[side, label], first)
        return boxes.T


def _inner(rows: Int[np.ndarray, " y"]) -> Int[np.ndarray, " z"]:
    inner = rows[rows >= 0]
    if (rows[len(inner) :] >= 0).any() or (np.diff(inner) < 0).any():
        raise ValueError("rows must ascend, with -1 at the end only")
    return inner


def _sorted_events(
    toggles: Int64[np.ndarray, " e"], mask: Int64[np.ndarray, " e"], num_masks: int, height: int, width: int
) -> tuple[Int64[np.ndarray, " f"], Int64[np.ndarray, " f"]]:
    """Toggles and the masks they belong to, ordered by position; every column starts with one of no mask (`num_masks`).

    Position and mask share one integer, since a plain sort is many times faster than one that carries a second array.
    """
    bits = num_masks.bit_length()
    column_starts = (np.arange(width) * height << bits) | num_masks
    events = (toggles << bits) | mask
    events = np.concatenate([events[toggles < height * width], column_starts])
    events.sort()
    return events >> bits, events & ((1 << bits) - 1)


def _runs_and_table(
    position: Int64[np.ndarray, " e"],
    mask: Int64[np.ndarray, " e"],
    num_masks: int,
    height: int,
    width: int,
    max_table_bytes: int,
) -> tuple[LabelRuns, Bool[np.ndarray, "a m"]]:
    """The runs between events, labelled by the set of masks that have been toggled an odd number of times."""
    is_last = np.diff(position, append=height * width) > 0  # Of the events at one position.
    event = np.flatnonzero(is_last)
    hashes = np.bitwise_xor.accumulate(_keys(num_masks)[mask])[event]
    label, example = _labels_of_hashes(hashes)
    if len(example) * num_masks > max_table_bytes:
        raise TooManyAtomsError(f"{len(example)} labels x {num_masks} masks are more than {max_table_bytes} bytes")
    words = np.zeros((len(example), -(-num_masks // 64)), np.dtype("<u8"))
    for word in range(words.shape[1]):
        bit = np.zeros(num_masks + 1, np.uint64)
        members = np.arange(64 * word, min(64 * word + 64, num_masks))
        bit[members] = np.uint64(1) << (members % 64).astype(np.uint64)
        words[1:, word] = np.bitwise_xor.accumulate(bit[mask])[event[example[1:]]]
    table = np.unpackbits(words.view(np.uint8), axis=1, count=num_masks, bitorder="little").view(bool)
    start = position[event]
    col = start // max(height, 1)
    return LabelRuns(label, start - col * height, col, np.diff(start, append=height * width)), table


def _labels_of_hashes(
    hashes: UInt64[np.ndarray, " r"],
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " a"]]:
    """Labels 0..a-1, equal for equal hashes and 0 for the hash 0, and a position where each label occurs.

    Label 0 exists even where it does not occur; its example then means nothing.
    """
    index_bits = np.uint64(len(hashes).bit_length())
    # Hash and index share one integer, so that one plain sort brings equal hashes together.
    packed = np.sort((hashes >> index_bits << index_bits) | np.arange(len(hashes), dtype=np.uint64))
    index = (packed & ((np.uint64(1) << index_bits) - np.uint64(1))).astype(np.int64)
    is_new = np.ones(len(hashes), bool)
    is_new[1:] = hashes[index[1:]] != hashes[index[:-1]]
    is_new_prefix = np.ones(len(hashes), bool)
    is_new_prefix[1:] = packed[1:] >> index_bits != packed[:-1] >> index_bits
    if (is_new != is_new_prefix).any():  # The bits that made room for the index were needed.
        _, example, label = np.unique(hashes, return_index=True, return_inverse=True)
    else:
        example = index[is_new]
        label = np.empty(len(hashes), np.int64)
        label[index] = np.cumsum(is_new) - 1
    if len(example) and hashes[example[0]] == 0:
        return label, example
    return label + 1, np.concatenate([[0], example])


def _keys(num_masks: int) -> UInt64[np.ndarray, " k"]:
    """A 64-bit number for each mask (splitmix64 of its index), and zero for no mask."""
    x = np.arange(1, num_masks + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    x[num_masks] = 0
    return x


def _take_columns(runs: LabelRuns, source: Int64[np.ndarray, " n"], target: Int64[np.ndarray, " n"]) -> LabelRuns:
    """The runs of a map whose column `target[i]` is column `source[i]` of this one; `target` ascends."""
    if np.array_equal(source, target) and runs.col.max(initial=-1) < len(source):
        return runs
    first = np.searchsorted(runs.col, np.arange(source.max(initial=-1) + 2))
    count = np.diff(first)[source]
    taken = np.arange(count.sum()) + np.repeat(first[source] - np.cumsum(count) + count, count)
    return LabelRuns(runs.label[taken], runs.row[taken], np.repeat(target, count), runs.length[taken])


def _paint(runs: LabelRuns, table: Bool[np.ndarray, "a m"], height: int, width: int) -> AtomMap:
    """The map of these runs; pixels that are in none have label 0."""
    inside = np.repeat(runs.label.astype(_label_type(len(table))), runs.length)
    if inside.size == height * width:
        return AtomMap(inside.reshape(width, height).T, table, runs)
    canvas = np.zeros((width, height), inside.dtype)
    is_filled = np.zeros(width, bool)
    is_filled[runs.col] = True
    num_filled = int(is_filled.sum())
    if num_filled:
        canvas[is_filled, : inside.size // num_filled] = inside.reshape(num_filled, -1)
    return AtomMap(canvas.T, table, runs)


def _runs_of_labels(labels: UInt[np.ndarray, "h w"]) -> LabelRuns:
    height = labels.shape[0]
    pixels = labels.T.reshape(-1)
    is_start = np.ones(pixels.size, bool)
    is_start[1:] = pixels[1:] != pixels[:-1]
    is_start[:: max(height, 1)] = True
    start = np.flatnonzero(is_start)
    col = start // max(height, 1)
    length = np.diff(start, append=pixels.size)
    return LabelRuns(pixels[start].astype(np.int64), start - col * height, col, length)


def _label_type(num_labels: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if num_labels <= 2**16 else np.uint32
