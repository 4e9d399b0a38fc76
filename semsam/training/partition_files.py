"""A checkpoint's pieces: for each quantity and worker one safetensors file with the ranges that the worker held.

`<quantity>-<worker>.safetensors` has one-dimensional fp32 tensors called `<parameter>:<start>`.  Together the files of
a quantity hold every element of every parameter once, however many workers wrote them.

A piece's header has a CRC-32 of each of its tensors, and the checkpoint's state one of the header: whoever reads a
tensor has checked it, and whoever reads a header knows whose it is, without reading the rest.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import safetensors.torch
import torch
from torch import Tensor

from semsam.model.weight_files import Fingerprint
from semsam.storage import Folder
from semsam.training.partitions import Partition

_ITEM = 4  # Bytes of an fp32.
_SUMS = "crc32"  # Of the tensors by name: JSON among the metadata of a file.
_MAX_HEADER = 100 * 2**20  # As in the safetensors library.


@dataclass(frozen=True)
class Wanted:
    """Elements from `start` on of a flattened parameter, to be written to `into`."""

    name: str
    start: int
    into: Tensor


def partition_file(quantity: str, worker: int) -> str:
    """The file of a quantity that a worker writes."""
    return f"{quantity}-{worker:05d}.safetensors"


def snapshot(partitions: Iterable[Partition], quantity: str) -> dict[str, Tensor]:
    """Host copies of a quantity, {<parameter>:<start>: values}, of all partitions that this worker answers for.

    From CUDA they are complete once the device has been waited for.
    """
    copies = {}
    for partition in partitions:
        if not partition.is_copy:
            values = partition.values[quantity]
            host = torch.empty(values.shape, dtype=torch.float32, pin_memory=values.is_cuda)
            copies[f"{partition.name}:{partition.start}"] = host.copy_(values, non_blocking=True)
    return copies


def write_partitions(folder: Folder, quantity: str, worker: int, values: Mapping[str, Tensor]) -> None:
    """Write one file of `snapshot`; `ValueError` for values that are not finite: nobody could go on from them."""
    odd = [key for key, tensor in values.items() if not tensor.isfinite().all()]
    if odd:
        raise ValueError(f"{folder.path}: not written: {quantity} of {', '.join(odd[:3])} is not finite")
    sums = {key: _crc32(key, tensor.numpy().tobytes()) for key, tensor in values.items()}
    data = safetensors.torch.save(dict(values), {_SUMS: orjson.dumps(sums).decode()})
    folder.write(partition_file(quantity, worker), data)


def partition_fingerprint(folder: Folder, name: str) -> Fingerprint:
    """What a checkpoint's state says of a piece: its size, and the CRC-32 of its header."""
    return _PartitionFile(folder, name, None).fingerprint


def load_partitions(
    folder: Folder,
    quantity: str,
    num_writers: int,
    sizes: Mapping[str, int],
    wanted: Iterable[Wanted],
    files: Mapping[str, Fingerprint] = MappingProxyType({}),
) -> None:
    """Fill `wanted` from the files of a quantity, reading of each file only where something in it is wanted.

    `sizes` has the number of elements of every parameter, `files` what is noted of the files.  Raises `ValueError`
    naming a file that is another or damaged, and every parameter that is missing, unexpected, not there once from end
    to end or not finite.
    """
    names = [partition_file(quantity, worker) for worker in range(num_writers)]
    pieces = [_PartitionFile(folder, name, files.get(name)) for name in names]
    _check_cover(f"{folder.path}: {quantity}", pieces, sizes)
    wanted = list(wanted)
    for piece in pieces:
        piece.fill(wanted)


def verify_partitions(folder: Folder, name: str) -> None:
    """Read a whole file; `ValueError` names it where its numbers are not those that were written."""
    piece = _PartitionFile(folder, name, None)
    for parameter, ranges in piece.ranges.items():
        for here in ranges:
            piece.fill([Wanted(parameter, here.start, torch.empty(here.stop - here.start))])


@dataclass(frozen=True)
class _Range:
    key: str
    start: int
    stop: int
    offset: int  # Of the first byte in the file.


class _PartitionFile:
    """The header of a piece, whose values are read when they are asked for."""

    def __init__(self, folder: Folder, name: str, expected: Fingerprint | None) -> None:
        self.where = f"{folder.path}/{name}"
        self._file = folder.open(name)
        self.ranges: dict[str, list[_Range]] = defaultdict(list)
        try:
            raw = self._raw_header()
            self.fingerprint = Fingerprint(self._file.size, zlib.crc32(raw))
            if expected is not None:
                expected.check(self.fingerprint, self.where)
            header = orjson.loads(raw[8:])
            self._sums: dict[str, int] = orjson.loads(header.pop("__metadata__")[_SUMS])
            for key, entry in header.items():
                self._add(key, entry)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if str(error).startswith(self.where):
                raise
            raise ValueError(f"{self.where}: not a piece of a checkpoint: {error!r}") from None

    def fill(self, wanted: Iterable[Wanted]) -> None:
        """Write what is here of `wanted` to where it is wanted."""
        pairs = [(here, one) for one in wanted for here in self.ranges.get(one.name, ()) if _overlap(here, one)]
        needed = {here.key: here for here, _ in pairs}
        if not needed:
            return
        first = min(here.offset for here in needed.values())
        last = max(here.offset + (here.stop - here.start) * _ITEM for here in needed.values())
        data = memoryview(self._read(last - first, first))
        values = {key: self._checked(here, data[here.offset - first :]) for key, here in needed.items()}
        for here, one in pairs:
            both = _overlap(here, one)
            part = values[here.key][both.start - here.start : both.stop - here.start]
            one.into[both.start - one.start : both.stop - one.start].copy_(part)

    def _checked(self, here: _Range, data: memoryview) -> Tensor:
        data = data[: (here.stop - here.start) * _ITEM]
        if _crc32(here.key, data) != self._sums[here.key]:
            raise ValueError(f"{self.where}: damaged: {here.key} is not what was written")
        tensor = torch.from_numpy(np.frombuffer(data, "<f4").copy())
        if not tensor.isfinite().all():
            raise ValueError(f"{self.where}: {here.key} is not finite")
        return tensor

    def _raw_header(self) -> bytes:
        length = int.from_bytes(self._read(8, 0), "little")
        if length > _MAX_HEADER:
            raise ValueError("its header is too long")
        self._data_start = 8 + length
        return self._read(self._data_start, 0)

    def _add(self, key: str, entry: dict[str, Any]) -> None:
        name, _, start = key.rpartition(":")
        (size,), (begin, end) = entry["shape"], entry["data_offsets"]
        offset = self._data_start + begin
        if key not in self._sums or entry["dtype"] != "F32" or end - begin != size * _ITEM or not 0 <= begin <= end:
            raise ValueError(f"{key} is not a row of fp32 with a sum")
        if self._data_start + end > self._file.size:
            raise ValueError("it was cut short")
        self.ranges[name].append(_Range(key, int(start), int(start) + size, offset))

    def _read(self, size: int, offset: int) -> bytes:
        data = self._file.read_at(size, offset)
        if len(data) < size:
            raise ValueError(f"{self.where}: it was cut short")
        return data


def _overlap(here: _Range, one: Wanted) -> range:
    return range(max(here.start, one.start), min(here.stop, one.start + len(one.into)))


def _crc32(key: str, data: bytes | memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(key.encode()))


def _check_cover(where: str, files: Iterable[_PartitionFile], sizes: Mapping[str, int]) -> None:
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
