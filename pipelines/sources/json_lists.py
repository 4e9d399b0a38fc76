"""Reads the lists of a big JSON object piece by piece.

Objects365's train json has 27 million boxes in 6 GB.  Parsed at once it takes six times its size in memory, so it is
cut between rows, which are found by counting brackets outside of strings, and parsed one piece at a time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

_PIECE = 1 << 23  # Bytes.
# What a character does to the depth of nesting (255 is -1), 2 for a quote, 0 for all others.
_CODES = bytes({"[": 1, "{": 1, "]": 255, "}": 255, '"': 2}.get(chr(i), 0) for i in range(256))
_NAME = re.compile(rb'"([^"\\]{1,100})"\s*:\s*$')


def parse_json(data: bytes, path: str) -> Any:
    """The parsed JSON.  Raises `ValueError` naming the file, line and column."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None


class JsonLists:
    """The lists at the top level of a JSON file; whatever else is there is passed over."""

    def __init__(self, data: bytes, path: str, piece: int = _PIECE) -> None:
        self._data = data
        self._path = path
        self._cuts: dict[str, list[int]] = {}
        if not self._find_lists(piece):
            parse_json(data, path)  # Raises for a file that is cut short, with the place.
            raise ValueError(f"{path}: expected an object")

    def rows(self, name: str) -> Iterator[object]:
        """The rows of one list, objects as a rule.

        Raises `ValueError` naming the file when there is none, or where it is unreadable.
        """
        if name not in self._cuts:
            parse_json(self._data, self._path)
            raise ValueError(f"{self._path}: no list {name!r}")
        cuts = self._cuts[name]
        for i, (start, stop) in enumerate(itertools.pairwise(cuts)):
            # Later pieces begin with the comma that separates them from the row before; a 0 stands in for that row.
            before = b"[" if i == 0 else b"[0"
            try:
                yield from orjson.loads(before + self._data[start:stop] + b"]")[min(i, 1) :]
            except orjson.JSONDecodeError:
                parse_json(self._data, self._path)  # Knows the line and column in the whole file.
                raise ValueError(f"{self._path}: list {name!r} is unreadable after byte {start}") from None

    def _find_lists(self, piece: int) -> bool:
        """Note the positions that cut every list into pieces of whole rows; false for what is no complete object."""
        depth, quotes, start = 0, 0, 0
        cuts: list[int] | None = None  # Of the list that is open.
        while start < len(self._data):
            chunk = self._chunk(start, piece)
            text = chunk.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
            codes = np.frombuffer(text.translate(_CODES), np.int8)
            places = np.flatnonzero(codes)
            codes = codes[places]
            is_quote = codes == 2
            is_inside = (quotes + np.cumsum(is_quote)) % 2 == 1
            steps = np.where(is_inside | is_quote, 0, codes)
            depths = depth + np.cumsum(steps)
            for i in np.flatnonzero(((steps > 0) & (depths == 2)) | ((steps < 0) & (depths == 1))).tolist():
                at = int(places[i])
                if cuts is not None:
                    cuts.append(start + at)
                cuts = None
                if text[at : at + 1] == b"[":
                    cuts = self._begin(start + at)
            row_ends = start + 1 + places[(steps < 0) & (depths == 2)]
            if cuts is not None and len(row_ends) and row_ends[-1] > cuts[-1]:
                cuts.append(int(row_ends[-1]))
            depth += int(steps.sum())
            quotes += int(is_quote.sum())
            start += len(chunk)
        return depth == 0 and quotes % 2 == 0 and self._data.lstrip()[:1] == b"{"

    def _begin(self, position: int) -> list[int]:
        """The cuts of the list that begins here: none but its beginning as yet."""
        name = self._name_before(position)
        if name and name in self._cuts:  # Unusual names are not made out, nor asked for.
            raise ValueError(f"{self._path}: two lists are named {name!r}")
        self._cuts[name] = [position + 1]
        return self._cuts[name]

    def _chunk(self, start: int, piece: int) -> bytes:
        """The next piece, longer where it would end between a backslash and what it escapes."""
        stop = start + piece
        while self._data[stop - 1 : stop] == b"\\":
            stop += 1
        return self._data[start:stop]

    def _name_before(self, position: int) -> str:
        match = _NAME.search(self._data[max(0, position - 200) : position])
        return match[1].decode(errors="replace") if match else ""
