"""A checkpoint's pieces: for each quantity and worker one safetensors file with the ranges that the worker held.

`<quantity>-<worker>.safetensors` has one-dimensional fp32 tensors called `<parameter>:<start>`.  Together the files of
a quantity hold every element of every parameter once, however many workers wrote them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import safetensors.torch
import torch
from torch import Tensor

from semsam.storage import Folder
from semsam.training.fragments import Fragment

_ITEM = 4  # Bytes of an fp32.
_MAX_HEADER = 100 * 2**20  # As in the safetensors library.


@dataclass(frozen=True)
class Wanted:
    """Elements from `start` on of a flattened parameter, to be written to `into`."""

    name: str
    start: int
    into: Tensor


def piece_name(quantity: str, worker: int) -> str:
    """The file of a quantity that a worker writes."""
    return f"{quantity}-{worker:05d}.safetensors"


def snapshot(fragments: Iterable[Fragment], quantity: str) -> dict[str, Tensor]:
    """Host copies of a quantity, {<parameter>:<start>: values}, of all fragments that this worker answers for.

    From CUDA they are complete once the device has been waited for.
    """
    copies = {}
    for fragment in fragments:
        if not fragment.is_copy:
            values = fragment.values[quantity]
            host = torch.empty(values.shape, dtype=torch.float32, pin_memory=values.is_cuda)
            copies[f"{fragment.name}:{fragment.start}"] = host.copy_(values, non_blocking=True)
    return copies


def write_piece(folder: Folder, quantity: str, worker: int, values: Mapping[str, Tensor]) -> None:
    """Write one file of `snapshot`."""
    folder.write(piece_name(quantity, worker), safetensors.torch.save(dict(values)))


def load_pieces(
    folder: Folder, quantity: str, num_pieces: int, sizes: Mapping[str, int], wanted: Iterable[Wanted]
) -> None:
    """Fill `wanted` from the files of a quantity, reading of each file only where something in it is wanted.

    `sizes` has the number of elements of every parameter.  Raises `ValueError` naming every parameter that is missing,
    unexpected or not there once from end to end.
    """
    files = [_PieceFile(folder, piece_name(quantity, worker)) for worker in range(num_pieces)]
    _check_cover(f"{folder.path}: {quantity}", files, sizes)
    wanted = list(wanted)
    for file in files:
        file.fill(wanted)


@dataclass(frozen=True)
class _Range:
    start: int
    stop: int
    offset: int  # Of the first byte in the file.


class _PieceFile:
    """The header of a piece, whose values are read when they are asked for."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.where = f"{folder.path}/{name}"
        self._file = folder.open(name)
        self.ranges: dict[str, list[_Range]] = defaultdict(list)
        try:
            for key, entry in self._header().items():
                if key != "__metadata__":
                    self._add(key, entry)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.where}: not a piece of a checkpoint: {error}") from None

    def fill(self, wanted: Iterable[Wanted]) -> None:
        """Write what is here of `wanted` to where it is wanted."""
        parts: list[tuple[Tensor, int]] = []  # Where to, and from which byte.
        for one in wanted:
            for here in self.ranges.get(one.name, ()):
                start, stop = max(here.start, one.start), min(here.stop, one.start + len(one.into))
                if start < stop:
                    place = here.offset + (start - here.start) * _ITEM
                    parts.append((one.into[start - one.start : stop - one.start], place))
        if not parts:
            return
        first = min(place for _, place in parts)
        last = max(place + len(into) * _ITEM for into, place in parts)
        data = self._read(last - first, first)
        for into, place in parts:
            values = np.frombuffer(data, "<f4", len(into), place - first)
            into.copy_(torch.from_numpy(values.copy()))

    def _header(self) -> dict[str, Any]:
        length = int.from_bytes(self._read(8, 0), "little")
        if length > _MAX_HEADER:
            raise ValueError("its header is too long")
        self._data_start = 8 + length
        header = orjson.loads(self._read(length, 8))
        if not isinstance(header, dict):
            raise ValueError("its header is not a table")
        return header

    def _add(self, key: str, entry: dict[str, Any]) -> None:
        name, _, start = key.rpartition(":")
        (size,), (begin, end) = entry["shape"], entry["data_offsets"]
        offset = self._data_start + begin
        if entry["dtype"] != "F32" or end - begin != size * _ITEM or not 0 <= begin <= end:
            raise ValueError(f"{key} is not a row of fp32")
        if self._data_start + end > self._file.size:
            raise ValueError("it was cut short")
        self.ranges[name].append(_Range(int(start), int(start) + size, offset))

    def _read(self, size: int, offset: int) -> bytes:
        data = self._file.read_at(size, offset)
        if len(data) < size:
            raise ValueError(f"{self.where}: it was cut short")
        return data


def _check_cover(where: str, files: Iterable[_PieceFile], sizes: Mapping[str, int]) -> None:
    found: dict[str, list[_Range]] = defaultdict(list)
    for file in files:
        for name, ranges in file.ranges.items():
            found[name] += ranges
    faults = [f"unexpected: {name}" for name in sorted(set(found) - set(sizes))]
    faults += [f"missing: {name}" for name in sizes if name not in found]
    for name, ranges in found.items():
        end = 0
        for one in sorted(ranges, key=lambda one: (one.start, one.stop)):
            if one.start != end:
                break
            end = one.stop
        if name in sizes and (end != sizes[name] or sum(one.stop - one.start for one in ranges) != end):
            faults.append(f"{name}: its ranges are not {sizes[name]} numbers from end to end")
    if faults:
        raise ValueError("\n  ".join([f"{where}: {len(faults)} parameter(s) do not fit this model", *faults]))
