"""Kills whole jobs, driver, workers and cluster at once, and looks whether running them again ends as if undisturbed.

    python tests/chaos/killed_jobs.py [--seeds 12] [--job evaluate]

Each seed picks a job (prepare, train, evaluate, generate in turn) and a moment of its work.  Of an evaluation, in turn,
the whole job is killed, its driver alone, or one of its actors, after which it must end without being run again.  What
must be alike in the end: the bytes of all shards, masks and items, the loss of every step and the weights, the numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0  # Seconds for a job on two cores.
STEPS = 12
TRAIN = """
data:
  root: {shards}
  plan: {{stages: [{{weights: {{coco_panoptic: 1, pascal_part: 1}}}}]}}
  sample: {{augmentation: {{crop_size: 96}}, prompts: {{num_prompts: 2}}}}
model: {{preset: debug}}
criterion: {{num_points: 112}}
optimizer: {{lr: 1.0e-3, clip_norm: 1.0}}
training: {{steps: {steps}, global_batch: 4, zero_stage: 2, precision: fp32, checkpoint_every: 3, log_every: 1}}
run: {{name: run, num_workers: 2, use_gpu: false, cpus_per_worker: 1, max_failures: 2}}
tracking: {{enabled: false}}
"""
# What no job's output has a line with: remarks of libraries about themselves.
NOISE = ("core_worker.cc", "Set ray log level", "PlacementGroupCleaner", " INFO mlflow")
# What a step says of the time it took, not of what it computed.
TIMES = ("time", "data_wait", "seconds", "images_per_second", "memory_gb")


@dataclass(frozen=True)
class World:
    """Native files, shards and a model that jobs are run on."""

    folder: Path

    def write(self) -> World:
        """Draw the toy world and prepare two datasets of it."""
        from pipelines.toy import ToySettings, write_toy_world

        write_toy_world(self.folder / "toy", ToySettings(train_images=24, val_images=12, faults=False))
        (self.folder / "train.yaml").write_text(TRAIN.format(shards=self.folder / "shards", steps=STEPS))
        finish(self.command("prepare", self.folder / "shards"))
        return self

    def command(self, job: str, output: Path) -> list[str]:
        """The command line of a job that writes to `output`."""
        toy = self.folder / "toy"
        arguments = {
            "prepare": [
                *(f"datasets.{name}.root={toy}/{name}" for name in ("coco_panoptic", "pascal_part")),
                f"output={output}",
                "rows_per_shard=2",
            ],
            "train": [str(self.folder / "train.yaml"), f"run.storage={output}"],
            "evaluate": [
                f"data={self.folder}/shards",
                "untrained=true",
                f"output={output}",
                "image_size={short_side: 96, max_long_side: 96}",
                "pictures=0",
                "rows_per_task=2",
                "tracking.enabled=false",
            ],
            "generate": [
                f"images={toy}/coco_panoptic/val2017",
                f"output={output}",
                "image_size={short_side: 64, max_long_side: 64}",
                "masks={points_per_side: 2, min_iou: -10, min_stability: 0, max_overlap: 1}",
                "images_per_file=1",
            ],
        }[job]
        return [sys.executable, "-m", f"jobs.{job}", *arguments]


@dataclass
class Running:
    """A job in a session of its own."""

    process: subprocess.Popen[bytes]
    lines: Path
    started: float = field(default_factory=time.monotonic)

    def kill(self) -> None:
        """End the job and its cluster at once: no more than the processes of its own session."""
        self.process.kill()
        self.process.wait()
        for pid in self._session():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_driver(self) -> None:
        """End the driver alone; its cluster notices, and ends by itself."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + PATIENCE
        while self._session() and time.monotonic() < deadline:
            time.sleep(0.2)

    def kill_actor(self) -> None:
        """End one of the job's actors, if there is any at this moment."""
        for pid in self._session("ray::MapWorker"):
            os.kill(pid, signal.SIGKILL)
            return

    def _session(self, name: str = "") -> list[int]:
        """The living processes of the job, those of a name."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,stat=,args=", "-s", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        found = [line.split(None, 2) for line in listed.stdout.splitlines()]
        return [int(pid) for pid, state, *words in found if state[0] != "Z" and name in " ".join(words)]


def start(command: list[str]) -> Running:
    """Begin a job; its output goes to a file of its own."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    with tempfile.NamedTemporaryFile("wb", suffix=".txt", delete=False) as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Running(process, Path(output.name))


def finish(command: list[str]) -> None:
    """Run a job to its end; one that is not good, or has noise before it, raises `RuntimeError`."""
    wait_for(start(command))


