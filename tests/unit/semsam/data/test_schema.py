"""Records survive the trip through Arrow, and shards of another schema are refused."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest

from semsam.data.schema import RECORD, Kind, Record, Region, from_row, to_row

MASK = Region("7", b"04", (0.5, 1.0, 2.0, 3.25), 4.0, Kind.INSTANCE, object_category=3, is_crowd=True)
PART = Region("", b"\x00\xff", (0.0, 0.0, 1.0, 1.0), 1.0, Kind.PART, part_category=0, parent=0, is_thing=False)
BOX = Region("9", None, (0.0, 0.0, 1.0, 1.0), 1.0, Kind.CLASS_AGNOSTIC)
RECORDS = {
    "empty": Record("sa1b", "train", "000", b"", 1, 1, 1, 1),
    "regions": Record("paco", "val", "a/b", b"\xff\xd8\x00", 2, 3, 20, 30, (MASK, PART, BOX), (1, 2), (), (0,)),
    "every kind": Record(
        "ade20k", "train", "x", b"1", 4, 4, 4, 4, tuple(BOX._replace(kind=kind) for kind in Kind), None, None, None
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_comes_back_equal(name: str) -> None:
    assert from_row(to_row(RECORDS[name])) == RECORDS[name]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_survives_an_arrow_file(name: str) -> None:
    file = io.BytesIO()
    with pa.ipc.new_file(file, RECORD) as writer:
        writer.write_batch(to_row(RECORDS["regions"]))
        writer.write_batch(to_row(RECORDS[name]))
    reader = pa.ipc.open_file(file.getvalue())
    assert from_row(reader.get_batch(1)) == RECORDS[name]


def test_any_row_of_a_batch_can_be_read() -> None:
    rows = pa.Table.from_batches([to_row(record) for record in RECORDS.values()]).combine_chunks().to_batches()[0]
    assert [from_row(rows, i) for i in range(3)] == list(RECORDS.values())


def test_null_is_not_zero() -> None:
    region = from_row(to_row(RECORDS["regions"])).regions
    assert region[0].object_category == 3
    assert region[0].part_category is None
    assert region[1].part_category == 0
    assert region[2].rle is None
    assert from_row(to_row(RECORDS["empty"])).checked_objects is None
    assert from_row(to_row(RECORDS["regions"])).checked_parts == ()


def test_kinds_come_back_as_kinds() -> None:
    assert from_row(to_row(RECORDS["regions"])).regions[0].kind is Kind.INSTANCE


def test_the_same_record_gives_the_same_bytes() -> None:
    first, second = (to_row(RECORDS["regions"]).serialize().to_pybytes() for _ in range(2))
    assert first == second
