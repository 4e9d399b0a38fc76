"""A real MLflow server that stops answering, and then dies, under a training's numbers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluation_run import send_evaluation
from jobs.track import Target, TrackJob
from jobs.track import run as track
from semsam.storage import Folder
from semsam.tracking import server as mlflow_server
from semsam.tracking.server import TrackingError
from semsam.tracking.tracker import LOSS, RUN_ID_FILE, TrackingSettings, open_experiment
from semsam.training import metric_queue
from semsam.training.recorder import Recorder
from semsam.training.train_log import read_log
from semsam.training.training_data import TrainingData
from tests.evaluation_output import METRICS, write_evaluation
from tests.integration.training_worker import recipe_for
from tests.mlflow_server import start_server, wait_until
from tests.painted_shards import write_painted_shards

STEPS = 40


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # MLflow's own.
def test_a_server_that_hangs_and_one_that_dies_cost_no_step_and_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(metric_queue, "RETRY_EVERY", 0.5)
    monkeypatch.setattr(mlflow_server, "ANSWER_WITHIN", 2.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    database, run = f"sqlite:///{tmp_path}/mlflow.db", Folder(tmp_path / "run")
    recipe = recipe_for(str(write_painted_shards(tmp_path / "shards")), steps=STEPS, log_every=1)
    server, uri = start_server(database, tmp_path)
    try:
        recorder = Recorder(recipe, TrainingData.of(recipe), run, 0, "test", TrackingSettings(uri=uri))
        client = MlflowClient(database)

        def has(step: int) -> Callable[[], bool]:
            return lambda: run.exists(RUN_ID_FILE) and steps_of(client, run)[-1:] == [step]

        add(recorder, 0, 10)
        wait_until(has(10))
        run_id = run.read(RUN_ID_FILE).decode()
        wait_until(lambda: "mlflow.note.content" in client.get_run(run_id).data.tags)
        os.killpg(server.pid, signal.SIGSTOP)
        assert add(recorder, 10, 30) < 1
        time.sleep(4)
        os.killpg(server.pid, signal.SIGCONT)
        wait_until(has(30))
        evaluated_over_http(client, uri, run, tmp_path / "evaluation")
        experiment = client.get_run(run.read(RUN_ID_FILE).decode()).info.experiment_id
        client.delete_experiment(experiment)
        with pytest.raises(TrackingError, match=f"^tracking.experiment: .* was deleted in MLflow at {uri}"):
            open_experiment(TrackingSettings(uri=uri))
        client.restore_experiment(experiment)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert add(recorder, 30, STEPS) < 1
    recorder.close(failed=False)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("warning", "MLflow"))]
    assert f"warning: tracking.uri: MLflow at {uri}: " in said[0]
    assert said[1] == "MLflow answers again"
    assert said[-1].endswith(f"python -m jobs.track {run.path}")
    assert len(list(read_log(run))) == STEPS
    sent = track(TrackJob(folder=run.path, tracking=Target(uri=database)))  # The same store, without the server.
    assert steps_of(client, run) == list(range(1, STEPS + 1))
    assert client.get_run(sent.run_id).info.status == "FINISHED"
    assert track(TrackJob(folder=run.path, tracking=Target(uri=database))).what == f"0 of {STEPS} points"


def evaluated_over_http(client: Any, uri: str, training: Folder, output: Path) -> None:
    """An evaluation of the training, sent twice to the server, is there once with all that belongs to it."""
    from mlflow import MlflowClient

    tracked = write_evaluation(output, TrackingSettings(uri=uri), Path(training.path))
    for _ in range(2):
        run_id = send_evaluation(tracked, Folder(output))
    parent, found = client.get_run(training.read(RUN_ID_FILE).decode()), client.get_run(run_id)
    assert found.data.tags["mlflow.parentRunId"] == parent.info.run_id
    name = "one_click/coco_panoptic/miou_max"
    assert [(one.step, one.value) for one in client.get_metric_history(parent.info.run_id, name)] == [(10, 0.25)]
    [model] = client.search_logged_models([parent.info.experiment_id])
    of_model = [key for key in METRICS if not key.startswith("baseline/")]
    assert sorted((one.key, one.dataset_name) for one in model.metrics) == [
        (key, "coco_panoptic/val") for key in sorted(of_model)
    ]
    assert [one.model_id for one in parent.outputs.model_outputs] == [model.model_id]
    for one in (parent, found):
        files = MlflowClient(uri).list_artifacts(one.info.run_id, "images")
        assert len(files) == 4  # Two pictures, each with a small copy.


def add(recorder: Recorder, first: int, last: int) -> float:
    """Record steps; the seconds that it took."""
    started = time.monotonic()
    for step in range(first, last):
        recorder.add(step, {"loss": float(step), "seconds": 0.1})
    return time.monotonic() - started


def steps_of(client: object, run: Folder) -> list[int]:
    """The steps that MLflow has of a run, each as often as it has it."""
    history = client.get_metric_history(run.read(RUN_ID_FILE).decode(), LOSS)  # type: ignore[attr-defined]
    return sorted(one.step for one in history)
