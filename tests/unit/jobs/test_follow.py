"""Every checkpoint of a run is evaluated once, the best is marked, and the training keeps what is marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import follow as following
from jobs.follow import follow
from semsam.data.sealed import seal
from semsam.storage import Folder
from semsam.training import followed as module
from semsam.training.checkpoint import RunState, checkpoint_folder, checkpoint_steps, keep_last
from semsam.training.followed import FOLLOWED_FILE, Followed, read_followed

METRIC = "one_click/miou_oracle"
VALUES = {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.75}


def write_checkpoint(run: Folder, step: int, num_steps: int = 8) -> None:
    state = RunState(step, step, 1, 0, 1, num_steps, "", {}, 2, {})
    checkpoint_folder(run, step).write("state.json", seal(dataclasses.asdict(state)))


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run"))


@pytest.fixture
def training(run: Folder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A training that makes its next checkpoint whenever somebody waits for it; the steps that are still to come."""
    left = [4, 6, 8]
    monkeypatch.setattr(following.time, "sleep", lambda _: write_checkpoint(run, left.pop(0)))
    write_checkpoint(run, 2)
    return left


def evaluation(seen: list[int]) -> Callable[[Folder, int], dict[str, float]]:
    def evaluate(folder: Folder, step: int) -> dict[str, float]:
        seen.append(step)
        assert folder.path.endswith(f"/checkpoint-{step}")
        return {METRIC: VALUES[step], "other": 0.0}

    return evaluate


@pytest.mark.usefixtures("training")
def test_every_checkpoint_is_evaluated_once_and_the_best_is_marked(run: Folder) -> None:
    seen: list[int] = []
    found = follow(run, METRIC, evaluation(seen))
    assert seen == [2, 4, 6, 8]
    assert found.best == 4  # The earliest of equal ones.
    assert follow(run, METRIC, evaluation(seen)).values == found.values
    assert seen == [2, 4, 6, 8]


def test_an_evaluation_that_was_killed_goes_on(run: Folder, training: list[int]) -> None:
    seen: list[int] = []

    def killed(folder: Folder, step: int) -> dict[str, float]:
        if step == 6:
            raise KeyboardInterrupt
        return evaluation(seen)(folder, step)

    with pytest.raises(KeyboardInterrupt):
        follow(run, METRIC, killed)
    assert (seen, training) == ([2, 4], [8])
    assert follow(run, METRIC, evaluation(seen)).best == 4
    assert seen == [2, 4, 6, 8]


def test_a_checkpoint_that_is_deleted_meanwhile_is_left_out(run: Folder, training: list[int]) -> None:
    def evaluate(folder: Folder, step: int) -> dict[str, float]:
        if step == 4:
            folder.delete()
            raise ValueError(f"{folder.path} is not a checkpoint")
        return {METRIC: VALUES[step]}

    found = follow(run, METRIC, evaluate)
    assert found.values == {"2": 0.25, "4": None, "6": 0.5, "8": 0.75}
    assert (found.best, training) == (8, [])


@pytest.mark.usefixtures("training")
def test_what_cannot_be_chosen_by_is_named(run: Folder) -> None:
    with pytest.raises(ValueError, match="^best_by: 'pq' was not measured; there are one_click/miou_oracle, other"):
        follow(run, "pq", evaluation([]))
    Followed(METRIC).write(run)
    with pytest.raises(ValueError, match=r"evaluated.json: the best was chosen by one_click/miou_oracle, not by pq"):
        follow(run, "pq", evaluation([]))


def test_a_fault_of_the_evaluation_is_not_taken_for_a_deleted_checkpoint(run: Folder) -> None:
    def evaluate(folder: Folder, step: int) -> dict[str, float]:
        raise ValueError(f"{folder.path}: broken at {step}")

    write_checkpoint(run, 2)
    with pytest.raises(ValueError, match="broken at 2"):
        follow(run, METRIC, evaluate)


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semsam.training.checkpoint._is_sound", lambda _: True)


@pytest.mark.usefixtures("sound")
def test_clean_up_keeps_the_best_and_what_is_still_to_be_evaluated(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4, 6, 8, 10):
        write_checkpoint(run, step)
    Followed(METRIC).with_value(2, 0.75).with_value(4, 0.5).with_value(8, None).write(run)
    keep_last(run, 1)
    assert checkpoint_steps(run) == [2, 6, 10]
    monkeypatch.setattr(module, "STALE", -1.0)  # Nobody evaluates any more.
    keep_last(run, 1)
    assert checkpoint_steps(run) == [2, 10]


@pytest.mark.usefixtures("sound")
def test_a_run_that_nobody_follows_is_cleaned_up_as_ever(run: Folder) -> None:
    for step in (2, 4, 6):
        write_checkpoint(run, step)
    keep_last(run, 1, every=2 * 2)
    assert checkpoint_steps(run) == [4, 6]


@pytest.mark.usefixtures("sound")
def test_a_damaged_mark_deletes_nothing_and_ends_nothing(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 4):
        write_checkpoint(run, step)
    run.write(FOLLOWED_FILE, b"{}")
    keep_last(run, 1)
    assert checkpoint_steps(run) == [2, 4]
    assert "evaluated.json: damaged" in capsys.readouterr().out
    with pytest.raises(ValueError, match="damaged"):
        read_followed(run)
