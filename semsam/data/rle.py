"""COCO's compressed run-length masks: strings of run lengths in column-major order, zeros first.

A mask is thought of as its *toggles*: the sorted pixel positions (column * height + row) at which it changes between
outside and inside.  Everything here works on toggles; dense masks are made only where they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt8

# A number is written five bits per character, lowest first, with a sixth bit that says "more follows", plus 48.
_MAX_CHARACTERS = 12


def decode_counts(counts: bytes) -> Int64[np.ndarray, " r"]:
    """The run lengths of one mask; runs of zeros and ones in turn, zeros first.

    Raises `ValueError` for bytes that no encoder writes: a truncated string, characters outside the alphabet, negative
    runs.
    """
    return decode_many([counts])[0]


def decode_many(counts: Sequence[bytes]) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " m"]]:
    """The run lengths of all masks, one after the other, and how many of them each mask has.

    The masks are decoded together because a hundred calls into numpy cost more than the work itself.
    """
    text = np.frombuffer(b"".join(counts), np.uint8)
    stops = np.cumsum(np.fromiter(map(len, counts), np.int64, len(counts)))
    digits = text - np.uint8(48)  # Wraps around for characters below "0", which the next line then refuses.
    if text.size and digits.max() > 63:
        raise ValueError("RLE counts hold a character outside the alphabet")
    is_last = digits < 32
    filled = np.diff(stops, prepend=0) > 0
    if not is_last[stops[filled] - 1].all():
        raise ValueError("RLE counts end in the middle of a number: the bytes are truncated")
    last = np.flatnonzero(is_last)
    num_runs = np.diff(np.searchsorted(last, stops), prepend=0)
    runs = _undo_differences(_numbers(digits, last), num_runs)
    if runs.size and runs.min() < 0:
        raise ValueError("RLE counts hold a negative run")
    return runs, num_runs


def toggles_of_many(
    counts: Sequence[bytes], height: int, width: int
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """The ends of all runs of all masks, ascending within a mask, and the mask that each belongs to.

    Each end toggles its mask; an end that occurs twice in a mask cancels out, and height * width lies past the last
    pixel.  Raises `ValueError` for runs that do not add up to height * width.
    """
    runs, num_runs = decode_many(counts)
    ends = np.cumsum(runs)
    stops = np.cumsum(num_runs)
    totals = np.diff(np.concatenate([[0], ends])[stops], prepend=0)
    if (totals != height * width).any():
        wrong = totals[totals != height * width][0]
        raise ValueError(f"RLE runs add up to {wrong} pixels, not {height} x {width} = {height * width}")
    mask = np.repeat(np.arange(len(counts)), num_runs)
    return ends - mask * (height * width), mask


def encode_counts(runs: Int64[np.ndarray, " r"]) -> bytes:
    """The COCO string of run lengths; the inverse of `decode_counts`."""
    numbers = np.asarray(runs, np.int64).copy()
    numbers[3:] -= numbers[1:-2].copy()
    characters = np.zeros((len(numbers), _MAX_CHARACTERS), np.uint8)
    written = np.zeros(characters.shape, bool)
    more = np.ones(len(numbers), bool)
    for place in range(_MAX_CHARACTERS):
        written[:, place] = more
        digit = numbers & 31
        numbers >>= 5
        # The last digit's high bit is the sign, so what is left must be all zeros below it, or all ones.
        more = more & (numbers != -(digit >> 4))
        characters[:, place] = digit + (more << 5) + 48
        if not more.any():
            break
    return characters[written].tobytes()


def decode(counts: bytes, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The dense mask."""
    runs = decode_counts(counts)
    toggles_of_many([counts], height, width)  # Checks the total.
    inside = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, runs).reshape(width, height).T)


def encode(mask: Bool[np.ndarray, "h w"]) -> bytes:
    """The COCO string of a dense mask: the same bytes as pycocotools gives."""
    return _encode_toggles(_toggles(np.asarray(mask, bool)), mask.size)


def area(counts: bytes) -> int:
    """How many pixels the mask covers."""
    return int(decode_counts(counts)[1::2].sum())