def wait_for(job: Running) -> None:
    """Wait for a job's end; one that is not good, or has noise before it, raises `RuntimeError`."""
    try:
        status = job.process.wait(timeout=PATIENCE)
    finally:
        job.kill()
    text, command = job.lines.read_text(), " ".join(map(str, job.process.args))  # type: ignore[union-attr, arg-type]
    if status:
        raise RuntimeError(f"{command}\nended with {status}:\n{text}")
    if noise := noise_in(text):
        raise RuntimeError(f"{command}\nhas in its output what no user can read:\n" + "\n".join(noise))


def noise_in(text: str) -> list[str]:
    """The lines of an output that are not fit for reading."""
    return [line for line in text.splitlines() if any(one in line for one in NOISE)]


def progress(job: str, output: Path) -> int:
    """How many of its parts a job has finished."""
    if job == "train":
        log = output / "run" / "train_log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0
    pattern = {"prepare": "*/*/shard-*.json", "generate": "masks-*.json", "evaluate": "*/*/items-*.json"}[job]
    return len(list(output.glob(pattern)))


def run_and_kill(job: str, command: list[str], output: Path, total: int, seed: int, kind: str = "job") -> str:
    """Run a job and kill it at a moment of its work, of which an undisturbed run leaves `total`; says when that was.

    It has ended then, by the kill or, after that of an actor, as any job does.
    """
    rng = np.random.default_rng(seed)
    running = start(command)
    try:
        wanted = int(rng.integers(0, total))
        while progress(job, output) < wanted and running.process.poll() is None:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.05 if wanted else 8)))
        if running.process.poll() is not None:
            raise RuntimeError(f"{job} had ended before it was killed:\n{running.lines.read_text()}")
        done = progress(job, output)
        moment = f"{kind} after {time.monotonic() - running.started:.1f} s, {done} of {total} parts"
        if kind == "driver":
            running.kill_driver()
        elif kind == "actor":
            running.kill_actor()
            wait_for(running)
        return moment
    finally:
        running.kill()


def result_of(job: str, output: Path) -> Any:
    """What must be alike after any number of kills."""
    if job == "train":
        log = [orjson.loads(line) for line in (output / "run" / "train_log.jsonl").read_bytes().splitlines()]
        steps = [{name: value for name, value in entry.items() if name not in TIMES} for entry in log]
        weights = output / "run" / f"checkpoint-{STEPS}" / "model.safetensors"
        return steps, hashlib.sha256(weights.read_bytes()).hexdigest()
    files = {str(path.relative_to(output)): path for path in sorted(output.rglob("*")) if path.is_file()}
    numbers = {}
    if job == "evaluate":
        numbers = orjson.loads(files.pop("metrics.json").read_bytes()) | {"time": None}
        del files["evaluation.yaml"]  # Names its own output.
    return numbers, {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


JOBS = ("prepare", "train", "evaluate", "generate")
KINDS = ("job", "driver", "actor")  # What of an evaluation is killed.


class Chaos:
    """One world, and of each job one undisturbed run to compare with."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._calm: dict[str, tuple[Any, int]] = {}

    def calm(self, job: str) -> tuple[Any, int]:
        """What an undisturbed run ends with, and its number of parts."""
        if job not in self._calm:
            output = self.world.folder / f"calm-{job}"
            finish(self.world.command(job, output))
            self._calm[job] = result_of(job, output), progress(job, output)
        return self._calm[job]

    def disturbed(self, seed: int, only: str | None = None) -> tuple[str, str, bool]:
        """The job that a seed picks, when it was killed, and whether it ended as the undisturbed one."""
        job = only or JOBS[seed % len(JOBS)]
        kind = KINDS[(seed if only else seed // len(JOBS)) % len(KINDS)] if job == "evaluate" else "job"
        expected, total = self.calm(job)
        output = self.world.folder / f"killed-{seed}"
        command = self.world.command(job, output)
        moment = run_and_kill(job, command, output, total, seed, kind)
        if kind != "actor":
            finish(command)
        return job, moment, result_of(job, output) == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12, help="how many kills")
    parser.add_argument("--job", choices=JOBS, help="that one alone")
    arguments = parser.parse_args()
    seeds = arguments.seeds
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(World(Path(folder)).write())
        report: Callable[..., None] = print
        for seed in range(seeds):
            job, moment, is_alike = chaos.disturbed(seed, arguments.job)
            failed += not is_alike
            report(f"{seed:>3} {job:<9} killed {moment}: {'ends alike' if is_alike else 'ENDS OTHERWISE'}", flush=True)
    if failed:
        sys.exit(f"{failed} of {seeds} ended otherwise")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
