"""From the toggles of many masks to runs of equal label: the work behind `AtomMap`, before any pixel is painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt, UInt64

from semsam.data.rle import group_edges


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


def sorted_events(
    toggles: Int64[np.ndarray, " e"], mask: Int64[np.ndarray, " e"], num_masks: int, height: int, width: int
) -> tuple[Int64[np.ndarray, " f"], Int64[np.ndarray, " f"]]:
    """Toggles and the masks they belong to, ordered by position; every column starts with one of no mask (`num_masks`).

    Position and mask share one integer, since a plain sort is many times faster than one that carries a second array.
    """
    bits = num_masks.bit_length()
    column_starts = (np.arange(width if height else 0) * height << bits) | num_masks
    events = (toggles << bits) | mask
    events = np.concatenate([events[toggles < height * width], column_starts])
    events.sort()
    return events >> bits, events & ((1 << bits) - 1)


def runs_and_table(
    position: Int64[np.ndarray, " e"],
    mask: Int64[np.ndarray, " e"],
    num_masks: int,
    height: int,
    width: int,
    max_table_bytes: int,
) -> tuple[LabelRuns, Bool[np.ndarray, "a m"]]:
    """The runs between events, labelled by the set of masks that have been toggled an odd number of times."""
    event = group_edges(position)[1:] - 1  # The last one at each position.
    hashes = np.bitwise_xor.accumulate(_keys(num_masks)[mask])[event]
    label, example = labels_of_hashes(hashes)
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


def labels_of_hashes(
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
        label[index] = np.cumsum(is_new.astype(np.int64)) - 1  # Of bools it would hold the interpreter's lock.
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


def take_columns(runs: LabelRuns, source: Int64[np.ndarray, " n"], target: Int64[np.ndarray, " n"]) -> LabelRuns:
    """The runs of a map whose column `target[i]` is column `source[i]` of this one; `target` ascends."""
    if np.array_equal(source, target) and runs.col.max(initial=-1) < len(source):
        return runs
    first = np.searchsorted(runs.col, np.arange(source.max(initial=-1) + 2))
    count = np.diff(first)[source]
    taken = np.arange(count.sum()) + np.repeat(first[source] - np.cumsum(count) + count, count)
    return LabelRuns(runs.label[taken], runs.row[taken], np.repeat(target, count), runs.length[taken])


def runs_of_labels(labels: UInt[np.ndarray, "h w"]) -> LabelRuns:
    """The runs of a painted map."""
    height = labels.shape[0]
    pixels = labels.T.reshape(-1)
    is_start = np.ones(pixels.size, bool)
    is_start[1:] = pixels[1:] != pixels[:-1]
    is_start[:: max(height, 1)] = True
    start = np.flatnonzero(is_start)
    col = start // max(height, 1)
    length = np.diff(start, append=pixels.size)
    return LabelRuns(pixels[start].astype(np.int64), start - col * height, col, length)
