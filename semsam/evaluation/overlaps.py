"""How many pixels predicted masks share with the regions of an image, at the image's own size.

A predicted mask is a map of logits at about an eighth of the image's size, and a pixel of the enlarged one is a mean of
neighbouring logits: where these agree in sign no pixel has to be looked at.  So pixels are made along a mask's edges
alone, which is exact and takes a hundredth of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64

from semsam.data.atoms import AtomMap

SUPPORT = 3  # Neighbouring logits that a pixel may depend on, in each direction.
PIXELS_AT_ONCE = 2**22


@dataclass(frozen=True)
class _Bands:
    """The rows (or columns) of an image in runs that depend on the same logits, none much longer than the others."""

    start: Int64[np.ndarray, " b+1"]  # Band i is the rows from start[i] to start[i + 1].
    of_logit: Int64[np.ndarray, " y+1"]  # Bands of_logit[j] to of_logit[j + 1] depend on the logits from j on.
    first_logit: Int64[np.ndarray, " b"]
    weights: Float32[np.ndarray, "b side support"]  # Of its rows, padded with zeros to the longest band.

    @staticmethod
    def of(weights: Float32[np.ndarray, "h y"]) -> _Bands:
        support = min(SUPPORT, weights.shape[1])
        places = weights.shape[1] - support + 1
        first = np.minimum((weights != 0).argmax(axis=1), places - 1)
        taken = np.take_along_axis(weights, first[:, None] + np.arange(support), axis=1)
        row = np.arange(len(first))
        since = row - np.searchsorted(first, first)  # Many rows depend on the logits at the image's ends.
        longest = -(-len(first) // (first[-1] + 1 - first[0]))
        starts = np.flatnonzero(since % longest == 0)
        lengths = np.diff(starts, append=len(first))
        band = np.repeat(np.arange(len(starts)), lengths)
        padded = np.zeros((len(starts), longest, support), np.float32)
        padded[band, row - starts[band]] = taken
        of_logit = np.searchsorted(first[starts], np.arange(places + 1))
        return _Bands(np.append(starts, len(first)), of_logit, first[starts], padded)

    @property
    def support(self) -> int:
        return self.weights.shape[2]

    def rows(self) -> Int64[np.ndarray, "b side"]:
        """The rows of each band, and where it is shorter than the longest the row after the last."""
        side = np.arange(self.weights.shape[1])
        return np.where(side < np.diff(self.start)[:, None], self.start[:-1, None] + side, self.start[-1])


@dataclass(frozen=True)
class MeasuredMasks:
    """What is counted of `m` masks."""

    counts: Int64[np.ndarray, "m a"]  # Pixels of each label.
    sides: Int64[np.ndarray, "m 4"]  # Left, top, right and bottom edge; of an empty mask the right is left of the left.

    def together(self, other: MeasuredMasks) -> MeasuredMasks:
        """The same masks, other parts of each."""
        first = np.minimum(self.sides[:, :2], other.sides[:, :2])
        last = np.maximum(self.sides[:, 2:], other.sides[:, 2:])
        return MeasuredMasks(self.counts + other.counts, np.concatenate([first, last], axis=1))

    def boxes_xyxy(self) -> Float[np.ndarray, "m 4"]:
        """Tight boxes in pixel edges; zeros for an empty mask."""
        return np.where(self.sides[:, :1] < self.sides[:, 2:3], self.sides, 0).astype(np.float64)


class Overlaps:
    """Measures soft masks by the label of an atom map; `rows` and `columns` as in `EncodedImage.enlarging`."""

    def __init__(self, atoms: AtomMap, rows: Float[np.ndarray, "h y"], columns: Float[np.ndarray, "w x"]) -> None:
        self._table = atoms.table.astype(np.float64)
        self._areas = atoms.areas()
        self._rows, self._columns = _Bands.of(rows.astype(np.float32)), _Bands.of(columns.astype(np.float32))
        self._outside = len(atoms.table)  # The label of what pads a tile.
        self._tiles = _tiles(atoms, self._rows, self._columns, self._outside)
        self._labels, self._counts, self._starts = _label_counts(self._tiles, self._outside)

    def measure(self, logits: Float32[np.ndarray, "m y x"]) -> MeasuredMasks:
        """Pixels of each label and the tight box of each mask."""
        everywhere, anywhere = _over_support(logits > 0, self._rows, self._columns)
        found = self._whole(len(logits), *self._tiles_of(everywhere))
        mask, tile = self._tiles_of(anywhere != everywhere)
        step = max(PIXELS_AT_ONCE // self._tiles.shape[1], 1)
        for start in range(0, len(mask), step):
            some = slice(start, start + step)
            found = found.together(self._edge(logits, mask[some], tile[some]))
        return MeasuredMasks(found.counts[:, : self._outside], found.sides)

    def ious(self, counts: Int64[np.ndarray, "m a"]) -> Float[np.ndarray, "m r"]:
        """IoU of masks, given as their pixels of each label, with every region; of two empty ones 0."""
        intersections = counts @ self._table
        unions = counts.sum(axis=1, keepdims=True) + self._areas[None] - intersections
        return intersections / np.maximum(unions, 1)

    def _tiles_of(self, places: Bool[np.ndarray, "m y x"]) -> tuple[Int64[np.ndarray, " t"], Int64[np.ndarray, " t"]]:
        """The masks and tiles of places among the logits; most places have one tile, those at the ends more."""
        mask, y, x = np.unravel_index(np.flatnonzero(places), places.shape)
        num_rows, num_columns = np.diff(self._rows.of_logit)[y], np.diff(self._columns.of_logit)[x]
        masks, tiles = [], []
        for more_y in range(int(num_rows.max(initial=0))):
            for more_x in range(int(num_columns.max(initial=0))):
                kept = (num_rows > more_y) & (num_columns > more_x)
                row, column = self._rows.of_logit[y] + more_y, self._columns.of_logit[x] + more_x
                masks.append(mask[kept])
                tiles.append((row * len(self._columns.first_logit) + column)[kept])
        return np.concatenate([np.zeros(0, np.int64), *masks]), np.concatenate([np.zeros(0, np.int64), *tiles])

    def _whole(self, num_masks: int, mask: Int64[np.ndarray, " t"], tile: Int64[np.ndarray, " t"]) -> MeasuredMasks:
        """Of tiles that lie in a mask with all their pixels."""
        index, entry, last = mask * (self._outside + 1), self._starts[tile], self._starts[tile + 1]
        counts = np.zeros(num_masks * (self._outside + 1))
        while len(entry):  # Nearly all tiles have one label or two.
            counts += np.bincount(index + self._labels[entry], self._counts[entry], len(counts))
            left = entry + 1 < last
            index, entry, last = index[left], entry[left] + 1, last[left]
        row, column = np.divmod(tile, len(self._columns.first_logit))
        starts = self._rows.start, self._columns.start
        edges = starts[1][column], starts[0][row], starts[1][column + 1], starts[0][row + 1]
        return MeasuredMasks(
            counts.astype(np.int64).reshape(num_masks, self._outside + 1), _sides(num_masks, mask, *edges)
        )

    def _edge(
        self, logits: Float32[np.ndarray, "m y x"], mask: Int64[np.ndarray, " t"], tile: Int64[np.ndarray, " t"]
    ) -> MeasuredMasks:
        """Of tiles that lie in a mask with some of their pixels, or with none after all."""
        rows, columns = self._rows, self._columns
        num_masks, height, width = logits.shape
        row, column = np.divmod(tile, len(columns.first_logit))
        first = (mask * height + rows.first_logit[row]) * width + columns.first_logit[column]
        offsets = (np.arange(rows.support)[:, None] * width + np.arange(columns.support)).reshape(-1)
        around = logits.reshape(-1)[first[:, None] + offsets].reshape(len(tile), rows.support, columns.support)
        inside = rows.weights[row] @ around @ columns.weights[column].transpose(0, 2, 1) > 0
        index = self._tiles[tile] + (mask * (self._outside + 1)).astype(np.int32)[:, None]
        counts = np.bincount(index.reshape(-1)[inside.reshape(-1)], minlength=num_masks * (self._outside + 1))
        ys, xs = inside.any(axis=2), inside.any(axis=1)
        top, bottom = rows.start[row] + ys.argmax(axis=1), rows.start[row] + ys.shape[1] - ys[:, ::-1].argmax(axis=1)
        left, right = (
            columns.start[column] + xs.argmax(axis=1),
            columns.start[column] + xs.shape[1] - xs[:, ::-1].argmax(axis=1),
        )
        some = ys.any(axis=1)
        sides = _sides(num_masks, mask[some], left[some], top[some], right[some], bottom[some])
        return MeasuredMasks(counts.reshape(num_masks, self._outside + 1), sides)


def _sides(
    num_masks: int,
    mask: Int64[np.ndarray, " t"],
    left: Int64[np.ndarray, " t"],
    top: Int64[np.ndarray, " t"],
    right: Int64[np.ndarray, " t"],
    bottom: Int64[np.ndarray, " t"],
) -> Int64[np.ndarray, "m 4"]:
    """The outermost edges of what belongs to each mask."""
    sides = np.tile(np.array([2**31, 2**31, -1, -1], np.int64), (num_masks, 1))
    for place, edges in enumerate((left, top)):
        np.minimum.at(sides[:, place], mask, edges)
    for place, edges in enumerate((right, bottom), 2):
        np.maximum.at(sides[:, place], mask, edges)
    return sides


def _over_support(
    inside: Bool[np.ndarray, "m y x"], rows: _Bands, columns: _Bands
) -> tuple[Bool[np.ndarray, "m y2 x2"], Bool[np.ndarray, "m y2 x2"]]:
    """Whether all of the logits that a tile depends on, and whether any of them, are inside; by the first of them."""
    count, height, width = inside.shape
    if not inside.size:
        return inside, inside
    # All masks as one tall picture: what would reach into the next mask is cut off again.
    picture = inside.reshape(count * height, width).view(np.uint8)
    window = np.ones((rows.support, columns.support), np.uint8)
    found = [
        change(picture, window, anchor=(0, 0)).view(bool).reshape(inside.shape) for change in (cv2.erode, cv2.dilate)
    ]
    everywhere, anywhere = (one[:, : height - rows.support + 1, : width - columns.support + 1] for one in found)
    return everywhere, anywhere


def _tiles(atoms: AtomMap, rows: _Bands, columns: _Bands, outside: int) -> Int32[np.ndarray, "t p"]:
    """The label map cut into tiles, row by row; what one lacks to the size of the largest has the label `outside`."""
    height, width = atoms.labels.shape
    labels = np.full((height + 1, width + 1), outside, np.int32)
    labels[:height, :width] = atoms.labels
    row, column = rows.rows(), columns.rows()
    cut = labels[row.reshape(-1)[:, None], column.reshape(-1)].reshape(*row.shape, *column.shape)
    return cut.transpose(0, 2, 1, 3).reshape(len(row) * len(column), -1)


def _label_counts(
    tiles: Int32[np.ndarray, "t p"], outside: int
) -> tuple[Int64[np.ndarray, " e"], Int64[np.ndarray, " e"], Int64[np.ndarray, " t+1"]]:
    """The labels of each tile with their numbers of pixels; those of tile i lie from starts[i] to starts[i + 1]."""
    ordered = np.sort(tiles, axis=1)
    is_first = np.ones(ordered.shape, bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = np.flatnonzero(is_first)
    labels, counts = ordered.reshape(-1)[place].astype(np.int64), np.diff(place, append=ordered.size)
    kept = labels < outside
    starts = np.searchsorted(place[kept], np.arange(len(tiles) + 1) * tiles.shape[1])
    return labels[kept], counts[kept], starts
