"""Names of files by the million: what belongs together is found in any order, and listed once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from pipelines.sources.file_names import Rows, Stems, texts
from pipelines.sources.sa1b import Sa1b
from tests.unit.pipelines.sources.memory import MemoryFiles


class CountedFiles(MemoryFiles):
    """Files that count how often they are listed."""

    walks = 0

    def walk(self) -> Iterator[str]:
        CountedFiles.walks += 1
        return super().walk()


def stems_of(names: list[str]) -> Stems:
    return Stems.of(names, "sa_", "jpg", "json", lambda stem: stem.rpartition("/")[2])


@pytest.mark.parametrize("count", [0, 1, 2, 50_000])
def test_stems_are_sorted_whatever_the_order_of_their_files(count: int) -> None:
    names = [f"{i % 3}/sa_{i:06d}.{ending}" for i in range(count) for ending in ("jpg", "json")]
    names += ["sa_alone.jpg", "0/sa_000000.txt", "other_1.json", "0/without"]
    random.Random(0).shuffle(names)
    stems = stems_of(names)
    assert stems.annotated.to_pylist() == [f"{i % 3}/sa_{i:06d}" for i in range(count)]
    assert stems.groups.tolist() == list(range(count))
    assert stems.unannotated.to_pylist() == ["sa_alone"]


def test_equal_keys_stand_together_as_a_group() -> None:
    stems = stems_of(["b/sa_2.json", "sa_1.json", "a/sa_2.json", "sa_3.json"])
    assert stems.groups.tolist() == [0, 1, 1, 2]
    assert sorted(texts(stems.annotated, np.array([1, 2]))) == ["a/sa_2", "b/sa_2"]


def test_images_alone_are_all_told_where_nothing_is_annotated() -> None:
    assert stems_of(["sa_2.jpg", "sa_1.jpg"]).unannotated.to_pylist() == ["sa_1", "sa_2"]


def test_rows_are_a_sequence() -> None:
    rows = Rows(np.arange(100_000) * 2, lambda some: some.tolist())
    assert list(rows) == list(range(0, 200_000, 2))
    assert (rows[0], rows[-1], rows[5:7], rows[3:3]) == (0, 199_998, [10, 12], [])
    assert not Rows(np.arange(0), lambda some: some.tolist())


def test_both_splits_come_of_one_listing_and_are_all_of_it() -> None:
    files = CountedFiles({f"{i % 7}/sa_{i}.{ending}": b"" for i in range(300) for ending in ("jpg", "json")})
    source, before = Sa1b(val_share=0.2), CountedFiles.walks
    train, val = source.indexes(files, ("train", "val"))
    assert CountedFiles.walks == before + 1
    assert len(val.entries) > 20
    assert sorted(entry.sample_id for entry in [*train.entries, *val.entries]) == [f"{i:012d}" for i in range(300)]
    for split, index in (("train", train), ("val", val)):
        assert list(source.index(files, split).entries) == list(index.entries)
        assert [entry.sample_id for entry in index.entries] == sorted(entry.sample_id for entry in index.entries)
