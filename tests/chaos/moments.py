"""The moments of a job's work at which something is killed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.chaos.cluster import Cluster
from tests.chaos.running import PATIENCE, Running
from tests.chaos.world import CHECKPOINT_EVERY, UPLOAD

EARLY, WRITING, LATER = MOMENTS = ("before the first", "during a write", "later")  # Checkpoint, or finished part.
_STATE = "state.json"  # Written last, of a checkpoint.
_PART = {"prepare": "shard", "generate": "masks", "evaluate": "items"}
_RENEW = 0.3  # Seconds after which the processes to kill are looked for again.
_BY_HAND = ("driver", "head", "job")  # May be killed before the job has begun.


@dataclass(frozen=True)
class State:
    """How far a job has come, by its output folder and what it prints."""

    done: int  # Steps, or parts.
    kept: int  # Steps before the latest complete checkpoint, or parts.
    is_begun: bool  # Whether any worker has told of work.
    in_work: str  # What is being written: a checkpoint without its last file, a draft, a part without its sidecar.

    def is_at(self, moment: str) -> bool:
        """Whether the job is there; with several workers it may be at two moments."""
        return {EARLY: self.kept == 0, WRITING: bool(self.in_work), LATER: self.kept > 0}[moment]


@dataclass(frozen=True)
class Killed:
    """When something was killed."""

    state: State  # Right before.
    seconds: float  # Since the job was started.


def state_of(job: str, files: Path, running: Running) -> State:
    """How far a job is that writes to a folder, or to S3 if that is where its objects are."""
    return training_state(files / "run", running.said()) if job == "train" else part_state(job, files)


def training_state(run: Path, said: str) -> State:
    steps = [int(step) for step in re.findall(r"\bstep (\d+)/", said)]
    log = run / "train_log.jsonl"
    steps.append(log.read_bytes().count(b"\n") if log.exists() else 0)  # On the disk known before it is printed.
    found = {int(path.rpartition("-")[2]): names for path, names in _names(run).items() if "checkpoint-" in path}
    complete = [0, *(step for step, names in found.items() if _STATE in names)]
    in_work = sorted(step for step, names in found.items() if names and _STATE not in names)
    return State(
        done=max(*steps, *complete),
        kept=max(complete),
        is_begun=bool(found) or "beginning with" in said,
        in_work=f"checkpoint-{in_work[0]}" if in_work else "",
    )


def part_state(job: str, top: Path) -> State:
    finished, in_work, is_begun = 0, "", False
    for folder, names in _names(top).items():
        for name in names:
            if name.startswith(UPLOAD):
                in_work = f"an upload to {os.path.basename(folder)}"
            part, _, kind = name.lstrip(".").partition(".")
            is_sidecar, is_note = kind == "json", kind.startswith("attempt")
            if not re.fullmatch(rf"{_PART[job]}-\d+", part):
                continue
            finished += is_sidecar
            is_begun = True
            if not is_sidecar and not is_note and f"{part}.json" not in names:
                in_work = f"{os.path.basename(folder)}/{part}"
    return State(finished, finished, is_begun, in_work)


def finished_parts(job: str, top: Path) -> Mapping[str, int]:
    """The sidecars of the parts that are there, and when they were written: those of a training are none."""
    names = [] if job == "train" else top.rglob(f"{_PART[job]}-*.json")
    return {str(path): path.stat().st_mtime_ns for path in names if not path.name.startswith(".")}


def _names(top: Path) -> dict[str, set[str]]:
    """The names of the files in a folder and in each below it."""
    return {folder: set(names) for folder, _, names in os.walk(top)}


def kill_at(
    moment: str, kind: str, job: str, files: Path, of: int, running: Running, cluster: Cluster, rng: np.random.Generator
) -> Killed | None:
    """Wait for such a moment of a job's work, drawn from `rng`, and kill; None if the job has ended before."""
    is_time = _trigger(moment, kind, job, of, rng)
    kill: Callable[[], None] | None = None
    renewed = 0.0
    while not running.has_ended:
        if running.seconds > PATIENCE:
            raise RuntimeError(f"no such moment in {PATIENCE:.0f} s:\n{running.said()}")
        state = state_of(job, files, running)
        if time.monotonic() > renewed + _RENEW and (state.is_begun or kind in _BY_HAND):
            kill, renewed = cluster.aim(kind, job, running, rng), time.monotonic()
        elif state.kept >= of:
            return None  # All is done, and the job is about to say so.
        elif kill is not None and is_time(state, running.seconds):
            kill()
            return Killed(state, running.seconds)
        time.sleep(0.002)
    return None


def _trigger(moment: str, kind: str, job: str, of: int, rng: np.random.Generator) -> Callable[[State, float], bool]:
    """Whether it is time to kill, by the job's state and the seconds since its start."""
    first = CHECKPOINT_EVERY if job == "train" else 1
    last = max(of * 4 // 5, first + 1)
    if moment == WRITING:
        wanted = int(rng.integers(0, last - first + 1))
        return lambda state, seconds: bool(state.in_work) and state.done >= wanted
    if moment == LATER:
        wanted = int(rng.integers(first, last))
        return lambda state, seconds: state.kept > 0 and state.done >= wanted
    if kind in _BY_HAND and rng.random() < 0.4:
        delay = float(rng.uniform(2, 12))
        return lambda state, seconds: seconds > delay or state.kept > 0
    # A job that has not begun needs no worker, and is told at once that S3 is away.
    wanted = int(rng.integers(0, first))
    return lambda state, seconds: (state.is_begun and state.done >= wanted) or state.kept > 0
