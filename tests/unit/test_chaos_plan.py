"""What `make chaos` kills, and what it takes for a broken promise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.cluster import KINDS
from tests.chaos.moments import EARLY, LATER, WRITING, State, finished_parts, part_state, training_state
from tests.chaos.soak import Plan, went_on
from tests.chaos.world import JOBS

BEGAN = "beginning with random weights\n"


def steps(first: int, end: int) -> str:
    return "".join(f"step {step}/20: loss 1.0\n" for step in range(first + 1, end + 1))


def resumed(after: int) -> str:
    return f"going on after step {after} from /runs/run/checkpoint-{after}\n"


def test_forty_seeds_kill_every_kind_in_every_job_and_enough_at_each_moment() -> None:
    plans = [Plan.of(seed) for seed in range(40)]
    assert len({(plan.kind, plan.job, plan.moment) for plan in plans}) == 40
    assert {(plan.kind, plan.job) for plan in plans} == {(kind, job) for kind in KINDS for job in JOBS}
    assert min(Counter(plan.kind for plan in plans).values()) >= 4
    moments = Counter(plan.moment for plan in plans)
    assert moments[EARLY] >= 10
    assert moments[WRITING] >= 10
    assert {plan.place for plan in plans if plan.kind == "s3"} == {"s3"}


def test_a_seed_can_be_held_to_a_kind_and_a_job() -> None:
    assert {(plan.kind, plan.job) for plan in (Plan.of(seed, "node", "train") for seed in range(9))} == {
        ("node", "train")
    }


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_checkpoint_is_being_written_until_its_state_is_there(tmp_path: Path) -> None:
    assert training_state(tmp_path / "none", "").is_at(EARLY)
    write(tmp_path, "checkpoint-5/.weight.draft")
    state = training_state(tmp_path, BEGAN + steps(0, 6))
    assert (state.done, state.kept, state.in_work) == (6, 0, "checkpoint-5")
    assert state.is_at(WRITING)
    write(tmp_path, "checkpoint-5/state.json")
    state = training_state(tmp_path, BEGAN + steps(0, 6))
    assert (state.kept, state.in_work) == (5, "")
    assert state.is_at(LATER)
    assert not state.is_at(WRITING)


def test_an_upload_is_a_write(tmp_path: Path) -> None:
    write(tmp_path, "a/train/.rclone_temp_put_1", "a/train/shard-00000.attempt")
    assert part_state("prepare", tmp_path) == State(0, 0, True, "an upload to train")


@pytest.mark.parametrize("writing", [".shard-00001.arrow.1f.draft", "shard-00001.arrow"])
def test_a_part_is_being_written_from_its_draft_to_its_sidecar(tmp_path: Path, writing: str) -> None:
    assert not part_state("prepare", tmp_path / "none").is_begun
    write(tmp_path, "a/train/shard-00000.json", "a/train/shard-00000.arrow", "a/train/shard-00001.attempt")
    assert part_state("prepare", tmp_path) == State(1, 1, True, "")
    write(tmp_path, f"a/train/{writing}")
    assert part_state("prepare", tmp_path).in_work == "train/shard-00001"
    assert len(finished_parts("prepare", tmp_path)) == 1


@pytest.mark.parametrize(
    ("kind", "said", "kept", "where"),
    [
        ("node", BEGAN + steps(0, 8) + resumed(5) + steps(5, 20), 5, "after step 5, 3 done again"),
        ("head", BEGAN + steps(0, 3) + BEGAN + steps(0, 20), 0, "after step 0, 3 done again"),
        ("driver", BEGAN + steps(0, 20), 0, "after step 0, 0 done again"),
        ("s3", BEGAN + steps(0, 20), 10, "without a new start"),
        # The checkpoint of step 10 was in work.
        ("driver", BEGAN + steps(0, 11) + resumed(5) + steps(5, 20), 5, "after step 5, 6 done again"),
    ],
)
def test_a_training_goes_on_from_its_latest_checkpoint(kind: str, said: str, kept: int, where: str) -> None:
    state = State(kept, kept, True, "")
    assert went_on(Plan(0, kind, "train", LATER, "disk"), state, said, {}, {}) == (where, [])


@pytest.mark.parametrize(
    ("kind", "said", "kept"),
    [
        ("node", BEGAN + steps(0, 8) + BEGAN + steps(0, 20), 5),
        ("driver", BEGAN + steps(0, 16) + resumed(5) + steps(5, 20), 5),
        ("s3", BEGAN + steps(0, 8) + resumed(5) + steps(5, 20), 5),
        ("node", BEGAN + steps(0, 8) + resumed(5) + resumed(5) + steps(5, 20), 5),
    ],
)
def test_one_that_does_more_again_or_dies_more_often_breaks_a_promise(kind: str, said: str, kept: int) -> None:
    _, broken = went_on(Plan(0, kind, "train", LATER, "disk"), State(kept, kept, True, ""), said, {}, {})
    assert len(broken) == 1


def test_a_finished_part_that_is_made_again_is_a_broken_promise() -> None:
    plan, state = Plan(0, "node", "prepare", LATER, "disk"), State(2, 2, True, "")
    assert went_on(plan, state, "", {"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}) == ("with 2 parts", [])
    _, broken = went_on(plan, state, "", {"a": 1, "b": 2}, {"a": 1, "b": 4, "c": 3})
    assert broken == ["1 finished parts were made again: b"]
