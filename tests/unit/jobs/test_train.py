"""What jobs.train refuses before any worker starts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.train import TrainJob, _look_for_mlflow, run, workers
from semsam.config import ConfigError, load_config, parse_config
from semsam.storage import Folder
from semsam.tracking import server as mlflow_server
from semsam.tracking.server import TrackingError
from semsam.tracking.tracker import RUN_ID_FILE, TrackingSettings
from semsam.training.attempt import attempt_on
from tests.mlflow_stand_in import MlflowStandIn
from tests.painted_shards import VOCABULARIES, write_painted_shards

STAGES = {"data": {"plan": {"stages": [{"weights": {"ade20k": 1.0}}]}}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"global_batch": 4}, "run": {"num_workers": 8}}, "some would have nothing"),
        ({"training": {"global_batch": 8, "accumulation": 2}, "run": {"num_workers": 8}}, "some would have nothing"),
        ({"training": {"global_batch": 8}, "run": {"num_workers": [1, 9]}}, "less than run.num_workers 9"),
        ({"run": {"num_workers": [3, 2]}}, r"run: num_workers: \[3, 2\]: the least is more than the most"),
        ({"run": {"num_workers": [0, 2]}}, "run.num_workers"),
        ({"run": {"num_workers": [1]}}, "run.num_workers"),
        ({"run": {"num_workers": 0}}, "run.num_workers"),
        ({"data": STAGES["data"] | {"sample": {"prompts": {"num_levels": 3}}}}, "but the model .* has 6 levels"),
        ({"model": {"preset": "swin_huge"}}, "no preset 'swin_huge', one of debug, swin_tiny, swin_large"),
        ({"model": {"overrides": {"backbone": {"widht": 3}}}}, "backbone.widht"),
        ({"training": {"zero_stage": 4}}, "training.zero_stage: must be 0, 1, 2 or 3, not 4"),
        ({"run": {"name": "a/b"}}, "run.name: "),
        *(
            ({"run": {"name": name}}, "run.name: ")
            for name in ("", ".", "..", "../x", ".x", "x..y", "a b", "a\\b", "a\n", "s3://x")
        ),
        ({"run": {"name": "a" * 201}}, "run.name: "),
        ({"optimiser": {"lr": 1e-4}}, "optimiser"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(TrainJob, STAGES | values, "test")


def test_workers_are_a_number_or_from_least_to_most() -> None:
    for given, expected in ((4, (4, 4)), ([1, 6], (1, 6)), ([2, 2], (2, 2))):
        job = parse_config(TrainJob, STAGES | {"run": {"num_workers": given}, "training": {"global_batch": 8}}, "test")
        assert job.run.worker_range() == expected
        assert workers(job).count == expected[0]


def test_checkpoints_of_something_else_are_not_taken_for_a_run(tmp_path: Path) -> None:
    theirs = tmp_path / "runs" / "bert" / "checkpoint-500" / "pytorch_model.bin"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("weeks of work")
    values = STAGES | {"run": {"storage": f"{tmp_path}/runs", "name": "bert"}}
    with pytest.raises(ValueError, match=f"^run.name: {tmp_path}/runs/bert holds 'checkpoint-500', which no training"):
        run(parse_config(TrainJob, values, "test"))
    assert theirs.read_text() == "weeks of work"


@pytest.mark.parametrize("setting", ["data.root", "run.storage", "model.init"])
def test_paths_are_refused_by_their_settings(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    places = {"data.root": "/x", "run.storage": "/x", "model.init": "/x"} | {setting: "here"}
    overrides = ["data.plan.stages=[{weights: {ade20k: 1}}]", *(f"{name}={path}" for name, path in places.items())]
    with pytest.raises(ValueError, match=f"^{setting}: 'here' is relative; a submitted job needs an absolute path"):
        run(load_config(TrainJob, None, overrides))


def test_data_that_was_not_prepared_is_named(tmp_path: object) -> None:
    values = STAGES["data"] | {"root": f"{tmp_path}/nothing"}
    job = parse_config(TrainJob, {"data": values, "run": {"storage": f"{tmp_path}/runs"}}, "test")
    with pytest.raises(ValueError, match=f"{tmp_path}/nothing/ade20k/train"):
        run(job)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowStandIn]:
    monkeypatch.setattr(mlflow_server, "ANSWER_WITHIN", 0.5)
    server = MlflowStandIn()
    yield server
    server.mode = "ok"
    server.stop()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painted_shards(tmp_path_factory.mktemp("painted"))


@pytest.mark.parametrize("fault", ["refuse", "hang", "fail", "deleted"])
def test_an_mlflow_that_cannot_be_had_is_named_before_any_work(
    server: MlflowStandIn, shards: Path, tmp_path: Path, fault: str
) -> None:
    server.mode = fault
    server.experiment_stage = fault
    if fault == "refuse":
        server.stop()
    setting = "tracking.experiment: mine" if fault == "deleted" else f"tracking.uri: MLflow at {server.uri}: "
    with pytest.raises(TrackingError, match=f"^{setting}"):
        run(job(shards, tmp_path, {"uri": server.uri, "experiment": "mine"}))
    assert not (tmp_path / "runs").exists()


def job(shards: Path, folder: Path, tracking: dict[str, Any]) -> TrainJob:
    values = {
        "data": {"root": str(shards), "plan": {"stages": [{"weights": {"coco_panoptic": 1}}]}},
        "model": {"preset": "debug"},
        "run": {"storage": str(folder / "runs"), "num_workers": 1, "use_gpu": False},
        "tracking": tracking,
    }
    return parse_config(TrainJob, values, "test")


def test_a_relative_database_and_a_submitted_jobs_own_folder_are_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="^tracking.uri: sqlite:///mlflow.db is relative: .* two of them"):
        run(job(shards, tmp_path, {"uri": "sqlite:///mlflow.db"}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValueError, match="^tracking.uri: not set, and a submitted job's folder is deleted"):
        run(job(shards, tmp_path, {}))


@pytest.mark.parametrize("fault", ["refuse", "hang", "fail"])
def test_a_training_that_goes_on_does_not_wait_for_mlflow(server: MlflowStandIn, tmp_path: Path, fault: str) -> None:
    server.mode = fault
    if fault == "refuse":
        server.stop()
    tracking = TrackingSettings(uri=server.uri)
    started = time.monotonic()
    _look_for_mlflow(tracking, Folder(tmp_path), is_begun=True)
    (tmp_path / RUN_ID_FILE).write_text("0" * 32)
    _look_for_mlflow(tracking, Folder(tmp_path), is_begun=False)
    assert time.monotonic() - started < 0.3


def test_a_damaged_id_of_an_mlflow_run_is_named_before_any_work(
    server: MlflowStandIn, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "semantic-sam"
    folder.mkdir(parents=True)
    (folder / RUN_ID_FILE).write_text("0123")
    with pytest.raises(TrackingError, match=f"^{folder}/{RUN_ID_FILE}: damaged: .*or remove the file for a new one"):
        run(job(shards, tmp_path, {"uri": server.uri}))


def test_a_second_training_on_a_folder_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    shards = write_painted_shards(tmp_path / "shards", vocabularies={"sa1b": VOCABULARIES["sa1b"]})
    values = {
        "data": {"root": str(shards), "plan": {"stages": [{"weights": {"sa1b": 1.0}}]}},
        "run": {"storage": str(tmp_path / "runs"), "name": "mine"},
        "tracking": {"enabled": False},
    }
    started = time.monotonic()
    with (
        attempt_on(Folder(tmp_path / "runs" / "mine")),
        pytest.raises(ValueError, match=rf"{tmp_path}/runs/mine: another training .*process {os.getpid()}, since 2"),
    ):
        run(parse_config(TrainJob, values, "test"))
    assert time.monotonic() - started < 30
    assert not ray.is_initialized()
