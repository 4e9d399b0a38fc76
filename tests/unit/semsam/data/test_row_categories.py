"""The names of a split's rows read back as they were written, and rare ones make their images come more often."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semsam.data.row_categories import Names, from_bytes, repeat_factors, row_names, to_batch, to_bytes
from semsam.data.schema import RECORD, Kind, Record, Region

ROWS: list[Names] = [([0, 2], [1]), ([], []), ([2], [])]


def region(object_category: int | None, part_category: int | None = None, is_crowd: bool = False) -> Region:
    box = (0.0, 0.0, 1.0, 1.0)
    return Region("1", None, box, 1.0, Kind.INSTANCE, object_category, part_category, is_crowd=is_crowd)


def record(*regions: Region) -> Record:
    return Record("paco", "train", "1", b"", 1, 1, 1, 1, regions)


def table(rows: list[Names]) -> pa.Table:
    return from_bytes(to_bytes([to_batch(rows)]), "test")


def slow_repeat_factors(rows: list[Names], threshold: float) -> list[float]:
    """The formula as it is written, name by name and row by row."""
    named = [{("object", c) for c in objects} | {("part", c) for c in parts} for objects, parts in rows]
    images = Counter(name for names in named for name in names)
    by_name = {name: max(1.0, math.sqrt(threshold / (count / len(rows)))) for name, count in images.items()}
    return [max([1.0, *(by_name[name] for name in names)]) for names in named]


@pytest.mark.parametrize(
    ("regions", "names"),
    [
        ((), ([], [])),
        ((region(None),), ([], [])),
        ((region(4), region(1), region(4), region(1, 7), region(None, 3)), ([1, 4], [3, 7])),
        ((region(4, is_crowd=True), region(2)), ([2], [])),
    ],
)
def test_a_row_has_each_name_of_its_regions_once_and_none_of_its_crowds(
    regions: tuple[Region, ...], names: Names
) -> None:
    assert row_names(record(*regions)) == names


@pytest.mark.parametrize("shards", [[], [[]], [ROWS], [ROWS[:1], [], ROWS[1:]], [[([], [])]]])
def test_names_read_back_shard_by_shard(shards: list[list[Names]]) -> None:
    data = to_bytes(to_batch(rows) for rows in shards)
    assert data == to_bytes(to_batch(rows) for rows in shards)
    rows = [(row["objects"], row["parts"]) for row in from_bytes(data, "test").to_pylist()]
    assert rows == [row for rows in shards for row in rows]


@pytest.mark.parametrize("data", [b"", b"ARROW1", to_bytes([to_batch(ROWS)])[:-20]])
def test_what_is_no_arrow_file_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ValueError, match="^paco/row_categories.arrow: not an Arrow IPC file"):
        from_bytes(data, "paco/row_categories.arrow")


def test_other_columns_are_refused_by_name() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, RECORD):
        pass
    with pytest.raises(ValueError, match="^paco/row_categories.arrow: other columns"):
        from_bytes(sink.getvalue().to_pybytes(), "paco/row_categories.arrow")


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 9)).map(sorted), st.sets(st.integers(0, 5)).map(sorted)), max_size=30),
    st.floats(1e-6, 1.0),
    st.integers(1, 7),
)
def test_repeat_factors_equal_the_formula_applied_name_by_name(
    rows: list[Names], threshold: float, rows_per_shard: int
) -> None:
    shards = [rows[i : i + rows_per_shard] for i in range(0, len(rows), rows_per_shard)]
    chunks = from_bytes(to_bytes(to_batch(shard) for shard in shards), "test")
    np.testing.assert_allclose(repeat_factors(chunks, threshold), slow_repeat_factors(rows, threshold), rtol=1e-12)


def test_a_name_that_one_image_in_a_hundred_shows_makes_it_come_more_often() -> None:
    rows: list[Names] = [([0], [])] * 99 + [([0, 1], [])]
    assert repeat_factors(table(rows), 0.01).tolist() == [1.0] * 100
    assert repeat_factors(table(rows), 0.09).tolist() == [1.0] * 99 + [3.0]
