"""A disk that is full ends a training at once, with the path, and leaves no half file."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from semsam.storage import Folder
from semsam.training.attempt import RunFolder, attempt_on
from semsam.training.checkpoint import checkpoint_steps
from semsam.training.engine import Worker
from semsam.training.faults import TrainingFault
from semsam.training.recipe import Recipe
from semsam.training.train import train
from semsam.training.train_log import LOG_FILE, read_log

CPU = Worker(0, 1, torch.device("cpu"))
MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Let no file of this process grow beyond a size: to who writes it, that is a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_no_room_for_a_checkpoint_ends_the_run_and_the_one_before_stays(
    make_recipe: MakeRecipe, tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    recipe = make_recipe(steps=9, checkpoint_every=1)
    with pytest.raises(TrainingFault, match=rf"{tmp_path}/checkpoint-\d/weight-00000.safetensors: File too large"):
        train(recipe, {}, RunFolder(tmp_path), CPU, "x", None, lambda step: limit_files(20_000) if step == 2 else None)
    kept = checkpoint_steps(Folder(tmp_path))
    assert kept
    assert kept[-1] < 9
    assert list(tmp_path.rglob(".*")) == []
    limit_files(resource.RLIM_INFINITY)
    train(recipe, {}, RunFolder(tmp_path), CPU, "x", None)
    assert checkpoint_steps(Folder(tmp_path))[-1] == 9


@pytest.mark.slow
def test_no_room_for_a_line_of_the_log_ends_the_run_and_leaves_whole_lines(
    make_recipe: MakeRecipe, tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    log = tmp_path / LOG_FILE

    def fill(step: int) -> None:
        if step == 2:
            limit_files(log.stat().st_size + 50)

    with pytest.raises(TrainingFault, match=f"{log}: File too large"):
        train(make_recipe(checkpoint_every=9), {}, RunFolder(tmp_path), CPU, "x", None, fill)
    assert log.read_bytes().endswith(b"}\n")
    assert [entry["step"] for entry in read_log(Folder(tmp_path))] == [0, 1]


@pytest.mark.parametrize("place", ["file/runs", "readonly/runs"])
def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "readonly").mkdir(mode=0o500)
    if place.startswith("readonly") and os.geteuid() == 0:
        place = "/proc/self/runs"  # Nothing else stops root.
    run = Folder(place if place.startswith("/") else tmp_path / place)
    with pytest.raises(ValueError, match=rf"{run.path}/attempt/.*run\.storage"), attempt_on(run):
        pass
