"""Checkpoints are written while training goes on, and one that is complete can always be gone on from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch

from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import checkpoint_steps, latest_checkpoint, load_weights
from semsam.training.engine import Worker
from semsam.training.partition_files import partition_file, snapshot, write_partitions
from semsam.training.partition_reading import Wanted, load_partitions
from semsam.training.partitions import Partition
from semsam.training.recipe import Recipe
from semsam.training.recorder import Recorder
from semsam.training.train import train
from semsam.training.train_log import read_log

CPU = Worker(0, 1, torch.device("cpu"))
MakeRecipe = Callable[..., Recipe]
SIZES = {"a": 7, "b": 3, "c": 1}
VALUES = {name: torch.arange(float(size)) + 10 * place for place, (name, size) in enumerate(SIZES.items())}


def run(recipe: Recipe, folder: Path) -> list[float]:
    train(recipe, {}, RunFolder(folder), CPU, "test", None)
    return [entry["loss"] for entry in read_log(Folder(str(folder)))]


def write(folder: Folder, cuts: list[int]) -> int:
    """All values in one flat vector that is cut at these places, a piece to a file; how many files there are."""
    flat, starts = torch.cat(list(VALUES.values())), [0, 7, 10, 11]
    edges = [0, *cuts, len(flat)]
    for worker, (begin, end) in enumerate(pairwise(edges)):
        partitions = [
            Partition(name, max(begin - start, 0), {"ema": flat[max(begin, start) : min(end, stop)]})
            for name, start, stop in zip(SIZES, starts[:-1], starts[1:], strict=True)
            if max(begin, start) < min(end, stop)
        ]
        write_partitions(folder, "ema", worker, snapshot(partitions, "ema"))
    return len(edges) - 1


@pytest.mark.parametrize("cuts", [[], [3], [7], [4, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 11]])
def test_whatever_is_wanted_is_found_however_it_was_cut(tmp_path: Path, cuts: list[int]) -> None:
    folder = Folder(str(tmp_path))
    count = write(folder, cuts)
    for start, stop in [(0, 7), (2, 5), (6, 7), (3, 3)]:
        into = [torch.full((stop - start,), -1.0), torch.full((3,), -1.0)]
        load_partitions(folder, "ema", count, SIZES, [Wanted("a", start, into[0]), Wanted("b", 0, into[1])])
        assert torch.equal(into[0], VALUES["a"][start:stop])
        assert torch.equal(into[1], VALUES["b"])


@pytest.mark.parametrize(
    ("count", "sizes", "reason"),
    [
        (2, SIZES, "b: its ranges are not 3 numbers from end to end"),
        (3, SIZES | {"d": 1}, "missing: d"),
        (3, {"a": 7, "b": 3}, "unexpected: c"),
        (3, SIZES | {"a": 8}, "a: its ranges are not 8 numbers"),
        (4, SIZES, "ema-00003.safetensors: no such file"),
    ],
)
def test_pieces_that_do_not_fit_the_model_are_refused_by_name(
    tmp_path: Path, count: int, sizes: dict[str, int], reason: str
) -> None:
    folder = Folder(str(tmp_path))
    write(folder, [4, 8])
    with pytest.raises(ValueError, match=reason):
        load_partitions(folder, "ema", count, sizes, [])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        b"\x05\0\0\0\0\0\0\0[1,2]",
        safetensors.torch.save({"a:0": torch.zeros(7)})[:-1],
        safetensors.torch.save({"a:0": torch.zeros(7, dtype=torch.int32)}),
        safetensors.torch.save({"a:0": torch.zeros(7, 1)}),
        safetensors.torch.save({"a": torch.zeros(7)}),
    ],
)
def test_what_is_no_piece_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / partition_file("ema", 0)).write_bytes(data)
    with pytest.raises(ValueError, match=r"ema-00000.safetensors: "):
        load_partitions(Folder(str(tmp_path)), "ema", 1, {"a": 7}, [])


@pytest.mark.slow
def test_a_run_that_dies_at_any_write_goes_on_from_the_checkpoint_before(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = Folder(str(tmp_path)), make_recipe(steps=2, checkpoint_every=1)
    write = Folder.write
    for num_written in range(6):  # Of three pieces, weights, settings and state.
        written: list[str] = []

        def dying(self: Folder, name: str, data: bytes, written: list[str] = written, last: int = num_written) -> None:
            if self.path.endswith("checkpoint-2"):
                if len(written) == last:
                    raise OSError("no space left on device")
                written.append(name)
            write(self, name, data)

        monkeypatch.setattr(Folder, "write", dying)
        with pytest.raises(OSError, match="no space left"):
            run(recipe, tmp_path)
        assert checkpoint_steps(folder) == [1]
        assert len(list(tmp_path.glob("checkpoint-2/*"))) == num_written
    monkeypatch.undo()
    assert len(run(recipe, tmp_path)) == 2
    assert checkpoint_steps(folder) == [1, 2]


def test_training_goes_on_while_a_checkpoint_is_written(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, write, add = make_recipe(), Folder.write, Recorder.add
    is_last_step, steps_at_write = threading.Event(), []

    def slow(self: Folder, name: str, data: bytes) -> None:
        if self.path.endswith("checkpoint-2"):
            assert is_last_step.wait(60)
            steps_at_write.append(len(list(read_log(Folder(str(tmp_path))))))
        write(self, name, data)

    def noting(self: Recorder, step: int, values: dict[str, float]) -> None:
        add(self, step, values)
        if step == 3:
            is_last_step.set()

    monkeypatch.setattr(Folder, "write", slow)
    monkeypatch.setattr(Recorder, "add", noting)
    run(recipe, tmp_path)
    assert set(steps_at_write) == {4}
    assert checkpoint_steps(Folder(str(tmp_path))) == [2, 4]
    # And what it holds is what was there at step 2, not what has been learned since.
    monkeypatch.undo()
    run(make_recipe(checkpoint_every=1), tmp_path / "plainly")
    weights = [load_weights(Folder(str(tmp_path / name))) for name in ("checkpoint-2", "plainly/checkpoint-2")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_error_of_writing_ends_the_training_at_the_next_step(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, add, failed = Folder.write, Recorder.add, threading.Event()

    def failing(self: Folder, name: str, data: bytes) -> None:
        if "checkpoint-2" in self.path:
            failed.set()
            raise OSError("disk on fire")
        write(self, name, data)

    def waiting(self: Recorder, step: int, values: dict[str, float]) -> None:
        add(self, step, values)
        if step == 2:
            assert failed.wait(60)

    monkeypatch.setattr(Folder, "write", failing)
    monkeypatch.setattr(Recorder, "add", waiting)
    with pytest.raises(OSError, match="disk on fire"):
        run(make_recipe(steps=9, checkpoint_every=2), tmp_path)
    assert len(list(read_log(Folder(str(tmp_path))))) <= 4


def test_with_an_average_it_is_what_a_checkpoint_is_used_with_and_it_resumes_exactly(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(steps=3, ema_decay=0.9, checkpoint_every=1, keep_last=9)
    whole = run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts")
    for step in (2, 3):
        Folder(str(tmp_path / "parts" / f"checkpoint-{step}")).delete()
    assert run(recipe, tmp_path / "parts") == whole
    end = [load_weights(Folder(str(tmp_path / name / "checkpoint-3"))) for name in ("whole", "parts")]
    assert all(torch.equal(end[0][name], end[1][name]) for name in end[0])

    # Against the formula, from the weights that each step left.
    name = "backbone.patches.weight"
    left = []
    for step in (1, 2, 3):
        folder = tmp_path / "whole" / f"checkpoint-{step}"
        left.append(safetensors.torch.load_file(folder / partition_file("weight", 0))[f"{name}:0"])
    used = [load_weights(Folder(str(tmp_path / "whole" / f"checkpoint-{n}")))[name].flatten() for n in (1, 2, 3)]
    for updates in (2, 3):
        decay = min(0.9, (1 + updates) / (10 + updates))
        expected = decay * used[updates - 2] + (1 - decay) * left[updates - 1]
        torch.testing.assert_close(used[updates - 1], expected)
    assert not torch.equal(used[2], left[2])


def test_only_complete_checkpoints_count_and_others_are_removed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(steps=2), tmp_path)
    for name in ("checkpoint-1", "checkpoint-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weight-00000.safetensors").write_bytes(b"left")
    latest = latest_checkpoint(Folder(str(tmp_path)))
    assert latest is not None
    assert latest.path.endswith("checkpoint-2")
    run(make_recipe(steps=2), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
