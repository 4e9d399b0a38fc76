"""How many pixels predicted masks share with the regions of an image, at the image's own size.

A predicted mask is a map of logits at about an eighth of the image's size, and a pixel of the enlarged one is a mean of
neighbouring logits: where these agree in sign no pixel has to be looked at.  So pixels are made along a mask's edges
alone, which is exact and takes a hundredth of the work.  What is true or false of many places or pixels is kept as
bits, 64 to a word: they are compared and counted a word at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt, UInt64

from semsam.data.atoms import AtomMap

SUPPORT = 3  # Neighbouring logits that a pixel may depend on, in each direction.
PIXELS_AT_ONCE = 2**20
_WORD = 64  # Bits.
_NOWHERE = 2**31  # Farther right and down than any pixel.


@dataclass(frozen=True)
class _Bands:
    """The rows (or columns) of an image in runs that depend on the same logits, none much longer than the others."""

    start: Int64[np.ndarray, " b+1"]  # Band i is the rows from start[i] to start[i + 1].
    first_logit: Int64[np.ndarray, " b"]
    weights: Float32[np.ndarray, "b side support"]  # Of its rows, padded with zeros to the longest band.

    @staticmethod
    def of(weights: Float32[np.ndarray, "h y"]) -> _Bands:
        support = min(SUPPORT, weights.shape[1])
        first = np.minimum((weights != 0).argmax(axis=1), weights.shape[1] - support)
        taken = np.take_along_axis(weights, first[:, None] + np.arange(support), axis=1)
        row = np.arange(len(first))
        since = row - np.searchsorted(first, first)  # Many rows depend on the logits at the image's ends.
        longest = -(-len(first) // (first[-1] + 1 - first[0]))
        starts = np.flatnonzero(since % longest == 0)
        lengths = np.diff(starts, append=len(first))
        band = np.repeat(np.arange(len(starts)), lengths)
        padded = np.zeros((len(starts), longest, support), np.float32)
        padded[band, row - starts[band]] = taken
        return _Bands(np.append(starts, len(first)), first[starts], padded)

    def __len__(self) -> int:
        return len(self.first_logit)

    @property
    def side(self) -> int:
        return self.weights.shape[1]

    @property
    def support(self) -> int:
        return self.weights.shape[2]

    def rows(self) -> Int64[np.ndarray, "b side"]:
        """The rows of each band, and where it is shorter than the longest the row after the last."""
        side = np.arange(self.side)
        return np.where(side < np.diff(self.start)[:, None], self.start[:-1, None] + side, self.start[-1])


@dataclass(frozen=True)
class _TileLabels:
    """The labels of each tile of a label map; those of tile i are the entries from starts[i] to starts[i + 1]."""

    starts: Int64[np.ndarray, " t+1"]
    label: Int64[np.ndarray, " e"]
    count: Int64[np.ndarray, " e"]  # Pixels that have it.
    pixels: UInt64[np.ndarray, "e w"]  # Those pixels, as bits.

    @staticmethod
    def of(tiles: UInt[np.ndarray, "t p"], outside: int) -> _TileLabels:
        """The labels below `outside`, in ascending order for each tile."""
        ordered = np.sort(tiles, axis=1)
        is_first = np.ones(ordered.shape, bool)
        is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        place = np.flatnonzero(is_first)
        label, count = ordered.reshape(-1)[place], np.diff(place, append=ordered.size)
        kept = label < outside
        tile, label = place[kept] // tiles.shape[1], label[kept]
        step = max(PIXELS_AT_ONCE // tiles.shape[1], 1)
        some = [slice(start, start + step) for start in range(0, max(len(label), 1), step)]
        pixels = [as_bits(tiles[tile[part]] == label[part, None]) for part in some]
        starts = np.searchsorted(tile, np.arange(len(tiles) + 1))
        return _TileLabels(starts, label.astype(np.int64), count[kept], np.concatenate(pixels))


@dataclass(frozen=True)
class MeasuredMasks:
    """What is counted of `m` masks."""

    counts: Int64[np.ndarray, "m a"]  # Pixels of each label.
    # Left, top, and less than nothing by the right and the bottom edge: the lowest value of each counts.
    ends: Int64[np.ndarray, "m 4"]

    @staticmethod
    def empty(num_masks: int, num_labels: int) -> MeasuredMasks:
        """Masks of which nothing has been counted yet."""
        return MeasuredMasks(np.zeros((num_masks, num_labels), np.int64), np.full((num_masks, 4), _NOWHERE))

    def boxes_xyxy(self) -> Float[np.ndarray, "m 4"]:
        """Tight boxes in pixel edges; zeros for an empty mask."""
        return np.where(self.ends[:, :1] < _NOWHERE, self.ends * (1, 1, -1, -1), 0).astype(np.float64)

    def add(
        self, mask: Int64[np.ndarray, " e"], label: Int64[np.ndarray, " e"], pixels: Int64[np.ndarray, " e"]
    ) -> None:
        """Count pixels of some labels; `mask` ascends."""
        if len(mask):
            first, num_labels = mask[0], self.counts.shape[1]
            some = self.counts[first : mask[-1] + 1]
            some += (
                np.bincount((mask - first) * num_labels + label, pixels, some.size).astype(np.int64).reshape(some.shape)
            )


class Overlaps:
    """Measures soft masks by the label of an atom map; `rows` and `columns` as in `EncodedImage.enlarging`."""

    def __init__(self, atoms: AtomMap, rows: Float[np.ndarray, "h y"], columns: Float[np.ndarray, "w x"]) -> None:
        exact = np.float32 if atoms.labels.size < 2**24 else np.float64  # The whole numbers that it holds.
        self._table = atoms.table.astype(exact)
        self._areas = atoms.areas()
        self._rows, self._columns = _Bands.of(rows.astype(np.float32)), _Bands.of(columns.astype(np.float32))
        self._column_weights = np.ascontiguousarray(self._columns.weights.transpose(0, 2, 1))
        self._labels = _TileLabels.of(_tiles(atoms, self._rows, self._columns, len(atoms.table)), len(atoms.table))
        # The tiles that depend on the logits from a place on, place by place; most places have one.
        width = _words(columns.shape[1]) * _WORD
        place = (self._rows.first_logit[:, None] * width + self._columns.first_logit).reshape(-1)
        self._by_place = np.argsort(place, kind="stable")
        self._place_starts = np.searchsorted(place[self._by_place], np.arange(rows.shape[1] * width + 1))

    @property
    def num_regions(self) -> int:
        return self._table.shape[1]

    def measure(
        self, logits: Float32[np.ndarray, "m y x"], inside: UInt64[np.ndarray, "m y w"], with_boxes: bool = True
    ) -> MeasuredMasks:
        """Pixels of each label, and if wanted the tight box of each mask, enlarged.

        `inside` says as bits, row by row, where `logits` are above 0.
        """
        everywhere, anywhere = _over_support(inside, self._rows.support, self._columns.support)
        found = MeasuredMasks.empty(len(logits), len(self._table))
        self._whole(found, *self._tiles_at(everywhere), with_boxes)
        mask, tile = self._tiles_at(anywhere ^ everywhere)
        step = max(PIXELS_AT_ONCE // (self._rows.side * self._columns.side), 1)
        for start in range(0, len(mask), step):
            some = slice(start, start + step)
            self._edge(found, logits, mask[some], tile[some], with_boxes)
        return found

    def ious(self, counts: Int64[np.ndarray, "m a"]) -> Float[np.ndarray, "m r"]:
        """IoU of masks, given as their pixels of each label, with every region; of two empty ones 0."""
        intersections = (counts.astype(self._table.dtype) @ self._table).astype(np.float64)
        unions = counts.sum(axis=1, keepdims=True) + self._areas[None] - intersections
        return intersections / np.maximum(unions, 1)

    def _tiles_at(self, places: UInt64[np.ndarray, "m y w"]) -> tuple[Int64[np.ndarray, " t"], Int64[np.ndarray, " t"]]:
        """The tiles that depend on the logits from some places on, and their masks, which ascend."""
        _, height, words = places.shape
        octets = places.reshape(-1).view(np.uint8)
        octet = np.flatnonzero(octets != 0)
        of_octet, bit = np.divmod(np.flatnonzero(np.unpackbits(octets[octet], bitorder="little").view(bool)), 8)
        mask, first_place = np.divmod(octet * 8, max(height * words * _WORD, 1))
        which, entry = _expand(self._place_starts, first_place[of_octet] + bit)
        return mask[of_octet][which], self._by_place[entry]

    def _whole(
        self, found: MeasuredMasks, mask: Int64[np.ndarray, " t"], tile: Int64[np.ndarray, " t"], with_boxes: bool
    ) -> None:
        """Add tiles that lie in a mask with all their pixels."""
        which, entry = _expand(self._labels.starts, tile)
        found.add(mask[which], self._labels.label[entry], self._labels.count[entry])
        if not with_boxes:
            return
        row, column = np.divmod(tile, len(self._columns))
        for end, (bands, band) in enumerate(((self._columns, column), (self._rows, row))):
            _lower(found.ends[:, end], mask, bands.start[band])
            _lower(found.ends[:, end + 2], mask, -bands.start[band + 1])

    def _edge(
        self,
        found: MeasuredMasks,
        logits: Float32[np.ndarray, "m y x"],
        mask: Int64[np.ndarray, " t"],
        tile: Int64[np.ndarray, " t"],
        with_boxes: bool,
    ) -> None:
        """Add tiles that lie in a mask with some of their pixels, or with none after all."""
        rows, columns = self._rows, self._columns
        height, width = logits.shape[1:]
        row, column = np.divmod(tile, len(columns))
        first = (mask * height + rows.first_logit[row]) * width + columns.first_logit[column]
        offsets = (np.arange(rows.support)[:, None] * width + np.arange(columns.support)).reshape(-1)
        around = logits.reshape(-1)[first[:, None] + offsets].reshape(len(tile), rows.support, columns.support)
        inside = rows.weights[row] @ around @ self._column_weights[column] > 0
        bits = as_bits(inside.reshape(len(tile), -1))
        which, entry = _expand(self._labels.starts, tile)
        shared = np.bitwise_count(bits[which] & self._labels.pixels[entry]).sum(axis=1, dtype=np.int64)
        found.add(mask[which], self._labels.label[entry], shared)
        if not with_boxes:
            return
        some = bits.any(axis=1)
        mask, row, column, inside = mask[some], row[some], column[some], inside[some]
        for end, (bands, band, pixels) in enumerate(
            ((columns, column, inside), (rows, row, inside.transpose(0, 2, 1)))
        ):
            low, high = _is_lowest(mask, band), _is_lowest(mask, -band)
            before = pixels[low].any(axis=1).argmax(axis=1)
            after = pixels[high].any(axis=1)[:, ::-1].argmax(axis=1)
            _lower(found.ends[:, end], mask[low], bands.start[band[low]] + before)
            _lower(found.ends[:, end + 2], mask[high], after - bands.start[band[high]] - bands.side)


def as_bits(values: Bool[np.ndarray, "*n v"]) -> UInt64[np.ndarray, "*n w"]:
    """Truth values as bits, the first value in the lowest bit of the first word; what fills the last word is 0."""
    octets = np.packbits(values, axis=-1, bitorder="little")
    filled = np.zeros((*values.shape[:-1], _words(values.shape[-1]) * 8), np.uint8)
    filled[..., : octets.shape[-1]] = octets
    return filled.view("<u8")


def _words(bits: int) -> int:
    return -(-bits // _WORD)


def _over_support(
    inside: UInt64[np.ndarray, "m y w"], height: int, width: int
) -> tuple[UInt64[np.ndarray, "m y w"], UInt64[np.ndarray, "m y w"]]:
    """Whether all of the logits that a tile depends on, and whether any of them, are inside; by the first of them.

    Windows of `height` x `width` logits that reach beyond the map say nothing that holds: no tile depends on such.
    """
    everywhere, anywhere = inside.copy(), inside.copy()
    following = np.zeros_like(inside)
    following[..., :-1] = inside[..., 1:]
    for shift in range(1, width):
        shifted = (inside >> np.uint64(shift)) | (following << np.uint64(_WORD - shift))
        everywhere &= shifted
        anywhere |= shifted
    for combine, found in ((np.bitwise_and, everywhere), (np.bitwise_or, anywhere)):
        alone = found.copy()
        for shift in range(1, height):
            combine(found[:, :-shift], alone[:, shift:], out=found[:, :-shift])
    return everywhere, anywhere


def _expand(
    starts: Int64[np.ndarray, " n+1"], chosen: Int64[np.ndarray, " c"]
) -> tuple[Int64[np.ndarray, " e"], Int64[np.ndarray, " e"]]:
    """All entries starts[i] to starts[i + 1] of the chosen i, in their order, and which of `chosen` each belongs to."""
    first, num = starts[chosen], starts[chosen + 1] - starts[chosen]
    which = np.repeat(np.arange(len(chosen)), num)
    return which, np.arange(len(which)) + (first - np.cumsum(num) + num)[which]


def _is_lowest(group: Int64[np.ndarray, " n"], values: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether there is no lower value in the same group; groups ascend."""
    if not len(group):
        return np.zeros(0, bool)
    begins = np.append(True, group[1:] != group[:-1])
    return values == np.minimum.reduceat(values, np.flatnonzero(begins))[np.cumsum(begins) - 1]


def _lower(lowest: Int64[np.ndarray, " m"], group: Int64[np.ndarray, " n"], values: Int64[np.ndarray, " n"]) -> None:
    """Lower each group's value to the lowest of its values; groups ascend."""
    if len(group):
        starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
        lowest[group[starts]] = np.minimum(lowest[group[starts]], np.minimum.reduceat(values, starts))


def _tiles(atoms: AtomMap, rows: _Bands, columns: _Bands, outside: int) -> UInt[np.ndarray, "t p"]:
    """The label map cut into tiles, row by row; what one lacks to the size of the largest has the label `outside`."""
    height, width = atoms.labels.shape
    labels = np.full((height + 1, width + 1), outside, np.uint16 if outside < 2**16 else np.uint32)
    labels[:height, :width] = atoms.labels
    row, column = rows.rows(), columns.rows()
    cut = labels[row.reshape(-1)[:, None], column.reshape(-1)].reshape(*row.shape, *column.shape)
    return cut.transpose(0, 2, 1, 3).reshape(len(row) * len(column), -1)
