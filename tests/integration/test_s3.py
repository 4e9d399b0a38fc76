"""The jobs from S3 to S3, on a server that checks signatures, is away for a while, and keeps what it is given as files.

Native files, shards, a run, evaluation, masks and report: none of them is on a local disk.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import evaluate, export, generate, prepare, report, train, verify
from jobs.cluster import connect
from pipelines.toy import ToySettings, write_toy_world
from semsam.config import parse_config
from semsam.predictor import Predictor
from semsam.storage import Folder
from tests.integration.test_train_faults import _a_worker_of
from tests.s3_server import S3Server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Ray Data's own defaults use what it calls deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

DATASETS = ("sa1b", "coco_panoptic")
AWAY = 20.0  # Seconds.
STEPS = 10


@pytest.fixture(scope="module", autouse=True)
def ray_connection(bucket: str) -> Iterator[None]:
    """One cluster for all tests; it inherits the bucket's address."""
    with connect(num_cpus=3, dashboard=True):
        yield


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, bucket: str) -> Path:
    """A small toy world on the disk, and two of its datasets in the bucket."""
    folder = tmp_path_factory.mktemp("native") / "toy"
    write_toy_world(folder, ToySettings(train_images=8, val_images=3, faults=False))
    for dataset in DATASETS:
        for path in (folder / dataset).rglob("*"):
            if path.is_file():
                Folder(f"{bucket}/native").write(path.relative_to(folder).as_posix(), path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def shards(native: Path, bucket: str) -> str:
    """The datasets prepared from the bucket into it."""
    prepare.run(prepare_job(f"{bucket}/native", f"{bucket}/shards"))
    return f"{bucket}/shards"


@pytest.fixture(scope="module")
def run(shards: str, bucket: str, s3: S3Server) -> train.TrainJob:
    """A training of two workers on the bucket: one worker is killed, later the server is away for a while."""
    job = train_job(shards, f"{bucket}/runs", "hit")
    done: list[str] = []

    def disturb() -> None:
        wait_for_lines(s3, "hit", 4)
        os.kill(_a_worker_of(os.getpid()), signal.SIGKILL)
        done.append("killed")
        wait_for_lines(s3, "hit", STEPS - 3)
        s3.stop()
        done.append("stopped")
        time.sleep(AWAY)
        s3.start()
        done.append("started")

    disturbing = threading.Thread(target=disturb, daemon=True)
    disturbing.start()
    train.run(job)
    disturbing.join(1)
    assert done == ["killed", "stopped", "started"]
    return job


def prepare_job(native: str, output: str) -> prepare.PrepareJob:
    datasets = {dataset: {"root": f"{native}/{dataset}"} for dataset in DATASETS}
    return parse_config(prepare.PrepareJob, {"datasets": datasets, "output": output, "rows_per_shard": 3}, "test")


def train_job(shards: str, storage: str, name: str) -> train.TrainJob:
    values: dict[str, Any] = {
        "data": {
            "root": shards,
            "plan": {"stages": [{"weights": dict.fromkeys(DATASETS, 1)}]},
            "sample": {"augmentation": {"crop_size": 128}, "prompts": {"num_prompts": 2}},
        },
        "model": {"preset": "debug"},
        "criterion": {"num_points": 112},
        "training": {
            "steps": STEPS,
            "global_batch": 4,
            "zero_stage": 2,
            "precision": "fp32",
            "checkpoint_every": 2,
            "log_every": 1,
        },
        "run": {"storage": storage, "name": name, "num_workers": 2, "use_gpu": False, "cpus_per_worker": 1},
        "tracking": {"enabled": False},
    }
    values["run"]["max_failures"] = 2
    return parse_config(train.TrainJob, values, "test")


def log_of(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Folder(folder).read_appended("train_log.jsonl").splitlines()]


def wait_for_lines(s3: S3Server, name: str, count: int) -> None:
    """Look at the server's own files, for it may be busy."""
    folder, deadline = s3.bucket / "runs" / name, time.monotonic() + 300
    while True:
        found = b"".join(path.read_bytes() for path in folder.glob("train_log.jsonl*/*"))
        found += b"".join(path.read_bytes() for path in folder.glob("train_log.jsonl") if path.is_file())
        if found.count(b"\n") >= count:
            return
        assert time.monotonic() < deadline, f"{name} has not got {count} lines"
        time.sleep(0.1)


def test_shards_from_s3_are_those_of_a_local_disk(native: Path, shards: str, s3: S3Server, tmp_path: Path) -> None:
    prepare.run(prepare_job(str(native), str(tmp_path)))
    for dataset in DATASETS:
        for split in ("train", "val"):
            local, remote = tmp_path / dataset / split, s3.bucket / "shards" / dataset / split
            ours = {path.name: path.read_bytes() for path in local.iterdir() if path.suffix in (".arrow", ".rows")}
            assert ours
            assert ours == {name: (remote / name).read_bytes() for name in ours}
            assert sorted(path.name for path in local.iterdir()) == sorted(path.name for path in remote.iterdir())


def test_a_training_on_s3_survives_a_dead_worker_and_a_server_that_is_away(
    run: train.TrainJob, shards: str, bucket: str, tmp_path: Path
) -> None:
    train.run(train_job(shards, str(tmp_path), "whole"))
    found, expected = log_of(f"{bucket}/runs/hit"), log_of(f"{tmp_path}/whole")
    assert [entry["step"] for entry in found] == list(range(STEPS))
    assert [entry["loss"] for entry in found] == [entry["loss"] for entry in expected]


def test_what_was_trained_is_evaluated_exported_used_and_reported_on_s3(
    run: train.TrainJob, shards: str, bucket: str, s3: S3Server
) -> None:
    checkpoint = f"{bucket}/runs/hit/checkpoint-{STEPS}"
    small = {"image_size": {"short_side": 64, "max_long_side": 96}, "num_actors": 1, "checkpoint": checkpoint}
    values = {"data": shards, "output": f"{bucket}/evaluation", "datasets": ["sa1b"]}
    values |= {"pictures": 1, "resamples": 10, "baseline_images": 4}
    found = evaluate.run(
        parse_config(evaluate.EvaluateJob, values | small | {"tracking": {"enabled": False}}, "evaluate")
    )
    assert found.metrics
    values = {"images": f"{bucket}/native/sa1b", "output": f"{bucket}/masks", "objects": ["car"], "images_per_file": 4}
    masks = {"points_per_side": 2, "min_iou": -10, "min_stability": 0, "max_overlap": 1}
    made = generate.run(parse_config(generate.GenerateJob, values | small | {"masks": masks}, "generate"))
    assert made.num_images == 11
    export.run(parse_config(export.ExportJob, {"checkpoint": checkpoint, "out": f"{bucket}/exported"}, "export"))
    assert Predictor.load(f"{bucket}/exported")
    for folder, evaluations in (("evaluation", []), ("runs/hit", [f"{bucket}/evaluation"])):
        values = {"folder": f"{bucket}/{folder}", "evaluations": evaluations, "resamples": 10}
        path = report.run(parse_config(report.ReportJob, values, "report"))
        page = Folder(bucket).read(path.removeprefix(f"{bucket}/"))
        assert page.lower().startswith(b"<!doctype html>")
    for folder, kind in (("shards", "shards"), ("runs", "checkpoint"), ("exported", "model"), ("masks", "masks")):
        findings = verify.run(parse_config(verify.VerifyJob, {"folder": f"{bucket}/{folder}"}, "verify"))
        assert {(finding.kind, finding.fault) for finding in findings} == {(kind, "")}
    written = [path for path in s3.bucket.rglob("*") if path.is_file()]
    assert not [path for path in written if s3.secret.encode() in path.read_bytes()]
