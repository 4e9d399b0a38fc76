"""A checkpoint's pieces: for each quantity and worker one safetensors file with the ranges that the worker held.

`<quantity>-<worker>.safetensors` has one-dimensional fp32 tensors called `<parameter>:<start>`.  Together the files of
a quantity hold every element of every parameter once, however many workers wrote them.

A piece's header has a CRC-32 of each of its tensors, and the checkpoint's state one of the header: whoever reads a
tensor has checked it, and whoever reads a header knows whose it is, without reading the rest.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import orjson
import torch
from torch import Tensor

from semsam.model.weight_files import Fingerprint, bytes_of, safetensors_buffers
from semsam.storage import Folder, NoSuchFileError
from semsam.training.partitions import Partition

T = TypeVar("T")
R = TypeVar("R")

ITEM = 4  # Bytes of an fp32.
_SUMS = "crc32"  # Of the tensors by name: JSON among the metadata of a file.
_MOST = 2**60  # Elements, far beyond any parameter's.
_MAX_HEADER = 100 * 2**20  # As in the safetensors library.
_FIRST_READ = 2**16  # Bytes: more than most headers have, so that one request is enough.
_THREADS = 16  # That read from storage at once: most of the time each waits for an answer.


@dataclass(frozen=True)
class Range:
    """Elements `start` to `stop` of a flattened parameter, in a file from byte `offset` on."""

    name: str
    start: int
    stop: int
    offset: int
    crc32: int


@dataclass(frozen=True)
class Header:
    """The beginning of a piece."""

    path: str  # Of the whole file.
    fingerprint: Fingerprint  # The file's size, and the CRC-32 of these bytes.
    raw: bytes

    def ranges(self) -> list[Range]:
        """What the file holds.  Raises `ValueError`, which names it, where it is no piece of a checkpoint."""
        try:
            entries = orjson.loads(self.raw[8:])
            sums: dict[str, int] = orjson.loads(entries.pop("__metadata__")[_SUMS])
            return [self._range(key, entry, sums) for key, entry in entries.items()]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise _no_piece(self.path, error) from None

    def _range(self, key: str, entry: dict[str, Any], sums: Mapping[str, int]) -> Range:
        name, _, start = key.rpartition(":")
        (size,), (begin, end) = entry["shape"], entry["data_offsets"]
        is_row = entry["dtype"] == "F32" and 0 <= begin <= end and end - begin == size * ITEM and begin % ITEM == 0
        if not is_row or not 0 <= sums[key] < 2**32 or abs(int(start)) > _MOST:
            raise ValueError(f"{key} is not a row of fp32 with a sum")
        if len(self.raw) + end > self.fingerprint.size:
            raise ValueError("it was cut short")
        return Range(name, int(start), int(start) + size, len(self.raw) + begin, sums[key])


def partition_file(quantity: str, worker: int) -> str:
    """The file of a quantity that a worker writes."""
    return f"{quantity}-{worker:05d}.safetensors"


def host_tensor(values: Tensor) -> Tensor:
    """Memory of the host for a copy of these values."""
    return torch.empty(values.shape, dtype=torch.float32, pin_memory=values.is_cuda)


def own_keys(partitions: Iterable[Partition]) -> Iterator[tuple[str, Partition]]:
    """The partitions that this worker answers for, under the keys <parameter>:<start> that they have in its files."""
    return ((f"{one.name}:{one.start}", one) for one in partitions if not one.is_copy)


def snapshot(
    partitions: Iterable[Partition], quantity: str, memory: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Host copies of a quantity, {<parameter>:<start>: values}, of all partitions that this worker answers for.

    They are made in `memory`, by the same keys, where it is given.  From CUDA they are complete once the device has
    been waited for.
    """
    copies = {}
    for key, partition in own_keys(partitions):
        values = partition.values[quantity]
        host = host_tensor(values) if memory is None else memory[key]
        copies[key] = host.copy_(values, non_blocking=True)
    return copies


def write_partitions(folder: Folder, quantity: str, worker: int, values: Mapping[str, Tensor]) -> None:
    """Write one file of `snapshot`; `ValueError` for values that are not finite: nobody could go on from them."""
    odd = [key for key, tensor in values.items() if not is_finite(tensor)]
    if odd:
        raise ValueError(f"{folder.path}: not written: {quantity} of {', '.join(odd[:3])} is not finite")
    sums = {key: crc32_of(key, bytes_of(tensor)) for key, tensor in values.items()}
    data = safetensors_buffers(values, {_SUMS: orjson.dumps(sums).decode()})
    folder.write(partition_file(quantity, worker), data)


def read_headers(
    folder: Folder, names: Iterable[str], files: Mapping[str, Fingerprint], sizes: Mapping[str, int] | None = None
) -> dict[str, Header]:
    """The headers of pieces by name, one request each and many at once; `sizes` are the folder's, if known.

    `files` is what is noted of them.  Raises `ValueError`, which names it, for one that is not there, is another or no
    piece of a checkpoint.
    """
    sizes = folder.sizes() if sizes is None else sizes
    names = list(names)
    for name in names:
        if name not in sizes:
            raise NoSuchFileError(f"{folder.path}/{name}: no such file")
    headers = side_by_side(lambda name: _read_header(folder, name, sizes[name], files.get(name)), names)
    return dict(zip(names, headers, strict=True))


def verify_piece(folder: Folder, header: Header) -> None:
    """Read a whole file; `ValueError` names it where its numbers are not those that were written."""
    file = folder.open(header.path.rpartition("/")[2], header.fingerprint.size)
    for one in header.ranges():
        key, data = f"{one.name}:{one.start}", file.read_at((one.stop - one.start) * ITEM, one.offset)
        if crc32_of(key, data) != one.crc32:
            raise ValueError(f"{header.path}: damaged: {key} is not what was written")
        if not np.isfinite(np.frombuffer(data, "<f4")).all():
            raise ValueError(f"{header.path}: {key} is not finite")


def side_by_side(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What `work` returns for each item, in order, of which several are in work at once."""
    if len(items) < 2:
        return list(map(work, items))
    with ThreadPoolExecutor(min(_THREADS, len(items)), "reading") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def is_finite(values: Tensor) -> bool:
    """Whether all values are: in one pass and without memory of its own, as neither extreme hides a NaN."""
    return not len(values) or bool(torch.stack(values.aminmax()).isfinite().all())


def crc32_of(key: str, data: bytes | memoryview) -> int:
    """The sum of a tensor's bytes under its key."""
    return zlib.crc32(data, zlib.crc32(key.encode()))


def _read_header(folder: Folder, name: str, size: int, expected: Fingerprint | None) -> Header:
    path, file = f"{folder.path}/{name}", folder.open(name, size)
    raw = file.read_at(min(size, _FIRST_READ), 0)
    length = 8 + int.from_bytes(raw[:8], "little")
    # Else its length is as good as any other reason: the size is noted, and the length part of what is summed.
    if length <= min(size, _MAX_HEADER):
        raw = raw[:length] if len(raw) >= length else raw + file.read_at(length - len(raw), len(raw))
    header = Header(path, Fingerprint(size, zlib.crc32(raw)), raw)
    if expected is not None:
        expected.check(header.fingerprint, path)
    if len(raw) != length:
        raise _no_piece(path, ValueError("its header is too long, or cut short"))
    return header


def _no_piece(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a piece of a checkpoint: {error!r}")
