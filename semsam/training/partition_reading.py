"""Reading a checkpoint's pieces: by one process, or by all workers, who read no byte twice.

A file is read in units of some megabytes.  What one worker alone wants it reads itself; what several want, as where
every worker has all of the optimizer's state, one of them reads and sends to the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from semsam.model.weight_files import Fingerprint
from semsam.storage import Folder
from semsam.training.engine import Worker
from semsam.training.faults import together
from semsam.training.partition_files import (
    ITEM,
    partition_file,
    read_headers,
    side_by_side,
)
from semsam.training.partition_index import PartitionIndex

_NOTHING_NOTED: Mapping[str, Fingerprint] = MappingProxyType({})


@dataclass(frozen=True)
class Wanted:
    """Elements from `start` on of a flattened parameter, to be written to `into`."""

    name: str
    start: int
    into: Tensor

    @property
    def stop(self) -> int:
        """The element after the last."""
        return self.start + len(self.into)


def load_partitions(
    folder: Folder,
    quantity: str,
    num_writers: int,
    sizes: Mapping[str, int],
    wanted: Iterable[Wanted],
    files: Mapping[str, Fingerprint] = _NOTHING_NOTED,
) -> None:
    """Fill `wanted` from the files of a quantity, reading of each file only where something in it is wanted.

    `sizes` has the number of elements of every parameter, `files` what is noted of the files.  Raises `ValueError`
    naming a file that is another or damaged, and every parameter that is missing, unexpected, not there once from end
    to end or not finite.
    """
    headers = read_headers(folder, [partition_file(quantity, worker) for worker in range(num_writers)], files)
    fill(folder, PartitionIndex.of(folder.path, {quantity: headers}, sizes), {quantity: list(wanted)})


def fill(folder: Folder, index: PartitionIndex, wanted: Mapping[str, Iterable[Wanted]]) -> None:
    """Fill what is wanted of each quantity, as the only one who reads."""
    filling = _Filling(folder, index, wanted)
    side_by_side(filling.read_and_place, filling.units())


def fill_together(
    folder: Folder,
    index: PartitionIndex,
    wanted: Mapping[str, Iterable[Wanted]],
    worker: Worker,
    explained: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Fill what every worker wants of each quantity, so that no byte is read by two; all workers call this.

    Raises on all workers what any finds wrong, as it leaves `explained`.
    """
    filling = _Filling(folder, index, wanted)
    counts = torch.zeros(index.num_units, dtype=torch.int64)
    counts[filling.units()] = 1
    counts = worker.sum(counts.to(worker.device)).cpu()
    with together(worker), explained():
        side_by_side(filling.read_and_place, [unit for unit in filling.units() if counts[unit] == 1])
    shared = torch.nonzero(counts > 1).flatten().tolist()
    for first in range(0, len(shared), worker.world_size):
        batch, own = shared[first : first + worker.world_size], torch.empty(0)
        with together(worker), explained():
            if worker.rank < len(batch):
                own = index.read(folder, batch[worker.rank])
        for source, unit in enumerate(batch):
            values = own if worker.rank == source else torch.empty(index.span(unit)[2] // ITEM)
            filling.place(unit, worker.broadcast(values.to(worker.device), source))


class _Filling:
    """What one worker wants, by the units that it lies in."""

    def __init__(self, folder: Folder, index: PartitionIndex, wanted: Mapping[str, Iterable[Wanted]]) -> None:
        self._folder, self._index = folder, index
        self._parts: dict[int, list[tuple[int, Wanted]]] = defaultdict(list)  # By unit: number of a range, and who.
        for quantity, one in ((quantity, one) for quantity, some in wanted.items() for one in some):
            numbers = index.find(quantity, one.name, one.start, one.stop)
            for unit, number in zip(index.units_of(numbers).tolist(), numbers.tolist(), strict=True):
                self._parts[unit].append((number, one))

    def units(self) -> list[int]:
        """Where something is wanted of."""
        return sorted(self._parts)

    def read_and_place(self, unit: int) -> None:
        """Read a unit, and write what is wanted of it to where it is wanted."""
        self.place(unit, self._index.read(self._folder, unit))

    def place(self, unit: int, values: Tensor) -> None:
        """Write what is wanted of a unit's numbers to where it is wanted."""
        parts = self._parts.get(unit, [])
        if not parts:
            return
        first, ranges = self._index.span(unit)[1], self._index.ranges
        values = values.to(parts[0][1].into.device)
        for number, one in parts:
            _, _, start, stop, offset, _ = ranges[number].tolist()
            begin, end = max(start, one.start), min(stop, one.stop)
            place = (offset - first) // ITEM + begin - start
            _copy(one.into[begin - one.start : end - one.start], values[place : place + end - begin])


def _copy(into: Tensor, values: Tensor) -> None:
    if into.device.type == "cpu":  # Several times faster for a few numbers each, of which there can be a million.
        into.numpy()[:] = values.numpy()
    else:
        into.copy_(values)
