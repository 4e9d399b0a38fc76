"""jobs.train on a local cluster: a worker that is killed or stopped costs time and nothing else, here and in MLflow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from semsam.tracking.tracker import LOSS
from tests.chaos.running import noise_in
from tests.mlflow_stand_in import MlflowStandIn
from tests.painted_shards import write_painted_shards

ROOT = Path(__file__).parents[2]
CONFIG = """
data:
  root: {root}
  plan: {{stages: [{{weights: {{coco_panoptic: 1, pascal_part: 1}}}}]}}
  sample: {{augmentation: {{crop_size: 128}}, prompts: {{num_prompts: 2}}}}
model: {{preset: debug}}
criterion: {{num_points: 112}}
optimizer: {{lr: 1.0e-3, clip_norm: 1.0}}
training: {{steps: 8, global_batch: 4, zero_stage: 2, precision: fp32, checkpoint_every: 3, log_every: 1}}
run: {{storage: {storage}, num_workers: 2, use_gpu: false, cpus_per_worker: 1, max_failures: 2}}
tracking: {{uri: "{uri}"}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[MlflowStandIn]:
    server = MlflowStandIn()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, server: MlflowStandIn) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    path = folder / "train.yaml"
    uri = server.uri.replace("//", "//somebody:s3cret@")
    path.write_text(CONFIG.format(root=write_painted_shards(folder / "shards"), storage=folder / "runs", uri=uri))
    (folder / "runs").mkdir()
    return path


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_killed_worker_and_one_that_is_stopped_change_no_loss(config: Path, server: MlflowStandIn) -> None:
    runs, steps = config.parent / "runs", 14
    whole = _start(config, "whole", f"training.steps={steps}")
    assert whole.wait(timeout=400) == 0, _output(config, "whole")
    assert not noise_in(_output(config, "whole"))
    limits = ("run.stall_warning_s=5", "run.stall_timeout_s=15")
    hit = _start(config, "hit", f"training.steps={steps}", *limits)
    try:
        for lines, number in ((5, signal.SIGKILL), (10, signal.SIGSTOP)):
            _wait_for_lines(runs / "hit" / "train_log.jsonl", lines, hit)
            os.kill(_a_worker_of(hit.pid), number)
        assert hit.wait(timeout=400) == 0, _output(config, "hit")
    finally:
        hit.kill()
        hit.wait()
    expected, found = (
        [json.loads(line) for line in (runs / name / "train_log.jsonl").read_text().splitlines()]
        for name in ("whole", "hit")
    )
    said = _output(config, "hit")
    assert "going on after step 3" in said
    assert re.search(r"step \d+ is not done after \d+ s .*\n.*no answer in 4 s from worker [01]: ", said)
    assert re.search(r"step \d+ is ended after \d+ s", said)
    assert [entry["step"] for entry in found] == list(range(steps))
    assert [entry["loss"] for entry in found] == [entry["loss"] for entry in expected]
    assert said.splitlines()[-1] == f"checkpoint in {runs}/hit/checkpoint-{steps}"
    for name in ("whole", "hit"):
        run_id = (runs / name / "mlflow_run_id").read_text()
        assert [step for step, _ in server.history(run_id, LOSS)] == list(range(1, steps + 1))
        assert server.runs[run_id]["status"] == "FINISHED"
        assert "s3cret" not in _output(config, name)
    assert len(server.runs) == 2
    assert any(one and one.startswith("Basic") for one in server.authorization)
    assert "s3cret" not in repr(server.runs)
    for path in runs.rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.stepz=3", "training.stepz: unknown setting"),
        ("run.num_workers=9", "some would have nothing"),
        (
            "tracking.uri=http://127.0.0.1:9",
            "error: tracking.uri: MLflow at http://127.0.0.1:9: no answer: [Errno 111]",
        ),
        ("data.root=/nowhere", "/nowhere/coco_panoptic/train/manifest.json: no such file"),
    ],
)
def test_what_a_user_got_wrong_stops_the_job_before_any_worker(config: Path, override: str, reason: str) -> None:
    started = time.monotonic()
    job = _start(config, "refused", override)
    assert job.wait(timeout=100) == 1
    last = "\n".join(_output(config, "refused").splitlines()[-3:])
    assert reason in last
    assert time.monotonic() - started < 60
    assert not (config.parent / "runs" / "refused").exists()


def _start(config: Path, name: str, *overrides: str) -> subprocess.Popen:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    with (config.parent / f"{name}.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.train", str(config), f"run.name={name}", *overrides],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _output(config: Path, name: str) -> str:
    return (config.parent / f"{name}.txt").read_text()


def _wait_for_lines(path: Path, count: int, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, f"{path} has not got {count} lines"
        assert job.poll() is None, "the job ended early"
        time.sleep(0.2)


def _a_worker_of(job: int) -> int:
    """A training worker among the processes below a job, whose raylet and driver are its descendants."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])

    def is_below(process: int) -> bool:
        while process in parents:
            if process == job:
                return True
            process = parents[process]
        return False

    found = [process for process, name in names.items() if "RayTrainWorker" in name and is_below(process)]
    assert found, "no training worker below the job"
    return found[-1]
