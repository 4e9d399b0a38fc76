"""jobs.train on machines that are taken away with notice, and on others that are added."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from semsam.storage import Folder
from semsam.training.checkpoint import checkpoint_steps
from tests.painted_shards import write_painted_shards
from tests.ray_nodes import RayNodes

pytestmark = [pytest.mark.nodes, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
STEPS = 200
CONFIG = """
data:
  root: {folder}/shards
  plan: {{stages: [{{weights: {{coco_panoptic: 1, pascal_part: 1}}}}]}}
  sample: {{augmentation: {{crop_size: 96}}, prompts: {{num_prompts: 2}}}}
model: {{preset: debug}}
criterion: {{num_points: 112}}
optimizer: {{lr: 1.0e-4, clip_norm: 1.0}}
training: {{steps: {steps}, global_batch: 6, zero_stage: 2, precision: fp32, checkpoint_every: 190, log_every: 1}}
run: {{storage: {folder}/runs, name: {name}, num_workers: {workers}, use_gpu: false, cpus_per_worker: 1,
      max_failures: 0, grow_every_s: 5}}
tracking: {{enabled: false}}
"""


class Run:
    """A training in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
        self.process, self.folder = process, folder / "runs" / name
        self._said = folder / f"{name}.txt"

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def log(self) -> list[dict[str, Any]]:
        path = self.folder / "train_log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def checkpoints(self) -> list[int]:
        return checkpoint_steps(Folder(self.folder))

    def wait_until(self, holds: Callable[[], bool], within: float = 400.0) -> None:
        deadline = time.monotonic() + within
        while not holds():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.2)


@contextmanager
def training(folder: Path, nodes: RayNodes, name: str, workers: str) -> Iterator[Run]:
    config = folder / f"{name}.yaml"
    config.write_text(CONFIG.format(folder=folder, name=name, steps=STEPS, workers=workers))
    with (folder / f"{name}.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.train", str(config)],
            cwd=ROOT,
            env=nodes.environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Run(process, folder, name)
    finally:
        process.kill()
        process.wait()


def pause(nodes: RayNodes) -> None:
    """Let no worker take a step until it is gone or told to go on."""
    for pid in nodes.processes("RayTrainWorker"):
        os.kill(pid, signal.SIGSTOP)


def go_on(nodes: RayNodes) -> None:
    for pid in nodes.processes("RayTrainWorker"):
        os.kill(pid, signal.SIGCONT)


def test_a_training_goes_on_with_fewer_workers_and_with_more_as_if_nothing_had_happened(tmp_path: Path) -> None:
    write_painted_shards(tmp_path / "shards")
    with RayNodes(drain=12) as nodes:
        taken_away = [nodes.add(), nodes.add()][1]
        nodes.wait_for(3)
        with training(tmp_path, nodes, "whole", workers="2") as whole:
            assert whole.process.wait(timeout=600) == 0, whole.said
        with training(tmp_path, nodes, "hit", workers="[1, 3]") as hit:
            hit.wait_until(lambda: len(hit.log()) > 4)
            told_after = len(hit.log())
            nodes.tell(taken_away)
            hit.wait_until(lambda: len(hit.checkpoints()) > 0)
            assert hit.checkpoints()[0] > told_after + 1  # Its last step began after the notice.
            pause(nodes)  # Else a fast machine would be done before anything happens.
            hit.wait_until(lambda: hit.log()[-1]["workers"] == 1)
            pause(nodes)
            for _ in range(2):
                nodes.add()
            nodes.wait_for(4, within=400)
            hit.wait_until(lambda: "3 workers from now on, after a checkpoint" in hit.said)
            go_on(nodes)
            assert hit.process.wait(timeout=600) == 0, hit.said
    expected, found = whole.log(), hit.log()
    assert [entry["step"] for entry in found] == list(range(STEPS))
    assert [workers for workers, _ in groupby(entry["workers"] for entry in found)] == [2, 1, 3]
    assert [entry["samples_seen"] for entry in found] == [entry["samples_seen"] for entry in expected]
    for ours, theirs in zip(found[:20], expected[:20], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
    assert hit.checkpoints()[-1] == STEPS
    # Workers were added after a checkpoint: of what one of them did alone nothing was done twice.
    added_at = next(entry["step"] for entry in found if entry["workers"] == 3)
    assert f"going on after step {added_at} from" in hit.said
