"""Writes checkpoints while training goes on.

Each worker copies its own part to host memory, which is all that training waits for, and writes it in a thread.  The
first worker's thread then waits for the files of the others, puts the model's weights together from them and writes
`state.json`, which makes the checkpoint complete.  No worker waits for another's data on the way.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from semsam.data.sealed import seal
from semsam.model.semantic_sam import CONFIG_FILE, WEIGHTS_FILE
from semsam.model.weight_files import STATE_FILE, Fingerprint, safetensors_buffers
from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import RunState, checkpoint_folder, keep_last
from semsam.training.partition_files import (
    Header,
    host_tensor,
    own_keys,
    partition_file,
    read_headers,
    snapshot,
    write_partitions,
)
from semsam.training.partition_index import PartitionIndex
from semsam.training.partition_reading import Wanted, fill
from semsam.training.partitions import EMA, WEIGHT, Partition, quantities

PATIENCE = 1800.0  # Seconds that the first worker waits for the pieces of the others.
_POLL, _MAX_POLL = 0.2, 2.0


@dataclass(frozen=True)
class Whole:
    """What the first worker needs to know of the model beside the pieces."""

    config: str  # The text of config.yaml.
    shapes: Mapping[str, torch.Size]  # Of all trained parameters.
    constants: Mapping[str, Tensor]  # What else the model's state has, on the host.


class CheckpointWriter:
    """The checkpoints of one worker, at most one of them in work; `whole` is None on all workers but the first."""

    def __init__(
        self,
        run: RunFolder,
        rank: int,
        world_size: int,
        keep: int,
        with_average: bool,
        whole: Whole | None,
        keep_every: int | None = None,
    ) -> None:
        self._run = run
        self._rank = rank
        self._world_size = world_size
        self._keep, self._keep_every = keep, keep_every
        self._quantities = quantities(with_average)
        self._whole = whole
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_work: list[Future[None]] = []  # This worker's pieces and, on the first worker, the whole.
        # By quantity and key.  Kept from one checkpoint to the next, whose copies `save` makes when all of this one is
        # written: fresh pages would cost it several times what copying into them does.
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._abandoned = threading.Event()

    def prepare(self, partitions: Iterable[Partition]) -> None:
        """Begin to make ready the memory that `save` copies these partitions to, which it else does itself."""
        self._in_work = [self._pool.submit(self._make_memory, list(partitions))]

    def save(self, partitions: Iterable[Partition], state: RunState) -> None:
        """Begin the checkpoint of `state`; returns when training may change the partitions again.

        All workers call this at the same step, after `wait_for_pieces`.  The first worker waits for the checkpoint
        before, if that is not yet complete.
        """
        self._wait()
        partitions = list(partitions)
        if not self._memory:
            self._make_memory(partitions)
        pieces = {one: snapshot(partitions, one, self._memory[one]) for one in self._quantities}
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # The copies are made by then.
        self._in_work = [self._pool.submit(self._write_pieces, pieces, state)]
        if self._whole is not None:
            self._in_work.append(self._pool.submit(self._complete, self._whole, state, self._in_work[0], pieces))

    def is_busy(self) -> bool:
        """Whether a checkpoint, or the memory for the first one, is in work."""
        return not all(future.done() for future in self._in_work)

    def check(self) -> None:
        """Raise the error that writing ended with, if it did."""
        for future in self._in_work:
            if future.done():
                future.result()

    def wait_for_pieces(self) -> None:
        """Wait until this worker's part of the checkpoint in work is written, and raise what went wrong with it."""
        for future in self._in_work[:1]:
            future.result()

    def finish(self) -> None:
        """Wait for the checkpoint in work, and raise what went wrong with it.  For the end that all workers reach."""
        try:
            self._wait()
        finally:
            self._pool.shutdown()

    def abandon(self) -> None:
        """End without waiting for other workers, which may be gone; a checkpoint that lacks their part is dropped."""
        self._abandoned.set()
        self._pool.shutdown()

    def _wait(self) -> None:
        for future in self._in_work:
            future.result()
        self._in_work = []

    def _make_memory(self, partitions: list[Partition]) -> None:
        own = dict(own_keys(partitions))
        self._memory = {
            quantity: {key: host_tensor(one.values[quantity]).zero_() for key, one in own.items()}
            for quantity in self._quantities
        }

    def _write_pieces(self, pieces: dict[str, dict[str, Tensor]], state: RunState) -> None:
        folder = checkpoint_folder(self._run, state.step)
        for quantity, own in pieces.items():
            write_partitions(folder, quantity, self._rank, own)

    def _complete(
        self, known: Whole, state: RunState, own_pieces: Future[None], pieces: dict[str, dict[str, Tensor]]
    ) -> None:
        own_pieces.result()  # Done, for there is one thread.
        folder = checkpoint_folder(self._run, state.step)
        sizes = self._wait_for_others(folder)
        if sizes is None:
            return
        names = [partition_file(one, rank) for one in self._quantities for rank in range(self._world_size)]
        headers = read_headers(folder, names, {}, sizes)
        used = EMA if EMA in self._quantities else WEIGHT
        weights = safetensors_buffers(self._together(folder, used, known, headers, pieces[used]))
        config = known.config.encode()
        folder.write(WEIGHTS_FILE, weights)
        folder.write(CONFIG_FILE, config)
        files = {name: header.fingerprint for name, header in headers.items()}
        files |= {WEIGHTS_FILE: Fingerprint.of(weights), CONFIG_FILE: Fingerprint.of(config)}
        folder.write(STATE_FILE, seal(dataclasses.asdict(dataclasses.replace(state, files=files))))
        self._run.publish(state.step)
        keep_last(self._run, self._keep, self._keep_every, state.step)

    def _wait_for_others(self, folder: Folder) -> dict[str, int] | None:
        """The sizes of all files once all workers have written theirs; None if this was abandoned."""
        deadline, last, pause = time.monotonic() + PATIENCE, self._quantities[-1], _POLL
        while True:
            sizes = folder.sizes()  # A request for a thousand files, where looking for each would be one for each.
            missing = [rank for rank in range(self._world_size) if partition_file(last, rank) not in sizes]
            if not missing:
                return sizes
            if time.monotonic() > deadline:
                raise OSError(f"{folder.path}: no {partition_file(last, missing[0])} after {PATIENCE:.0f} s")
            if self._abandoned.wait(pause):
                return None
            pause = min(1.5 * pause, _MAX_POLL)

    def _together(
        self, folder: Folder, quantity: str, whole: Whole, headers: Mapping[str, Header], own: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The model's weights: this worker's from memory, the others' from their files."""
        sizes = {name: shape.numel() for name, shape in whole.shapes.items()}
        names = [partition_file(quantity, rank) for rank in range(self._world_size)]
        index = PartitionIndex.of(folder.path, {quantity: {name: headers[name] for name in names}}, sizes)
        ranges: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in sizes}
        for key, values in own.items():
            name, _, start = key.rpartition(":")
            ranges[name].append((int(start), values))
        weights, wanted = {}, []
        for name, some in ranges.items():
            weights[name], lacking = _put_together(name, sizes[name], some)
            wanted += lacking
        fill(folder, index, {quantity: wanted})
        return {name: weight.view(whole.shapes[name]) for name, weight in weights.items()} | dict(whole.constants)


def _put_together(name: str, size: int, own: list[tuple[int, Tensor]]) -> tuple[Tensor, list[Wanted]]:
    """A parameter with a worker's own elements of it, and what it lacks."""
    if len(own) == 1 and len(own[0][1]) == size:
        return own[0][1], []
    into, wanted, end = torch.empty(size), [], 0
    for start, values in sorted(own, key=lambda one: one[0]):
        wanted.append(Wanted(name, end, into[end:start]))
        end = start + len(values)
        into[start:end].copy_(values)
    return into, [*wanted, Wanted(name, end, into[end:])]