def box_xyxy(counts: bytes, height: int, width: int) -> tuple[float, float, float, float]:
    """The tight box in pixel edges (largest index + 1); zeros for an empty mask."""
    ends, _ = toggles_of_many([counts], height, width)
    starts, stops = ends[: len(ends) // 2 * 2].reshape(-1, 2).T
    starts, stops = starts[starts < stops], stops[starts < stops]
    if not len(starts):
        return 0.0, 0.0, 0.0, 0.0
    left, right = starts // height, (stops - 1) // height
    top, bottom = starts - left * height, stops - 1 - right * height
    if (left != right).any():  # A run that goes on into the next column touches the image's bottom and its top.
        top, bottom = np.array([0]), np.array([height - 1])
    return float(left[0]), float(top.min()), float(right.max() + 1), float(bottom.max() + 1)


def resize(counts: bytes, height: int, width: int, new_height: int, new_width: int) -> bytes:
    """The mask at another size, nearest neighbour at pixel centres."""
    rows, cols = nearest(height, new_height), nearest(width, new_width)
    if new_width > width:  # Columns repeat, and a toggle has one place only.
        return encode(decode(counts, height, width)[rows[:, None], cols])
    ends, _ = toggles_of_many([counts], height, width)
    return _encode_toggles(resample_toggles(ends, height, width, rows, cols), new_height * new_width)


def nearest(size: int, new_size: int) -> Int64[np.ndarray, " n"]:
    """For each pixel of a resized axis, the source pixel that holds its centre."""
    return (2 * np.arange(new_size) + 1) * size // (2 * new_size)


def resample_toggles(
    toggles: Int64[np.ndarray, " r"],
    height: int,
    width: int,
    rows: Int64[np.ndarray, " y"],
    cols: Int64[np.ndarray, " x"],
) -> Int64[np.ndarray, " r"]:
    """Where the toggles lie in the grid of the sampled `rows` (ascending) and `cols` (strictly ascending).

    A position moves to the number of sampled pixels before it, so order is kept and toggles that meet cancel out.
    """
    rows_before = np.searchsorted(rows, np.arange(height))
    cols_before = np.searchsorted(cols, np.arange(width + 1))
    # In a column that is not sampled every toggle moves to the start of the next column that is.
    is_sampled = np.diff(cols_before, append=cols_before[-1]) > 0
    col = toggles // height
    row = toggles - col * height
    return cols_before[col] * len(rows) + rows_before[row] * is_sampled[col]


def group_edges(values: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " groups_plus_1"]:
    """Where each stretch of equal values begins, and the number of values: stretch `i` is [edges[i], edges[i + 1])."""
    is_edge = np.ones(len(values) + 1, bool)
    is_edge[1:-1] = values[1:] != values[:-1]
    return np.flatnonzero(is_edge)


def _numbers(digits: UInt8[np.ndarray, " c"], last: Int64[np.ndarray, " r"]) -> Int64[np.ndarray, " r"]:
    """The signed numbers whose last characters are at `last`."""
    first = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    length = last - first + 1
    if length.size and length.max() > _MAX_CHARACTERS:
        raise ValueError(f"RLE counts hold a number of more than {_MAX_CHARACTERS} characters")
    bits = digits & 31
    numbers = bits[first].astype(np.int64)
    longer, place = np.flatnonzero(length > 1), 1
    while longer.size:  # Few numbers have more than two characters, so the rounds get shorter quickly.
        numbers[longer] |= bits[first[longer] + place].astype(np.int64) << (5 * place)
        place += 1
        longer = longer[length[longer] > place]
    negative = (bits[last] & 16) > 0
    return numbers - (negative.astype(np.int64) << (5 * length))


def _undo_differences(numbers: Int64[np.ndarray, " r"], num_runs: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " r"]:
    """Run lengths from what is stored: the first three as they are, then the difference to the run two before.

    Without its first number a mask is two interleaved running sums, so all masks are laid out as rows of two and
    summed down the columns at once; what the masks before have added is taken off again.
    """
    starts = np.cumsum(num_runs) - num_runs
    num_pairs = num_runs // 2  # (n - 1) numbers, rounded up to pairs.
    first_pair = np.cumsum(num_pairs) - num_pairs
    has_numbers = num_runs > 0
    is_first = np.zeros(len(numbers), bool)
    is_first[starts[has_numbers]] = True
    rest = np.flatnonzero(~is_first)
    place = rest + np.repeat(2 * first_pair - starts - 1, np.maximum(num_runs - 1, 0))
    pairs = np.zeros((int(num_pairs.sum()) + 1, 2), np.int64)
    pairs[1:].reshape(-1)[place] = numbers[rest]
    sums = np.cumsum(pairs, axis=0)
    sums = sums[1:] - np.repeat(sums[first_pair], num_pairs, axis=0)
    runs = numbers.copy()
    runs[rest] = sums.reshape(-1)[place]
    return runs


def _toggles(mask: Bool[np.ndarray, "h w"]) -> Int64[np.ndarray, " r"]:
    pixels = mask.T.reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    return np.concatenate([[0], changes]) if pixels.size and pixels[0] else changes


def _encode_toggles(toggles: Int64[np.ndarray, " r"], size: int) -> bytes:
    """The string of ascending toggles, of which equal pairs and those past the last pixel mean nothing."""
    toggles = toggles[toggles < size]
    edges = group_edges(toggles)
    is_toggle = np.diff(edges) % 2 == 1
    return encode_counts(np.diff(toggles[edges[:-1][is_toggle]], prepend=0, append=size))
