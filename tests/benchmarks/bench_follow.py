"""What it costs a training that an evaluation follows it: CPU-seconds of its process, with marks beside it or without.

    python tests/benchmarks/bench_follow.py [--turns 120]

Two processes train the same steps of the quickstart's recipe in turns of one step and one checkpoint: while one works,
the other waits.  In every turn one of them is followed: `evaluated.json` lies in its run, as `jobs.follow` writes it,
and is written again all the time.  The next turn it is the other one, so that what two processes differ by (up to a
twentieth, all the time) is on both sides.  What the evaluation itself takes is not the training's, and not measured.
Ends with an error where the median of the ratios is beyond its bound.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from bench_toy import prepare

from jobs.quickstart import DEFAULT_CONFIG, QuickstartJob
from semsam.config import load_config
from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import checkpoint_steps
from semsam.training.engine import Worker
from semsam.training.followed import FOLLOWED_FILE, Followed
from semsam.training.train import train

WARM_UP = 10  # Turns that are not measured.
BOUND = 1.03
TURN = "turn "
CLEAN_UP = 0.05  # Seconds for it, once a checkpoint is complete.


class Trainer:
    """A training in a process of its own, that does its steps when it is told to."""

    def __init__(self, shards: Path, run: Path, turns: int) -> None:
        command = [sys.executable, __file__, "--turns", str(turns), "--train", str(shards), str(run)]
        self.run = Folder(run)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._spent = self._wait()

    def turn(self) -> float:
        """The CPU-seconds of the next step and its checkpoint."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        before, self._spent = self._spent, self._wait()
        return self._spent - before

    def end(self) -> None:
        """Let it end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait():
            raise RuntimeError("a training failed")

    def _wait(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(TURN):
                return float(line.removeprefix(TURN))
        raise RuntimeError("a training ended early")


def work(shards: str, run: str, turns: int) -> None:
    """Train, and wait for the word of the parent before every step."""
    torch.set_num_threads(1)
    changes = [
        f"data.root={shards}",
        f"training.steps={turns + 1}",
        "training.checkpoint_every=1",
        "training.global_batch=4",
        "training.zero_stage=null",
    ]
    job = load_config(QuickstartJob, str(DEFAULT_CONFIG), [f"train.{change}" for change in changes])

    def wait_for_turn(step: int) -> None:
        while step and step not in checkpoint_steps(Folder(run)):
            time.sleep(0.02)
        time.sleep(CLEAN_UP)
        print(f"{TURN}{time.process_time()}", flush=True)
        sys.stdin.readline()

    train(job.train.in_parts(), {}, RunFolder(run), Worker(0, 1, torch.device("cpu")), "x", None, wait_for_turn)


@contextmanager
def followed(run: Folder, turn: int) -> Iterator[None]:
    """A run in which an evaluation has marked all checkpoints before this turn's; one that is gone is the best."""
    marks = Followed("one_click/miou_oracle", {str(step): 1 / step for step in range(1, turn + 1)})
    marks.write(run)
    is_over = threading.Event()

    def mark() -> None:
        while not is_over.wait(0.1):
            marks.write(run)

    thread = threading.Thread(target=mark)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        run.remove(FOLLOWED_FILE)


def measure(turns: int) -> list[tuple[float, float]]:
    """CPU-seconds of every turn, of the training that is followed and of the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder / "toy", folder / "shards")
        trainers = [Trainer(folder / "shards", folder / run, turns) for run in ("one", "other")]
        spent = []
        for turn in range(turns):
            order = trainers if turn // 2 % 2 else trainers[::-1]
            of_trainer = {}
            for trainer in order:
                is_followed = trainer is trainers[turn % 2]
                with followed(trainer.run, turn) if is_followed else nullcontext():
                    of_trainer[is_followed] = trainer.turn()
            spent.append((of_trainer[True], of_trainer[False]))
        for trainer in trainers:
            trainer.end()
            assert checkpoint_steps(trainer.run) == [turns + 1]
    return spent


def bench(turns: int) -> float:
    """Print what was measured, and return the median ratio."""
    spent = measure(turns)[WARM_UP:]
    with_marks, without = (sum(column) / len(spent) for column in zip(*spent, strict=True))
    pairs = [one / other for one, other in spent]
    ratios = [math.sqrt(one * other) for one, other in zip(pairs[::2], pairs[1::2], strict=True)]
    ratio, quartiles = statistics.median(ratios), statistics.quantiles(ratios)
    print(f"{len(spent)} steps with a checkpoint each, CPU-seconds of one: {without:.3f}")
    print(f"  followed by an evaluation: {with_marks:.3f}")
    print(f"  median of pairs: {ratio:.4f} times it; half of them from {quartiles[0]:.3f} to {quartiles[2]:.3f}")
    print(f"  (bound: {BOUND})")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=120, help="an even number of them")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        work(*arguments.train, arguments.turns)
    elif bench(arguments.turns) > BOUND:
        sys.exit(f"following costs more than {BOUND} times the training alone")


if __name__ == "__main__":
    main()
