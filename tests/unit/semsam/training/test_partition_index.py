"""Where the elements of parameters lie is found from headers alone, and read in units of bounded size."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from semsam.storage import Folder
from semsam.training import partition_index
from semsam.training.partition_files import partition_file, read_headers, write_partitions
from semsam.training.partition_index import PartitionIndex
from semsam.training.partition_reading import Wanted, fill

SIZES = {"a": 700, "b": 1, "c": 33, "d": 4096}
VALUES = {name: torch.randn(size) for name, size in SIZES.items()}
QUANTITIES = ("exp_avg", "exp_avg_sq")


def written(folder: Folder, writers: int, seed: int) -> PartitionIndex:
    """Every parameter cut at random, its ranges dealt to the writers at random; the index of what was written."""
    rng = np.random.default_rng(seed)
    for sign, quantity in zip((1, -1), QUANTITIES, strict=True):
        pieces: list[dict[str, torch.Tensor]] = [{} for _ in range(writers)]
        for name, values in VALUES.items():
            cuts = np.unique(rng.integers(0, len(values), 5))
            edges = [0, *cuts[cuts > 0].tolist(), len(values)]
            for start, stop in pairwise(edges):
                pieces[rng.integers(writers)][f"{name}:{start}"] = sign * values[start:stop]
        for worker, piece in enumerate(pieces):
            write_partitions(folder, quantity, worker, piece)
    names = {one: [partition_file(one, worker) for worker in range(writers)] for one in QUANTITIES}
    return PartitionIndex.of("here", {one: read_headers(folder, some, {}) for one, some in names.items()}, SIZES)


@pytest.mark.parametrize("unit", [4, 64, 1000, 2**25])
@pytest.mark.parametrize("writers", [1, 2, 7])
def test_any_elements_are_found_whatever_the_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: int, unit: int
) -> None:
    monkeypatch.setattr(partition_index, "UNIT", unit)
    folder, rng = Folder(tmp_path), np.random.default_rng(unit)
    index = pickle.loads(pickle.dumps(written(folder, writers, seed=writers)))
    for _ in range(20):
        wanted, expected = [], []
        for name, values in VALUES.items():
            start, stop = np.sort(rng.integers(0, len(values) + 1, 2)).tolist()
            wanted.append(Wanted(name, start, torch.full((stop - start,), torch.nan)))
            expected.append(values[start:stop])
        fill(folder, index, {QUANTITIES[0]: wanted})
        assert all(torch.equal(one.into, values) for one, values in zip(wanted, expected, strict=True))
        fill(folder, index, {QUANTITIES[1]: wanted})
        assert all(torch.equal(one.into, -values) for one, values in zip(wanted, expected, strict=True))


def test_units_are_disjoint_and_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_index, "UNIT", 256)
    folder = Folder(tmp_path)
    index = written(folder, 3, seed=0)
    spans = sorted(index.span(unit) for unit in range(index.num_units))
    assert sum(size for _, _, size in spans) == 4 * len(QUANTITIES) * sum(SIZES.values())
    for (file, first, size), (next_file, next_first, _) in pairwise(spans):
        assert file != next_file or first + size <= next_first


def test_an_index_pickles_to_a_few_bytes_a_range(tmp_path: Path) -> None:
    index = written(Folder(tmp_path), 7, seed=0)
    assert len(pickle.dumps(index)) < 50 * len(index.ranges) + 1500
