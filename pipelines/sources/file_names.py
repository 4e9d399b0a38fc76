"""The names of millions of files as Arrow columns, a fifth of what they would take as Python's own strings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64

T = TypeVar("T")

_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Stems:
    """File names without their endings.  `annotated`, those with an annotation file, are sorted by their keys."""

    annotated: pa.ChunkedArray
    groups: Int32[np.ndarray, " annotated"]  # Ascending, and equal where keys are.
    unannotated: pa.Array  # Those of images alone, sorted.

    @staticmethod
    def of(names: Iterable[str], prefix: str, image: str, annotation: str, key: Callable[[str], str]) -> Stems:
        """Those of the files called `<prefix>*.<image>` and `<prefix>*.<annotation>` in any folder.

        Whether an image has an annotation is told by 64-bit hashes, which for SA-1B are wrong once in 100,000 times,
        and then of one image among millions.
        """
        annotated, keys, images = _Texts(), _Texts(), _Texts()
        hashes: dict[str, list[Int64[np.ndarray, " n"]]] = {annotation: [], image: []}
        names = iter(names)
        while some := list(itertools.islice(names, _AT_ONCE)):
            parts = [name.rpartition(".") for name in some]
            ours = [(stem, end) for stem, _, end in parts if stem[stem.rfind("/") + 1 :].startswith(prefix)]
            for column, ending in ((annotated, annotation), (images, image)):
                stems = [stem for stem, end in ours if end == ending]
                column.add(stems)
                hashes[ending].append(np.fromiter(map(hash, stems), np.int64, len(stems)))
                if ending == annotation:
                    keys.add([key(stem) for stem in stems])
        alone = images.take_all().filter(_are_not_among(hashes.pop(image), hashes.pop(annotation))).combine_chunks()
        alone = alone.take(pc.sort_indices(alone))
        sorted_keys = keys.take_all()
        order = pc.sort_indices(sorted_keys)
        groups = _groups(sorted_keys.take(order))
        del sorted_keys
        return Stems(annotated.take_all().take(order), groups, alone)


class Rows(Sequence[T], Generic[T]):
    """What `make` gives for some rows, made when it is asked for."""

    def __init__(self, rows: Int64[np.ndarray, " r"], make: Callable[[Int64[np.ndarray, " s"]], list[T]]) -> None:
        self._rows = rows
        self._make = make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._make(self._rows[index])
        return self._make(self._rows[index : index + 1 or None])[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE]


def texts(column: pa.ChunkedArray, rows: Int64[np.ndarray, " r"]) -> list[str]:
    """The texts at some rows."""
    found: list[str] = column.take(pa.array(rows)).to_pylist()
    return found


def pieces(column: pa.ChunkedArray) -> Iterator[str]:
    """All texts, of which a few at a time are Python's own."""
    for start in range(0, len(column), _AT_ONCE):
        yield from column.slice(start, _AT_ONCE).to_pylist()


class _Texts:
    """Texts that are added to."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []

    def add(self, some: list[str]) -> None:
        self._chunks.append(pa.array(some, pa.string()))

    def take_all(self) -> pa.ChunkedArray:
        """All of them, which this has no longer."""
        chunks, self._chunks = self._chunks, []
        return pa.chunked_array(chunks, pa.string())


def _groups(texts: pa.ChunkedArray) -> Int32[np.ndarray, " texts"]:
    """The number of each text among the different ones, where equal ones stand together."""
    groups = np.zeros(len(texts), np.int32)
    if len(texts) > 1:
        np.cumsum(np.asarray(pc.not_equal(texts.slice(1), texts.slice(0, len(texts) - 1))), out=groups[1:])
    return groups


def _are_not_among(some: list[Int64[np.ndarray, " n"]], others: list[Int64[np.ndarray, " m"]]) -> pa.ChunkedArray:
    """For each of `some` whether none of `others` equals it; the lists are emptied on the way."""
    known = np.concatenate([np.empty(0, np.int64), *others])
    others.clear()
    known.sort()
    found = []
    for each in some:
        places = np.minimum(np.searchsorted(known, each), len(known) - 1)
        found.append(pa.array(known[places] != each if len(known) else np.ones(len(each), bool)))
    some.clear()
    return pa.chunked_array(found, pa.bool_())
