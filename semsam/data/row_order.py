"""Which row is draw `k` of a dataset: epoch after epoch in other permutations, in closed form.

An epoch's permutation is made of shuffled blocks of neighbouring draws and of draws shuffled within a window of such
blocks (`_window_order`), so that reads stay near each other.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from semsam.data.randomness import generator, random_key
from semsam.data.row_categories import repeat_factors


def rows_in_use(dataset: str, num_rows: int, fraction: float) -> Int64[np.ndarray, " r"] | None:
    """The row numbers that a fraction leaves of a dataset, in order; None for all of them.

    Keyed by the dataset alone, so that runs with other seeds see the same data, and nested: a larger fraction holds all
    rows of a smaller one.
    """
    return None if fraction == 1 else some_rows(dataset, num_rows, max(1, round(fraction * num_rows)))


def some_rows(dataset: str, num_rows: int, count: int) -> Int64[np.ndarray, " r"]:
    """So many row numbers of a dataset, in order: the same in every run, and a larger count holds all of a smaller one.

    The first rows would often be of one scene, or of one part of the world.
    """
    if count >= num_rows:
        return np.arange(num_rows)
    ranks = generator(0, _key(dataset), "plan").bit_generator.random_raw(num_rows)
    return np.sort(np.argpartition(ranks, count - 1)[:count]) if count else np.arange(0)


def repeated(
    dataset: str, rows: Int64[np.ndarray, " r"] | None, categories: pa.Table, threshold: float
) -> Int64[np.ndarray, " d"]:
    """The rows in use, each as often as its repeat factor among them says; `categories` has every row of the dataset.

    A factor of 1.3 is 1 or 2, as a draw keyed by dataset and row alone decides, and the same in all epochs: so epochs
    have one length, and nobody needs to go through earlier ones to know what step 300,000 reads.
    """
    factors = repeat_factors(categories if rows is None else categories.take(rows), threshold)
    draws = generator(0, _key(dataset), "plan", layer=1).bit_generator.random_raw(len(categories)) >> 32
    if rows is None:
        rows = np.arange(len(categories))
    # Of 32 bits, which a factor of 1 takes without rounding.
    times = np.floor(factors + draws[rows] * 2.0**-32).astype(np.int64)
    # All rows once, then those that come twice, and so on: what comes together should not be the same image.
    return np.concatenate([rows[times > earlier] for earlier in range(times.max())])


@dataclass(frozen=True)
class RowOrder:
    """The endless sequence of draws from one dataset."""

    key: int
    epoch_size: int
    shard_starts: Int64[np.ndarray, " shards"]
    rows: Int64[np.ndarray, " epoch_size"] | None  # What an epoch puts in order; None: every row once.
    block_rows: int
    window_blocks: int

    @staticmethod
    def of(
        seed: int,
        dataset: str,
        sizes: tuple[int, ...],
        rows: Int64[np.ndarray, " epoch_size"] | None,
        block_rows: int,
        window_blocks: int,
    ) -> RowOrder:
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)[:-1]])
        key = random_key(seed, _key(dataset), "plan")
        return RowOrder(key, sum(sizes) if rows is None else len(rows), starts, rows, block_rows, window_blocks)

    def places(self, draws: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, "b 2"]:
        """(shard, row) of each draw."""
        epochs, positions = np.divmod(draws, self.epoch_size)
        rows = np.empty_like(draws)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            rows[mine] = self._epoch_order(epoch, positions[mine])
        if self.rows is not None:
            rows = self.rows[rows]
        shards = np.searchsorted(self.shard_starts, rows, side="right") - 1
        return np.stack([shards, rows - self.shard_starts[shards]], axis=1)

    def _epoch_order(self, epoch: int, positions: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """The values of an epoch's permutation at some positions."""
        num_blocks = -(-self.epoch_size // self.block_rows)
        _, last_block_place = _block_order(self.key, num_blocks, epoch)
        # All windows are equally long, but for the one that holds the last block, which may be short; counting as if
        # it were full keeps the arithmetic plain.
        window_size = self.window_blocks * self.block_rows
        missing = num_blocks * self.block_rows - self.epoch_size
        end_of_short_window = (last_block_place // self.window_blocks + 1) * window_size - missing
        windows, offsets = np.divmod(positions + missing * (positions >= end_of_short_window), window_size)
        values = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            mine = windows == window
            order = _window_order(self.key, self.epoch_size, self.block_rows, self.window_blocks, epoch, window)
            values[mine] = order[offsets[mine]]
        return values


@lru_cache(maxsize=16)
def _block_order(key: int, num_blocks: int, epoch: int) -> tuple[Int64[np.ndarray, " num_blocks"], int]:
    """The blocks of an epoch in the order of their use, and where in it the last block stands."""
    order = _permutation(key, num_blocks, epoch, layer=0)
    return order, int(np.flatnonzero(order == num_blocks - 1)[0])


@lru_cache(maxsize=64)
def _window_order(
    key: int, epoch_size: int, block_rows: int, window_blocks: int, epoch: int, window: int
) -> Int64[np.ndarray, " w"]:
    """The part of an epoch's permutation that one window of blocks makes."""
    order, _ = _block_order(key, -(-epoch_size // block_rows), epoch)
    blocks = order[window * window_blocks : (window + 1) * window_blocks]
    values = (blocks[:, None] * block_rows + np.arange(block_rows)).ravel()
    values = values[values < epoch_size]
    return values[_permutation(key, len(values), epoch, layer=window + 1)]


def _permutation(key: int, size: int, epoch: int, layer: int) -> Int64[np.ndarray, " size"]:
    """A permutation made from raw bits: unlike numpy's own `permutation` it is the same in every release of numpy."""
    bits = generator(key, epoch, "plan", layer).bit_generator.random_raw(size)
    return np.argsort(bits)


def _key(dataset: str) -> int:
    return zlib.crc32(dataset.encode())
