"""MATLAB's .mat files of version 5, as far as structs, numbers and text go; and looking into them without trust.

Read here and not by scipy, which believes the sizes that a file claims: a damaged one ends the process.  The format is
that of MathWorks, "MAT-File Level 5 File Format".  The functions below `load_variable` give what was wanted of a value,
or a `ValueError` that shows what is there instead.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

MAX_BYTES = 2**28  # Inflated; the masks of a VOC image take a hundredth of this.
_HEADER_BYTES = 128
_DEEPEST = 8  # Structs in structs; PASCAL-Part has three.
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_STRUCT, _TEXT, _NUMERIC = 2, 4, range(6, 16)
_OTHERS = {1: "cell array", 3: "object", 5: "sparse array", 16: "function", 17: "object"}
_IS_COMPLEX = 0x800


@dataclass(frozen=True)
class Structs:
    """A struct array: its fields, which an empty one has as well, and its rows."""

    fields: tuple[str, ...]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Unread:
    """A value of a kind that is not read."""

    kind: str
    size: tuple[int, ...]


def load_variable(data: bytes, name: str, max_bytes: int = MAX_BYTES) -> Any:
    """A variable of a .mat file: an array of numbers, a str for a line of text, `Structs`, or `Unread`.

    Raises `ValueError` for whatever is wrong with the file, and for a variable of more than `max_bytes`.
    """
    if b"\x89HDF" in (data[:4], data[512:516]) or data[:10] == b"MATLAB 7.3":
        raise ValueError("a .mat file of MATLAB 7.3, which is HDF5; save it with -v7")
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:_HEADER_BYTES])
    if order is None:
        raise ValueError(f"no .mat file of version 5: it begins with {data[:8]!r}")
    for kind, content in _Elements(memoryview(data)[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            kind, content = next(_Elements(memoryview(_decompressed(content, max_bytes)), order), (0, content))
        matrix = _Matrix(content, order) if kind == _MATRIX else None
        if matrix is not None and matrix.name == name:
            return matrix.value(_DEEPEST)
    raise ValueError(f"no variable {name!r}")


def struct_rows(value: Any, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a struct array that has these fields."""
    if not isinstance(value, Structs):
        raise ValueError(f"no struct array but {shown(value)}")
    for field in fields:
        if field not in value.fields:
            raise ValueError(f"no field {field!r} among {', '.join(value.fields)}")
    return value.rows


def is_empty(value: Any) -> bool:
    """Whether this is MATLAB's `[]`, which stands for no rows of anything."""
    return isinstance(value, np.ndarray) and value.size == 0


