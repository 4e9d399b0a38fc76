"""A run has one writer: a second is refused while the first lives, and whoever lost a run writes nothing more to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from semsam.storage import Folder
from semsam.training import attempt
from semsam.training.attempt import RunFolder, attempt_on
from semsam.training.checkpoint import checkpoint_steps
from semsam.training.engine import Worker
from semsam.training.faults import TrainingFault
from semsam.training.recipe import Recipe
from semsam.training.train import train
from semsam.training.train_log import read_log

CPU = Worker(0, 1, torch.device("cpu"))
MakeRecipe = Callable[..., Recipe]
HOLD = """
import sys, time
from semsam.storage import Folder
from semsam.training.attempt import attempt_on
with attempt_on(Folder(sys.argv[1])) as run:
    print(run.attempt, flush=True)
    time.sleep(100)
"""


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(tmp_path / "run")
    return Folder(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/run")


@pytest.fixture
def other(run: Folder) -> Iterator[tuple[subprocess.Popen, str]]:
    """Another process that holds the run, and the id of its attempt."""
    with subprocess.Popen([sys.executable, "-c", HOLD, run.path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_second_attempt_is_refused_while_the_first_lives(run: Folder, other: tuple[subprocess.Popen, str]) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="another training writes to this run") as refused, attempt_on(run):
        pass
    assert time.monotonic() - started < 10
    who = f"{run.path}: .*host {socket.gethostname()}, process {other[0].pid}, since 20"
    refused.match(who)
    assert other[0].poll() is None


def test_a_killed_attempt_is_taken_over_and_what_is_left_of_it_writes_nothing(
    run: Folder, other: tuple[subprocess.Popen, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    process, lost = other
    orphan = RunFolder(run.path, lost)
    orphan.write("checkpoint-1/state.json", b"before")
    os.kill(process.pid, signal.SIGKILL)
    monkeypatch.setattr(attempt, "STALE", 3.0)
    with attempt_on(run) as own:
        assert f"taken over from a training that has been silent for 3 s (host {socket.gethostname()}, process" in (
            capsys.readouterr().out
        )
        writes: list[Callable[[], object]] = [
            lambda: orphan.write("x", b""),
            lambda: (orphan / "checkpoint-1").write("state.json", b"after"),
            lambda: orphan.append("log", b""),
            lambda: orphan.write_appended("log", b""),
            lambda: (orphan / "checkpoint-1").delete(),
            lambda: orphan.remove("checkpoint-1/state.json"),
        ]
        for write in writes:
            with pytest.raises(ValueError, match=f"{run.path}: taken over by another training .*process {os.getpid()}"):
                write()
        assert run.names() == []
        assert run.read("checkpoint-1/state.json") == b"before"
        own.write("x", b"own")
    assert run.names() == ["x"]
    assert not run.exists("attempt/owner.json")


def test_what_was_begun_before_a_run_was_lost_is_not_published_after(tmp_path: Path) -> None:
    with attempt_on(Folder(tmp_path)) as own:
        lost = RunFolder(tmp_path, "lost")
        with pytest.raises(ValueError, match="taken over"), lost.publishing("piece") as draft:
            draft.write_bytes(b"half")
        assert [path.name for path in tmp_path.iterdir()] == ["attempt"]
        assert own.names() == []


def test_an_attempt_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), attempt_on(Folder(tmp_path)):
            raise KeyboardInterrupt
    assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_a_training_whose_run_was_taken_over_ends_without_writing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def lose(step: int) -> None:
        if step == 1:
            shutil.copytree(tmp_path / "other" / "attempt", tmp_path / "run" / "attempt", dirs_exist_ok=True)

    sentence = f"{tmp_path}/run: taken over by another training .host "
    with (
        attempt_on(Folder(tmp_path / "other")),
        attempt_on(Folder(tmp_path / "run")) as own,
        pytest.raises(TrainingFault, match=sentence),
    ):
        train(make_recipe(), {}, own, CPU, "test", None, lose)
    assert [entry["step"] for entry in read_log(Folder(tmp_path / "run"))] == [0]
    assert checkpoint_steps(Folder(tmp_path / "run")) == []


def test_a_run_that_vanishes_ends_its_training_and_does_not_begin_again(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def vanish(step: int) -> None:
        if step == 1:
            shutil.rmtree(tmp_path / "run")

    sentence = f"{tmp_path}/run: deleted, moved or replaced while it was trained: .* choose another run.name"
    with attempt_on(Folder(tmp_path / "run")) as own:
        with pytest.raises(TrainingFault, match=sentence):
            train(make_recipe(), {}, own, CPU, "test", None, vanish)
        with pytest.raises(TrainingFault, match=sentence):  # As Ray would try it again.
            train(make_recipe(), {}, own, CPU, "test", None)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_lost_a_checkpoint_ends_its_training(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def die(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    recipe = make_recipe(steps=3, checkpoint_every=1)
    with attempt_on(Folder(tmp_path)) as own:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, {}, own, CPU, "test", None, die)
        shutil.rmtree(tmp_path / "checkpoint-2")
        reason = "checkpoint-2, which this training had written there, is gone, and the latest is that of step 1; "
        with pytest.raises(TrainingFault, match=reason):
            train(recipe, {}, own, CPU, "test", None)
    with attempt_on(Folder(tmp_path)) as own:  # As the message says.
        train(recipe, {}, own, CPU, "test", None)
    assert [entry["step"] for entry in read_log(Folder(tmp_path))] == [0, 1, 2]
