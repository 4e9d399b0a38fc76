"""What a checkpoint of 1 GiB to an S3 server costs a training: held up for a copy in memory, then next to nothing.

    python tests/benchmarks/bench_checkpoint.py [--rounds 6] [--mib 1024]

One worker with one thread on one core, the server on another.  In every round the state is copied to memory that is
there, for comparison; then a checkpoint is begun, which is how long training is held up; then steps are made until it
is complete, and as many without one.  CPU-seconds of a step are those of the thread that trains: that of the upload,
which has the same core, is told beside it, as is how much longer a step takes.
Ends with an error where a bound is missed.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import RunState, checkpoint_steps, latest_checkpoint, verify_checkpoint
from semsam.training.checkpoint_writer import CheckpointWriter, Whole
from semsam.training.partitions import Partition, quantities
from tests.s3_server import S3Server

HELD_UP, STEP_CPU, MEMORY = 1.3, 1.05, 1.5  # Bounds: times the copy, times a step without, times the state.
PARAMETERS = 200
LEAST_STEPS = 20


class Training:
    """Steps of a small model, each some tens of milliseconds, and beside it a state of a given size to be saved."""

    def __init__(self, state_mib: int) -> None:
        torch.manual_seed(0)
        size = state_mib * 2**20 // 4 // len(quantities(False)) // PARAMETERS
        self.partitions = [
            Partition(f"p{i}", 0, {one: torch.randn(size) for one in quantities(False)}) for i in range(PARAMETERS)
        ]
        self.model = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.inputs = torch.randn(8, 128, 128)

    def values(self) -> list[Tensor]:
        """The state."""
        return [one.values[quantity] for quantity in quantities(False) for one in self.partitions]

    def whole(self) -> Whole:
        """What the checkpoint says beside it."""
        return Whole("", {one.name: one.values["weight"].shape for one in self.partitions}, {})

    def step(self) -> tuple[float, float]:
        """CPU-seconds of this thread, and seconds, of one step."""
        spent, started = time.thread_time(), time.perf_counter()
        loss = self.model(self.inputs).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.thread_time() - spent, time.perf_counter() - started


@dataclass(frozen=True)
class Round:
    """What one checkpoint cost, in seconds; of steps the medians."""

    copy: float
    held_up: float
    upload: float  # From then on until it is complete.
    upload_cpu: float  # Of all threads but that which trains.
    step_cpu: float
    step: float
    step_cpu_alone: float
    step_alone: float
    worst_step: float


def measure(training: Training, writer: CheckpointWriter, copies: list[Tensor], step: int) -> Round:
    """One round, at a step of the run."""
    alone = [training.step() for _ in range(LEAST_STEPS // 2)]
    started = time.perf_counter()
    for copy, value in zip(copies, training.values(), strict=True):
        copy.copy_(value)
    copied = time.perf_counter()
    writer.save(training.partitions, RunState(step, 0, 1, 0, 0, 0, "", {}, 0, {}))
    saved = time.perf_counter()
    cpu, own_cpu = time.process_time(), time.thread_time()
    during = []
    while writer.is_busy() or len(during) < 2:
        during.append(training.step())
    done, cpu_done = time.perf_counter(), time.process_time() - cpu - (time.thread_time() - own_cpu)
    alone += [training.step() for _ in range(max(LEAST_STEPS, len(during)) - len(alone))]
    medians = [statistics.median(column) for some in (during, alone) for column in zip(*some, strict=True)]
    return Round(copied - started, saved - copied, done - saved, cpu_done, *medians, max(one[1] for one in during))


def bench(rounds: int, state_mib: int, run: str) -> list[str]:
    """Print what was measured; the bounds that were missed."""
    training = Training(state_mib)
    copies = [torch.zeros_like(value) for value in training.values()]
    for _ in range(LEAST_STEPS):
        training.step()
    before = peak_mib()
    writer = CheckpointWriter(RunFolder(run), 0, 1, rounds, False, training.whole())
    writer.prepare(training.partitions)
    while writer.is_busy():
        time.sleep(0.1)
    found = [measure(training, writer, copies, step) for step in range(1, rounds + 1)]
    writer.finish()
    memory = (peak_mib() - before) / state_mib
    latest = latest_checkpoint(Folder(run))
    assert latest is not None
    assert checkpoint_steps(Folder(run)) == list(range(1, rounds + 1))
    print(f"{state_mib} MiB of state, {rounds} checkpoints, each: {verify_checkpoint(latest)}")
    held_up = statistics.median(one.held_up / one.copy for one in found)
    step_cpu = statistics.median(one.step_cpu / one.step_cpu_alone for one in found)
    written = state_mib * 4 / 3  # Of the weights once more, to be used.
    print(f"  copy in memory {median('copy', found):.3f} s, training held up {median('held_up', found):.3f} s")
    ratios = ", ".join(f"{one.held_up / one.copy:.2f}" for one in found)
    print(f"  held up / copy                {held_up:.2f}  (bound: {HELD_UP}; {ratios})")
    ratios = ", ".join(f"{one.step_cpu / one.step_cpu_alone:.3f}" for one in found)
    print(f"  CPU of a step during / alone  {step_cpu:.3f}  (bound: {STEP_CPU}; {ratios})")
    print(f"  CPU of the upload             {median('upload_cpu', found):.2f} s beside the steps, on their core")
    slower = statistics.median(one.step / one.step_alone for one in found)
    print(
        f"  seconds of a step             {slower:.2f} times those alone, the worst {median('worst_step', found):.2f} s"
    )
    rate = statistics.median(written / one.upload for one in found)
    print(f"  written                       {written:.0f} MiB at {rate:.0f} MiB/s")
    print(f"  peak memory over the training {memory:.2f} times the state  (bound: {MEMORY})")
    bounds = (("held up", held_up, HELD_UP), ("CPU of a step", step_cpu, STEP_CPU), ("memory", memory, MEMORY))
    return [f"{name} {value:.2f} > {bound}" for name, value, bound in bounds if value > bound]


def median(name: str, found: list[Round]) -> float:
    """Of one thing that was measured."""
    return statistics.median(getattr(one, name) for one in found)


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--mib", type=int, default=1024, help="of state: weights and two moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first, *others = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        os.sched_setaffinity(0, others or [first])
        server = S3Server(Path(name))  # Stays where it was started.
        os.sched_setaffinity(0, [first])
        try:
            os.environ.update(server.environment)
            missed = bench(arguments.rounds, arguments.mib, f"{server.uri}/run")
        finally:
            server.stop()
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
