"""Where in a checkpoint's pieces every element of every parameter lies: made from their headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from semsam.storage import Folder
from semsam.training.partition_files import ITEM, Header, crc32_of, is_finite

UNIT = 2**25  # Bytes that are read at once, about: a tensor is never cut.
_RANGE = np.dtype(
    [("key", "<i8"), ("file", "<i4"), ("start", "<i8"), ("stop", "<i8"), ("offset", "<i8"), ("crc32", "<u4")]
)


@dataclass(frozen=True)
class PartitionIndex:
    """All ranges of some quantities.  Pickles to a few bytes a range, for workers that have not read the headers."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]  # Of the files.
    quantities: tuple[str, ...]
    parameters: tuple[str, ...]
    # By file and offset; the key is the quantity's place times the number of parameters plus the parameter's place.
    ranges: np.ndarray

    @staticmethod
    def of(where: str, pieces: Mapping[str, Mapping[str, Header]], sizes: Mapping[str, int]) -> PartitionIndex:
        """The index of pieces, by quantity and file name, of parameters with so many elements.

        Raises `ValueError`, beginning with `where`, naming every parameter that is missing, unexpected or not there
        once from end to end.
        """
        files = {name: header for headers in pieces.values() for name, header in headers.items()}
        places, numbers = ({name: place for place, name in enumerate(names)} for names in (sizes, files))
        rows: list[tuple[int, ...]] = []
        for place, (quantity, headers) in enumerate(pieces.items()):
            unexpected: set[str] = set()
            for name, header in headers.items():
                for one in header.ranges():
                    if one.name not in places:
                        unexpected.add(one.name)
                    else:
                        key = place * len(sizes) + places[one.name]
                        rows.append((key, numbers[name], one.start, one.stop, one.offset, one.crc32))
            _refuse(f"{where}: {quantity}", [f"unexpected: {name}" for name in sorted(unexpected)])
        ranges = np.array(rows, _RANGE)
        ranges = ranges[np.lexsort((ranges["offset"], ranges["file"]))]
        file_sizes = tuple(header.fingerprint.size for header in files.values())
        index = PartitionIndex(tuple(files), file_sizes, tuple(pieces), tuple(sizes), ranges)
        index._check_cover(where, sizes)
        return index

    def __reduce__(self) -> tuple[type[PartitionIndex], tuple[Any, ...]]:
        return PartitionIndex, (self.files, self.sizes, self.quantities, self.parameters, self.ranges)

    @cached_property
    def _by_key(self) -> Int64[np.ndarray, " r"]:
        """The ranges in the order of parameters and of what they hold of them."""
        return np.lexsort((self.ranges["stop"], self.ranges["start"], self.ranges["key"]))

    @cached_property
    def _keys(self) -> Int64[np.ndarray, " r"]:
        return self.ranges["key"][self._by_key]

    def find(self, quantity: str, name: str, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """The numbers of the ranges that hold something of these elements of a parameter."""
        if stop <= start:
            return np.zeros(0, np.int64)
        key = self.quantities.index(quantity) * len(self.parameters) + self._places[name]
        first, last = np.searchsorted(self._keys, [key, key + 1])
        ranges = self._by_key[first:last]
        begin = np.searchsorted(self.ranges["stop"][ranges], start, side="right")
        end = np.searchsorted(self.ranges["start"][ranges], stop, side="left")
        return ranges[begin:end]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.parameters)}

    @cached_property
    def unit_starts(self) -> Int64[np.ndarray, " units_plus_1"]:
        """The number of the first range of every unit, and how many ranges there are."""
        block = self.ranges["offset"] // UNIT
        is_first = np.ones(len(self.ranges), bool)
        is_first[1:] = (np.diff(self.ranges["file"]) != 0) | (np.diff(block) != 0)
        return np.append(np.flatnonzero(is_first), len(self.ranges))

    @property
    def num_units(self) -> int:
        """How many pieces of files are read at once, each whole."""
        return len(self.unit_starts) - 1

    def units_of(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The units of ranges."""
        return np.searchsorted(self.unit_starts, numbers, side="right") - 1

    def span(self, unit: int) -> tuple[str, int, int]:
        """File, first byte and number of bytes of a unit."""
        ranges = self.ranges[self.unit_starts[unit] : self.unit_starts[unit + 1]]
        first = int(ranges["offset"].min())
        size = int((ranges["offset"] + (ranges["stop"] - ranges["start"]) * ITEM).max()) - first
        return self.files[ranges["file"][0]], first, size

    def read(self, folder: Folder, unit: int) -> Tensor:
        """The numbers of a unit, checked; `ValueError` names the file where they are not those that were written."""
        name, first, size = self.span(unit)
        begin, end = self.unit_starts[unit : unit + 2].tolist()
        data = folder.open(name, self.sizes[self.ranges["file"][begin]]).read_at(size, first)
        if len(data) < size:
            raise ValueError(f"{folder.path}/{name}: it was cut short")
        # A copy: torch takes no memory that is not to be written to.
        values = torch.from_numpy(np.frombuffer(data, "<f4").copy())
        all_finite = is_finite(values)
        for key, _, start, stop, offset, crc32 in self.ranges[begin:end].tolist():
            place, text = offset - first, f"{self.parameters[key % len(self.parameters)]}:{start}"
            if crc32_of(text, memoryview(data)[place : place + (stop - start) * ITEM]) != crc32:
                raise ValueError(f"{folder.path}/{name}: damaged: {text} is not what was written")
            if not all_finite and not is_finite(values[place // ITEM :][: stop - start]):
                raise ValueError(f"{folder.path}/{name}: {text} is not finite")
        return values

    def _check_cover(self, where: str, sizes: Mapping[str, int]) -> None:
        keys, ranges = self._keys, self.ranges[self._by_key]
        is_first, is_last = (np.ones(len(keys), bool) for _ in range(2))
        is_first[1:] = is_last[:-1] = np.diff(keys) != 0
        ends_before = np.where(is_first, 0, np.roll(ranges["stop"], 1))
        expected = np.array(list(sizes.values()), np.int64)[keys % len(sizes)] if len(keys) else ranges["stop"]
        is_odd = (ranges["start"] != ends_before) | (is_last & (ranges["stop"] != expected))
        odd, found = set(keys[is_odd].tolist()), set(keys.tolist())
        for place, quantity in enumerate(self.quantities):
            keyed = [(place * len(sizes) + i, name) for i, name in enumerate(sizes)]
            faults = [f"missing: {name}" for key, name in keyed if key not in found]
            faults += [
                f"{name}: its ranges are not {sizes[name]} numbers from end to end" for key, name in keyed if key in odd
            ]
            _refuse(f"{where}: {quantity}", faults)


def _refuse(where: str, faults: Sequence[str]) -> None:
    if faults:
        raise ValueError("\n  ".join([f"{where}: {len(faults)} parameter(s) do not fit this model", *faults]))
