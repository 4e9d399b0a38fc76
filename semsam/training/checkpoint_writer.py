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

import safetensors.torch
import torch
from torch import Tensor

from semsam.data.sealed import seal
from semsam.model.semantic_sam import CONFIG_FILE, WEIGHTS_FILE
from semsam.model.weight_files import STATE_FILE, Fingerprint
from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import RunState, checkpoint_folder, keep_last
from semsam.training.partition_files import (
    Wanted,
    load_partitions,
    partition_file,
    partition_fingerprint,
    snapshot,
    write_partitions,
)
from semsam.training.partitions import EMA, WEIGHT, Partition, quantities

PATIENCE = 1800.0  # Seconds that the first worker waits for the pieces of the others.
_POLL = 0.2


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
        self._abandoned = threading.Event()

    def save(self, partitions: Iterable[Partition], state: RunState) -> None:
        """Begin the checkpoint of `state`; returns when training may change the partitions again.

        All workers call this at the same step, after `wait_for_pieces`.  The first worker waits for the checkpoint
        before, if that is not yet complete.
        """
        self._wait()
        partitions = list(partitions)
        pieces = {quantity: snapshot(partitions, quantity) for quantity in self._quantities}
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # The copies are made by then.
        self._in_work = [self._pool.submit(self._write_pieces, pieces, state)]
        if self._whole is not None:
            self._in_work.append(self._pool.submit(self._complete, self._whole, state, self._in_work[0]))

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

    def _write_pieces(self, pieces: dict[str, dict[str, Tensor]], state: RunState) -> None:
        folder = checkpoint_folder(self._run, state.step)
        for quantity in self._quantities:
            own = pieces.pop(quantity)  # Popped: its memory is no longer needed.
            write_partitions(folder, quantity, self._rank, own)

    def _complete(self, known: Whole, state: RunState, own_pieces: Future[None]) -> None:
        own_pieces.result()  # Done, for there is one thread.
        folder = checkpoint_folder(self._run, state.step)
        if not self._others_are_there(folder, self._quantities[-1]):
            return
        weights = self._together(folder, EMA if EMA in self._quantities else WEIGHT, known)
        whole = {WEIGHTS_FILE: safetensors.torch.save(weights), CONFIG_FILE: known.config.encode()}
        for name, data in whole.items():
            folder.write(name, data)
        pieces_of_all = [partition_file(one, rank) for one in self._quantities for rank in range(self._world_size)]
        files = {name: partition_fingerprint(folder, name) for name in pieces_of_all}
        files |= {name: Fingerprint.of(data) for name, data in whole.items()}
        folder.write(STATE_FILE, seal(dataclasses.asdict(dataclasses.replace(state, files=files))))
        self._run.publish(state.step)
        keep_last(self._run, self._keep, self._keep_every)

    def _others_are_there(self, folder: Folder, last_quantity: str) -> bool:
        """Wait until all workers have written; False if this was abandoned."""
        deadline = time.monotonic() + PATIENCE
        missing = list(range(self._world_size))
        while missing := [rank for rank in missing if not folder.exists(partition_file(last_quantity, rank))]:
            if time.monotonic() > deadline:
                raise OSError(f"{folder.path}: no {partition_file(last_quantity, missing[0])} after {PATIENCE:.0f} s")
            if self._abandoned.wait(_POLL):
                return False
        return True

    def _together(self, folder: Folder, quantity: str, whole: Whole) -> dict[str, Tensor]:
        weights = {name: torch.empty(shape) for name, shape in whole.shapes.items()}
        sizes = {name: shape.numel() for name, shape in whole.shapes.items()}
        wanted = [Wanted(name, 0, weight.view(-1)) for name, weight in weights.items()]
        load_partitions(folder, quantity, self._world_size, sizes, wanted)
        return weights | dict(whole.constants)
