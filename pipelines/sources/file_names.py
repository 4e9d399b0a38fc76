"""The names of millions of files as Arrow columns, a fifth of what they would take as Python's own strings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

T = TypeVar("T")

_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Stems:
    """File names without their endings.  `annotated`, those with an annotation file, are sorted by their `keys`."""

    annotated: pa.ChunkedArray
    keys: pa.ChunkedArray
    unannotated: pa.Array  # Those of images alone, sorted.

    @staticmethod
    def of(names: Iterable[str], prefix: str, image: str, annotation: str, key: Callable[[str], str]) -> Stems:
        """Those of the files called `<prefix>*.<image>` and `<prefix>*.<annotation>` in any folder.

        Whether an image has an annotation is told by 64-bit hashes, which for SA-1B are wrong once in 100,000 times,
        and then of one image among millions.
        """
        annotated, keys, images = _Column(), _Column(), _Column()
        hashes = ([np.empty(0, np.int64)], [np.empty(0, np.int64)])
        names = iter(names)
        while some := list(itertools.islice(names, _AT_ONCE)):
            parts = [name.rpartition(".") for name in some]
            ours = [(stem, end) for stem, _, end in parts if stem[stem.rfind("/") + 1 :].startswith(prefix)]
            for column, ending, found in ((annotated, annotation, hashes[0]), (images, image, hashes[1])):
                stems = [stem for stem, end in ours if end == ending]
                column.add(stems)
                found.append(np.fromiter(map(hash, stems), np.int64, len(stems)))
                if ending == annotation:
                    keys.add([key(stem) for stem in stems])
        is_alone = _not_among(np.concatenate(hashes[1]), np.concatenate(hashes[0]))
        hashes[0].clear()
        hashes[1].clear()
        alone = images.all().filter(pa.array(is_alone)).combine_chunks()
        del images, is_alone
        order = pc.sort_indices(keys.all())
        return Stems(annotated.all().take(order), keys.all().take(order), alone.take(pc.sort_indices(alone)))


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


class _Column:
    """Texts that are added to."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []

    def add(self, some: list[str]) -> None:
        self._chunks.append(pa.array(some, pa.string()))

    def all(self) -> pa.ChunkedArray:
        return pa.chunked_array(self._chunks, pa.string())


def _not_among(some: Int64[np.ndarray, " n"], others: Int64[np.ndarray, " m"]) -> np.ndarray:
    others.sort()
    if not len(others):
        return np.ones(len(some), bool)
    places = np.minimum(np.searchsorted(others, some), len(others) - 1)
    return others[places] != some
