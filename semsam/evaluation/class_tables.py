"""The numbers of every class as tables: one row per protocol, class and number."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson
import pyarrow as pa
import pyarrow.parquet

from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.intervals import Interval, class_intervals
from semsam.evaluation.numbers import Contributions

CLASS_TABLE = pa.schema(
    [
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),  # Of `iou_calibration` a tenth of the predicted IoUs.
        pa.field("number", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("count", pa.int64()),  # Regions or prompts that the number speaks of; null where none are counted.
        pa.field("low", pa.float64()),  # Of the 95% interval; null where there is none.
        pa.field("high", pa.float64()),
    ]
)
_NO_SHARES = frozenset({"distinct", "predicted"})  # All other numbers lie between 0 and 1.
_COUNT = "_count"  # How `per_class` names the count of one number;
_COUNTS = ("regions", "levels")  # and that of all numbers of a class.


@dataclass(frozen=True)
class ClassRow:
    """One number of one class; fields are those of `CLASS_TABLE`."""

    protocol: str
    name: str  # The class's.
    number: str
    value: float
    count: int | None
    low: float | None
    high: float | None


def class_rows(numbers: DatasetNumbers, num_resamples: int = 0) -> list[ClassRow]:
    """The numbers of every class that has any, protocol by protocol; with `num_resamples` > 0 the main ones' intervals.

    Classes are in the order of their protocol's vocabulary.
    """
    return [row for protocol, one in numbers.protocols.items() for row in _rows(protocol, one.images, num_resamples)]


def class_tables(rows: list[ClassRow]) -> dict[str, bytes]:
    """The rows as files, by name: `classes.parquet`, and `classes.json` with the keys `columns` and `data`."""
    columns = CLASS_TABLE.names
    values = [list(asdict(row).values()) for row in rows]
    table = pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in values], schema=CLASS_TABLE)
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return {
        "classes.parquet": sink.getvalue().to_pybytes(),
        "classes.json": orjson.dumps({"columns": columns, "data": values}),
    }


def _rows(protocol: str, images: Contributions, num_resamples: int) -> list[ClassRow]:
    known = class_intervals(images, num_resamples=num_resamples) if num_resamples else {}
    rows = []
    for name, values in images.per_class().items():
        of_all = next((values[count] for count in _COUNTS if count in values), None)
        for number, value in values.items():
            if number.endswith(_COUNT) or number in _COUNTS:
                continue
            count = values.get(number + _COUNT, of_all)
            low, high = _ends(known.get(name, {}).get(number), number)
            rows.append(ClassRow(protocol, name, number, value, None if count is None else int(count), low, high))
    return rows


def _ends(interval: Interval | None, number: str) -> tuple[float, float] | tuple[None, None]:
    """The ends of an interval; freeing a share's of their bias may have moved them beyond 0 and 1."""
    if interval is None:
        return None, None
    return (interval.low, interval.high) if number in _NO_SHARES else (max(interval.low, 0.0), min(interval.high, 1.0))