def whole_number(value: Any) -> int:
    """A single whole number, or one written as text."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,15}\s*", value):
        return int(value)
    if isinstance(value, np.ndarray) and value.size == 1:
        number = value.ravel()[0]
        if -(2**53) < number < 2**53 and number == int(number):
            return int(number)
    raise ValueError(f"no whole number but {shown(value)}")


def text(value: Any) -> str:
    """A line of text, not empty."""
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"no text but {shown(value)}")


def mask(value: Any) -> Bool[np.ndarray, "h w"]:
    """A mask whose pixels are 0 and, inside, all one larger number."""
    if not isinstance(value, np.ndarray) or value.ndim != 2 or not value.size:
        raise ValueError(f"no mask but {shown(value)}")
    inside: Bool[np.ndarray, "h w"] = value != 0
    largest = value.max()
    if not 0 <= largest < np.inf or (value[inside] != largest).any():
        raise ValueError(f"no mask but {shown(value)} with values from {value.min()} to {largest}")
    return inside


def shown(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, str):
        return f"the text {value!r:.60}"
    if isinstance(value, Structs):
        return f"{len(value.rows)} structs"
    if isinstance(value, Unread):
        return f"a {value.kind} of size {list(value.size)}"
    content = f" {value.ravel().tolist()!r:.60}" if value.size <= 4 else ""
    return f"{value.dtype.name} of size {list(value.shape)}{content}"


class _Elements(Iterator[tuple[int, memoryview]]):
    """The data elements of a stretch of the file one after the other: type and content."""

    def __init__(self, data: memoryview, order: str) -> None:
        self.left, self.order = data, order

    def __next__(self) -> tuple[int, memoryview]:
        if not len(self.left):
            raise StopIteration
        if len(self.left) < 8:
            raise ValueError("cut short")
        kind, length = struct.unpack_from(f"{self.order}II", self.left)
        if kind >> 16:  # Up to four bytes lie in the place of the length.
            kind, length, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        else:
            start, end = 8, 8 + length + (0 if kind == _COMPRESSED else -length % 8)
        content = self.left[start : start + length]
        if len(content) < length or (start == 4 and length > 4):
            raise ValueError(f"cut short: {length} bytes are claimed and {len(content)} there")
        self.left = self.left[end:]
        return kind, content

    def need(self) -> tuple[int, memoryview]:
        """The next element, which has to be there."""
        for element in self:
            return element
        raise ValueError("cut short")

    def numbers(self) -> np.ndarray:
        """The next element as numbers, which it has to be."""
        kind, content = self.need()
        if kind not in _NUMBERS:
            raise ValueError(f"numbers of the unknown type {kind}")
        dtype = np.dtype(self.order + _NUMBERS[kind])
        if len(content) % dtype.itemsize:
            raise ValueError(f"{len(content)} bytes of {dtype.name}")
        return np.frombuffer(content, dtype)


class _Matrix:
    """An array of anything: what its head says, and its content on demand."""

    def __init__(self, content: memoryview, order: str) -> None:
        self.order, self.elements = order, _Elements(content, order)
        flags, size = self.elements.numbers(), self.elements.numbers().tolist()
        is_size = len(size) > 1 and all(type(side) is int and side >= 0 for side in size)
        if not len(flags) or flags.dtype.kind != "u" or not is_size:
            raise ValueError(f"an array of size {size}")
        self.kind, self.is_complex = int(flags[0]) & 0xFF, bool(int(flags[0]) & _IS_COMPLEX)
        self.size, self.count = tuple(size), math.prod(size)
        self.name = bytes(self.elements.need()[1]).decode("latin-1")

    def value(self, depth: int) -> Any:
        if self.kind == _STRUCT and depth:
            return self._structs(depth)
        if self.kind == _TEXT and (self.count == 0 or self.size[0] == 1):
            return self._text()
        if self.kind in _NUMERIC and not self.is_complex:
            numbers = self.elements.numbers()
            if len(numbers) != self.count:
                raise ValueError(f"{len(numbers)} numbers for a size of {list(self.size)}")
            return numbers.reshape(self.size, order="F")
        kinds = {_STRUCT: "struct too deep", _TEXT: "text of several lines"} | dict.fromkeys(_NUMERIC, "complex array")
        return Unread((kinds | _OTHERS).get(self.kind, f"array of class {self.kind}"), self.size)

    def _text(self) -> str:
        kind, content = self.elements.need()
        utf_16 = "utf-16-le" if self.order == "<" else "utf-16-be"
        return bytes(content).decode({4: utf_16, 17: utf_16, 16: "utf-8"}.get(kind, "latin-1"))

    def _structs(self, depth: int) -> Structs:
        lengths, names = self.elements.numbers(), bytes(self.elements.need()[1])
        length = int(lengths[0]) if len(lengths) else 0
        if length < 1 or len(names) % length or self.count * (len(names) // length) * 8 > len(self.elements.left):
            raise ValueError(f"structs of size {list(self.size)}, and no room for their fields")
        starts = range(0, len(names), length)
        fields = tuple(names[i : i + length].partition(b"\0")[0].decode("latin-1") for i in starts)
        if not fields and self.count:
            raise ValueError("structs without a field")
        return Structs(fields, [{field: self._field(depth) for field in fields} for _ in range(self.count)])

    def _field(self, depth: int) -> Any:
        kind, content = self.elements.need()
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} in a struct")
        return _Matrix(content, self.order).value(depth - 1) if len(content) else np.zeros((0, 0))


def _decompressed(data: memoryview, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, max_bytes)
    except zlib.error as error:
        raise ValueError(f"damaged, or cut short: {error}") from None
    if inflater.unconsumed_tail:
        raise ValueError(f"more than {max_bytes} bytes when decompressed")
    if not inflater.eof:
        raise ValueError("cut short")
    return found
