"""Tables by class say what the protocols say of classes, in the same rows as Parquet and as JSON."""

from __future__ import annotations

import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest

from semsam.evaluation.class_tables import CLASS_TABLE, class_rows, class_tables
from semsam.evaluation.dataset_numbers import DatasetNumbers, measure_dataset
from tests.synthetic_items import NAMES, synthetic_items, without_prompts


@pytest.fixture(scope="module")
def numbers() -> DatasetNumbers:
    return measure_dataset([[without_prompts(item) for item in synthetic_items(20, seed=1)]], NAMES)


def test_rows_are_the_numbers_of_the_protocols(numbers: DatasetNumbers) -> None:
    rows = class_rows(numbers)
    assert {row.protocol for row in rows} == numbers.protocols.keys()
    for row in rows:
        known = numbers.protocols[row.protocol].images.per_class()[row.name]
        assert row.value == known[row.number]
        assert row.count == known.get("regions")
        assert row.low is row.high is None


def test_main_numbers_have_intervals_on_request(numbers: DatasetNumbers) -> None:
    rows = class_rows(numbers, num_resamples=20)
    assert {row.number for row in rows if row.low is not None} >= {"ap", "ap50", "pq", "iou"}
    assert all(row.high is not None and 0 <= row.low <= row.high <= 1 for row in rows if row.low is not None)


def test_parquet_and_json_hold_the_same_rows(numbers: DatasetNumbers) -> None:
    rows = class_rows(numbers, num_resamples=5)
    files = class_tables(rows)
    assert files == class_tables(rows)
    table = pyarrow.parquet.read_table(pa.BufferReader(files["classes.parquet"]))
    assert table.schema.equals(CLASS_TABLE)
    told = orjson.loads(files["classes.json"])
    assert [dict(zip(told["columns"], row, strict=True)) for row in told["data"]] == table.to_pylist()
    assert len(table) == len(rows)


def test_of_no_numbers_there_are_empty_tables() -> None:
    files = class_tables(class_rows(measure_dataset([], NAMES)))
    assert len(pyarrow.parquet.read_table(pa.BufferReader(files["classes.parquet"]))) == 0
    assert orjson.loads(files["classes.json"])["data"] == []
