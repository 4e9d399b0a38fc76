"""Reads single fields of native rows into values of known type.

Numbers and flags written as text are what they say; any other wrong type is a fault of the data: the reader raises
`ValueError`, `take` adds the field's name to it, and whoever reads the row counts it as unusable.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Row = dict[str, Any]

FARTHEST = 1e5  # Pixels.  No image is as large; a rasteriser's memory grows with the length of an edge.
_LARGEST_ID = 2**63 - 1
_LARGEST_EXACT = 2**53  # Beyond it a float is no longer one whole number.
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,300}\.?[0-9]{0,300}|\.[0-9]{1,300})([eE][+-]?[0-9]{1,3})?")


class OddValue(Exception):  # noqa: N818 - it is an outcome that is counted, not an error.
    """A row that cannot be used: `field` is what to count it by, the text shows the value."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field


def take(row: object, key: str, read: Callable[[Any], T], *default: T) -> T:
    """The value of a row's field, or the default where the row has no such field.  Raises `OddValue`."""
    if not isinstance(row, dict):
        raise OddValue("row", f"{shown(row)} is no object")
    if key not in row:
        if default:
            return default[0]
        raise OddValue(key, "missing")
    try:
        return read(row[key])
    except ValueError as error:
        raise OddValue(key, str(error)) from None


def shown(value: object) -> str:
    """The value as a message shows it: cut in the middle where it is long."""
    return reprlib.repr(value)


def as_is(value: object) -> object:
    """The value itself, for fields whose reader comes later."""
    return value


def as_int(value: object) -> int:
    """A whole number, also as text or as a float without a fraction."""
    if type(value) is int and -_LARGEST_ID <= value <= _LARGEST_ID:
        return value  # Objects365 has a hundred million of them.
    number = _number(value)
    largest = _LARGEST_ID if isinstance(number, int) else _LARGEST_EXACT
    if not -largest <= number <= largest or number != int(number):
        raise ValueError(f"{shown(value)} is no whole number of at most 64 bits")
    return int(number)


def as_coordinate(value: object) -> float:
    """A number of pixels, of either sign."""
    return _within(value, -FARTHEST, FARTHEST)


def as_area(value: object) -> float | None:
    """A number of square pixels; None for null, which is as good as no area at all."""
    return None if value is None else _within(value, 0, FARTHEST**2)


def as_size(value: object) -> int:
    """A height or width in whole pixels."""
    number = as_int(value)
    if not 0 < number <= FARTHEST:
        raise ValueError(f"{shown(value)} is no height or width")
    return number


def as_flag(value: object) -> bool:
    """True or false: as such, as 1 or 0, or as the text of either."""
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else value
    if text in ("true", "false"):
        return text == "true"
    number = _number(value)
    if number not in (0, 1):
        raise ValueError(f"{shown(value)} is neither 0 nor 1")
    return number == 1


def as_text(value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{shown(value)} is no text")
    return value


def as_path(value: object) -> str:
    """The name of a file, with or without folders before it, that does not lead out of where it is looked up."""
    path = as_text(value)
    parts = path.split("/")
    leads_out = not parts[0] or ".." in parts or parts[-1] in ("", ".")
    if leads_out or "\0" in path or len(path.encode()) > 1000 or max(len(part.encode()) for part in parts) > 255:
        raise ValueError(f"{shown(value)} is no name of a file below the dataset's root")
    return path


def as_list(value: object) -> list[Any]:
    """A list of anything."""
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is no list")
    return value


def as_row(value: object) -> Row:
    """An object of anything."""
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is no object")
    return value


def as_ints(value: object) -> Sequence[int]:
    """A list of whole numbers."""
    values = as_list(value)
    return values if set(map(type, values)) <= {int} else [as_int(one) for one in values]


def as_coordinates(value: object) -> list[float]:
    """A list of numbers of pixels."""
    values = as_list(value)
    if not values or not set(map(type, values)) <= {int, float} or math.isnan(sum(values)):
        return [as_coordinate(one) for one in values]
    for one in (min(values), max(values)):  # There are very many: the others lie between.
        as_coordinate(one)
    return values


def as_box(value: object) -> list[float]:
    """Four numbers: left, top, width, height."""
    box = as_coordinates(value)
    if len(box) != 4:
        raise ValueError(f"{shown(value)} has not four numbers")
    return box


def _within(value: object, lowest: float, highest: float) -> float:
    number = _number(value)
    if not lowest <= number <= highest:  # Nor is NaN.
        raise ValueError(f"{shown(value)} is out of range")
    return float(number)


def _number(value: object) -> int | float:
    if type(value) in (int, float):  # A bool is an int by inheritance alone.
        return value  # type: ignore[return-value]
    text = value.strip() if isinstance(value, str) else ""
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    raise ValueError(f"{shown(value)} is no number")
