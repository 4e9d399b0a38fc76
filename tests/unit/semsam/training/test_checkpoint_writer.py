"""The memory that checkpoints are copied to is used again, and only when all of the checkpoint before is written."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch

from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import RunState, checkpoint_steps, load_weights
from semsam.training.checkpoint_writer import CheckpointWriter, Whole
from semsam.training.partition_files import partition_file
from semsam.training.partitions import Partition, quantities

SIZE = 1000


def partitions() -> list[Partition]:
    return [Partition(name, 0, {one: torch.zeros(SIZE) for one in quantities(False)}) for name in ("a", "b")]


def fill(some: list[Partition], value: float) -> None:
    for one in some:
        for values in one.values.values():
            values.fill_(value)


def writer_of(folder: Path) -> CheckpointWriter:
    whole = Whole("", {name: torch.Size([SIZE]) for name in ("a", "b")}, {"constant": torch.ones(2)})
    return CheckpointWriter(RunFolder(folder), 0, 1, 9, False, whole)


def state(step: int) -> RunState:
    return RunState(step, 0, 1, 0, 0, 0, "", {}, 0, {})


@pytest.mark.parametrize("is_prepared", [True, False])
def test_what_was_saved_is_not_overwritten_by_the_training_or_the_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_prepared: bool
) -> None:
    write, may_write, begun = Folder.write, threading.Event(), threading.Event()

    def slow(self: Folder, name: str, data: bytes | Sequence[memoryview]) -> None:
        if self.path.endswith("checkpoint-1"):
            begun.set()
            assert may_write.wait(60)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", slow)
    trained, writer = partitions(), writer_of(tmp_path)
    if is_prepared:
        writer.prepare(trained)
    fill(trained, 1)
    writer.save(trained, state(1))
    assert begun.wait(60)
    fill(trained, 2)  # As the next steps do.
    next_save = threading.Thread(target=writer.save, args=(trained, state(2)))
    next_save.start()
    next_save.join(0.3)
    assert next_save.is_alive()  # It waits: its memory is that of the first.
    may_write.set()
    next_save.join()
    fill(trained, 3)
    writer.finish()
    assert checkpoint_steps(Folder(tmp_path)) == [1, 2]
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        for quantity in quantities(False):
            found = safetensors.torch.load_file(folder / partition_file(quantity, 0))
            assert all(torch.equal(values, torch.full((SIZE,), float(step))) for values in found.values())
        weights = load_weights(Folder(folder))
        assert torch.equal(weights["b"], torch.full((SIZE,), float(step)))
        assert torch.equal(weights["constant"], torch.ones(2))


def test_memory_is_taken_once(tmp_path: Path) -> None:
    trained, writer = partitions(), writer_of(tmp_path)
    writer.prepare(trained)
    places = []
    for step in (1, 2, 3):
        writer.save(trained, state(step))
        places.append({values.data_ptr() for memory in writer._memory.values() for values in memory.values()})
    writer.finish()
    assert len(places[0]) == len(trained) * len(quantities(False))
    assert places[0] == places[1] == places[2]
