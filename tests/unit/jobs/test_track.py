"""MLflow is looked for first; an evaluation's numbers are safe before they are sent, and what was not sent can be."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs import evaluate, quickstart
from jobs.evaluate import EvaluateJob
from jobs.evaluation_run import EvaluationFile
from jobs.quickstart import DEFAULT_CONFIG, QuickstartJob
from jobs.track import Target, TrackJob, main, run
from semsam.config import dump_config, load_config
from semsam.data.shards import Split
from semsam.evaluation.pictures import encode_png
from semsam.tracking.server import TrackingError
from semsam.tracking.tracker import RUN_ID_FILE, TrackingSettings
from tests.mlflow_stand_in import MlflowStandIn
from tests.painted_shards import write_painted_shards

PICTURE = encode_png(np.zeros((4, 4, 3), np.uint8))
METRICS: dict[str, float | None] = {
    "one_click/coco_panoptic/miou_max": 0.25,
    "baseline/one_click/coco_panoptic/miou_max": 0.5,
}


@pytest.fixture
def server() -> Iterator[MlflowStandIn]:
    server = MlflowStandIn()
    yield server
    server.mode = "ok"
    server.stop()


@pytest.mark.slow
def test_an_evaluations_numbers_outlive_an_mlflow_that_fails_at_the_end(
    server: MlflowStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    shards, output = write_painted_shards(tmp_path / "shards"), tmp_path / "evaluation"
    tracking = TrackingSettings(uri=server.uri.replace("//", "//user:s3cret@"), experiment="mine")
    job = EvaluateJob(data=str(shards), output=str(output), tracking=tracking)
    splits = {"coco_panoptic": Split(f"{shards}/coco_panoptic/train")}
    server.mode = "fail"
    output.mkdir()
    (output / RUN_ID_FILE).write_text("0" * 32)  # Of an earlier evaluation.
    found = EvaluationFile(time.time(), METRICS, pictures=("coco_panoptic.png",))
    assert evaluate.keep(job, found, {"coco_panoptic.png": PICTURE}, splits) is None
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("metric")  # The table, first of all.
    assert said[-1].startswith(f"warning: tracking.uri: MLflow at {server.uri}: it answers 500")
    assert said[-1].endswith(f"; the numbers are in {output}/metrics.json; to send them: python -m jobs.track {output}")
    assert json.loads((output / "metrics.json").read_bytes())["metrics"] == METRICS
    database = f"sqlite:///{tmp_path}/mlflow.db"
    sent = run(TrackJob(folder=str(output), tracking=Target(uri=database)))
    assert run(TrackJob(folder=str(output), tracking=Target(uri=database))) == sent
    client = MlflowClient(database)
    found = client.get_run(sent.run_id)
    assert found.data.metrics == METRICS
    assert all(len(client.get_metric_history(sent.run_id, name)) == 1 for name in METRICS)
    assert found.info.status == "FINISHED"
    assert found.inputs.dataset_inputs[0].dataset.name == "coco_panoptic/train"
    artifacts = tmp_path / "mlruns" / sent.run_id / "artifacts"
    assert (artifacts / "pictures" / "coco_panoptic.png").read_bytes() == PICTURE
    assert (artifacts / "config.yaml").read_text() == dump_config(job)
    for path in (*output.rglob("*"), *tmp_path.rglob("mlflow.db"), *artifacts.rglob("*")):
        assert not path.is_file() or b"s3cret" not in path.read_bytes()


def test_a_folder_without_anything_to_send_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path}/tracking.json: no such file: neither a training nor an evaluat"):
        main([str(tmp_path)])


@pytest.mark.parametrize("section", ["train", "evaluate"])
def test_the_quickstart_looks_for_mlflow_before_it_replaces_anything(tmp_path: Path, section: str) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "summary.json").touch()
    (tmp_path / "output" / ".quickstart").touch()  # Ours, which a quickstart replaces.
    other = {"train": "evaluate", "evaluate": "train"}[section]
    overrides = [f"{section}.tracking.uri=http://127.0.0.1:9", f"{other}.tracking.enabled=false"]
    job = load_config(QuickstartJob, str(DEFAULT_CONFIG), [f"output={tmp_path}/output", *overrides])
    with pytest.raises(TrackingError, match="^tracking.uri: MLflow at http://127.0.0.1:9: no answer: .*refused"):
        quickstart.run(job)
    assert (tmp_path / "output" / "summary.json").exists()


def test_an_evaluation_looks_for_mlflow_before_any_work(tmp_path: Path) -> None:
    data = write_painted_shards(tmp_path / "shards")
    for uri, reason in (("http://127.0.0.1:9", "MLflow at .*refused"), ("sqlite:///mlflow.db", ".* is relative")):
        tracking = TrackingSettings(uri=uri)
        job = EvaluateJob(data=str(data), split="train", output=f"{tmp_path}/output", untrained=True, tracking=tracking)
        with pytest.raises(ValueError, match=f"^tracking.uri: {reason}"):
            evaluate.run(job)
    assert not (tmp_path / "output").exists()


def test_an_evaluation_does_not_take_the_folder_of_a_training_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "train_log.jsonl").touch()
    (tmp_path / RUN_ID_FILE).write_text("0" * 32)
    with pytest.raises(ValueError, match=f"^output: {tmp_path} is the folder of a training"):
        evaluate.run(EvaluateJob(data=str(tmp_path), output=str(tmp_path), untrained=True))
    assert (tmp_path / RUN_ID_FILE).exists()
