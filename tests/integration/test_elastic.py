"""jobs.train on machines that come, are taken away with notice, and vanish without."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from semsam.storage import Folder
from semsam.training.checkpoint import checkpoint_steps
from tests.painted_shards import write_painted_shards
from tests.ray_nodes import RayNodes

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
CONFIG = """
data:
  root: {root}
  plan: {{stages: [{{weights: {{coco_panoptic: 1, pascal_part: 1}}}}]}}
  sample: {{augmentation: {{crop_size: 64}}, prompts: {{num_prompts: 2}}}}
model: {{preset: debug}}
criterion: {{num_points: 112}}
optimizer: {{lr: 1.0e-4, clip_norm: 1.0}}
training: {{steps: {steps}, global_batch: 6, zero_stage: 2, precision: fp32, checkpoint_every: {every}, log_every: 1}}
run: {{storage: {storage}, num_workers: {workers}, use_gpu: false, cpus_per_worker: 1, max_failures: {failures},
      grow_every_s: 5}}
tracking: {{enabled: false}}
"""


class Run:
    """A training in a process of its own."""

    def __init__(self, folder: Path, nodes: RayNodes, name: str, **settings: object) -> None:
        self.folder = folder / "runs" / name
        self._said = folder / f"{name}.txt"
        config = folder / f"{name}.yaml"
        config.write_text(CONFIG.format(root=folder / "shards", storage=folder / "runs", **settings))
        environment = nodes.environment | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.train", str(config), f"run.name={name}"],
                cwd=ROOT,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def log(self) -> list[dict[str, float]]:
        path = self.folder / "train_log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_until(self, holds: Callable[[], bool], within: float = 240.0) -> None:
        deadline = time.monotonic() + within
        while not holds():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.2)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def test_try(tmp_path: Path) -> None:
    write_painted_shards(tmp_path / "shards")
    with RayNodes() as nodes:
        first, second = nodes.add(), nodes.add()
        nodes.wait_for(3)
        run = Run(tmp_path, nodes, "hit", steps=400, every=50, workers="[1, 3]", failures=0)
        try:
            run.wait_until(lambda: len(run.log()) > 5)
            t = time.time()
            second.send_signal(signal.SIGTERM)
            at = len(run.log())
            print("SIGTERM at", at)
            n = 0
            while run.process.poll() is None and time.time() - t < 200:
                time.sleep(2)
                l = len(run.log())
                print(f"{time.time() - t:.0f}", l, checkpoint_steps(Folder(run.folder)), second.poll(), flush=True)
                if time.time() - t > 20 and n == 0:
                    nodes.add()
                    nodes.add()
                    n = 1
                    print("added")
        finally:
            run.end()
            print(run.said)
