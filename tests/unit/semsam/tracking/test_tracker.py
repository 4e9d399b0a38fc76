from dataclasses import replace
from pathlib import Path

import pytest

from semsam.data.manifest import Manifest, Shard, Vocabulary
from semsam.tracking.server import TrackingError
from semsam.tracking.tracker import Point, Tracker, TrackingSettings, flatten, open_experiment, tracking_uri


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    folder = tmp_path_factory.mktemp("mlflow")
    return TrackingSettings(uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="tests")


def manifest() -> Manifest:
    vocabulary = Vocabulary(("cat", "dog"), (), (True, True))
    shards = (Shard("shard-00000.arrow", 3, 10, "ab" * 32, "cd" * 32, 0, 3),)
    return Manifest(
        "ade20k", "val", "/data/ade", shards, 3, 5, {}, {}, {}, vocabulary, vocabulary.digest(), "0.1.0", {}
    )


def test_a_run_holds_params_metrics_inputs_and_artifacts(tracking: TrackingSettings, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    picture = tmp_path / "grid.png"
    picture.write_bytes(b"png")
    with Tracker(tracking, "first") as tracker:
        tracker.log_params({"model": {"preset": "debug"}, "many": {str(i): i for i in range(150)}})
        tracker.log_metrics({"one_click/ade20k/miou_max": 0.5}, step=7)
        tracker.log_inputs([manifest()], context="evaluation")
        tracker.log_artifact(picture, "pictures")
    client = MlflowClient(tracking.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.preset"] == "debug"
    assert len(run.data.params) == 151
    assert client.get_metric_history(tracker.run_id, "one_click/ade20k/miou_max")[0].step == 7
    [dataset_input] = run.inputs.dataset_inputs
    assert dataset_input.dataset.name == "ade20k/val"
    assert manifest().digest().startswith(dataset_input.dataset.digest)
    assert [a.path for a in client.list_artifacts(tracker.run_id, "pictures")] == ["pictures/grid.png"]


def log_and_stop(tracking: TrackingSettings, run_id: str) -> None:
    with Tracker(tracking, "second", run_id=run_id) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=2)
        raise RuntimeError("stopped")


def test_a_run_goes_on_under_its_id_and_fails_with_its_job(tracking: TrackingSettings) -> None:
    from mlflow import MlflowClient

    with Tracker(tracking, "second") as first:
        first.log_metrics({"loss": 2.0}, step=1)
    with pytest.raises(RuntimeError, match="stopped"):
        log_and_stop(tracking, first.run_id)
    client = MlflowClient(tracking.uri)
    assert [m.step for m in client.get_metric_history(first.run_id, "loss")] == [1, 2]
    assert client.get_run(first.run_id).info.status == "FAILED"


def test_the_same_point_again_is_the_same_row_and_long_values_are_cut(tracking: TrackingSettings) -> None:
    from mlflow import MlflowClient

    points = [Point(step, 1.5 + step, {f"train/{name}": float(step) for name in ("loss", "lr")}) for step in range(700)]
    with Tracker(tracking, "third") as tracker:
        tracker.log_points(points)
        tracker.log_points(points[-3:])
        tracker.log_params({"stages": "x" * 10_000})
    client = MlflowClient(tracking.uri)
    history = client.get_metric_history(tracker.run_id, "train/lr")
    assert [(one.step, one.timestamp) for one in history] == [(one.step, one.time * 1000) for one in points]
    assert Tracker(tracking, "third", tracker.run_id).last_step == 699
    assert client.get_run(tracker.run_id).data.params["stages"] == "x" * 6000


def test_an_experiment_that_was_deleted_or_cannot_be_is_named(tracking: TrackingSettings) -> None:
    from mlflow import MlflowClient

    gone = replace(tracking, experiment="gone")
    assert open_experiment(gone) == f"MLflow: experiment gone at {tracking.uri}"
    client = MlflowClient(tracking.uri)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(TrackingError, match="^tracking.experiment: gone was deleted in MLflow at .*restore -x"):
        open_experiment(gone)
    with pytest.raises(TrackingError, match="^tracking.experiment: '', in MLflow at "):
        open_experiment(replace(tracking, experiment=""))


def test_nested_values_get_dotted_names() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}


def test_the_address_is_the_settings_then_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(TrackingSettings()) == "http://127.0.0.1:5000"
    assert tracking_uri(TrackingSettings(uri="sqlite:///a.db")) == "sqlite:///a.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(TrackingSettings()).startswith("sqlite:////")
