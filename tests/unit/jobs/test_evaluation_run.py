"""What MLflow shows of an evaluation: below its training, tied to its checkpoint, with pictures on a slider; once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluation_run import EvaluationFile, send_evaluation
from jobs.track import TrackJob, run
from semsam.storage import Folder
from semsam.tracking.tracked_run import TrackedRun
from semsam.tracking.tracker import RUN_ID_FILE, Point, Tracker, TrackingSettings
from tests.evaluation_output import DATASETS, METRICS, png, write_evaluation, write_training
from tests.mlflow_stand_in import MlflowStandIn

MIOU = "one_click/coco_panoptic/miou_max"
OF_MODEL = {name: value for name, value in METRICS.items() if not name.startswith("baseline/")}
HEADLINES = {name: OF_MODEL[name] for name in (MIOU, "panoptic/coco_panoptic/pq")}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    return TrackingSettings(uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db", experiment="tests")


@pytest.fixture(scope="module")
def client(tracking: TrackingSettings) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking.uri)


def begin_training(path: Path, tracking: TrackingSettings, name: str) -> Tracker:
    """A training that has told MLflow of 20 steps."""
    tracker = write_training(path, tracking, name).open(Folder(path))
    tracker.log_points([Point(step, 1.7e9 + step, {"train/loss": 1 / step}) for step in (10, 20)])
    return tracker


@pytest.fixture(scope="module")
def sent_twice(
    tracking: TrackingSettings, client: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tracker, list[Any]]:
    """A training's run, and those of evaluations of two of its checkpoints, each sent twice."""
    folder = tmp_path_factory.mktemp("outputs")
    parent = begin_training(folder / "run", tracking, "seven")
    run_ids = []
    for step in (10, 20):
        tracked = write_evaluation(folder / f"evaluation-{step}", tracking, folder / "run", step)
        run_ids.append(send_evaluation(tracked, Folder(folder / f"evaluation-{step}")))
        assert run(TrackJob(folder=f"{folder}/evaluation-{step}")).run_id == run_ids[-1]
    return parent, [client.get_run(one) for one in run_ids]


def images(client: Any, run_id: str) -> list[tuple[str, str]]:
    """Key and step of a run's images, as their names have them, in the order in which MLflow lists them."""
    paths = [one.path for one in client.list_artifacts(run_id, "images") if one.path.endswith(".png")]
    small = [one.path for one in client.list_artifacts(run_id, "images") if one.path.endswith("+compressed.webp")]
    assert len(paths) == len(small)
    parts = [path.removeprefix("images/").split("+") for path in paths]
    return [(key, step) for key, _, step, *_ in parts]


def test_an_evaluation_is_below_its_training_and_its_numbers_stand_there_at_the_checkpoints_step(
    sent_twice: tuple[Tracker, list[Any]], client: Any
) -> None:
    parent, evaluations = sent_twice
    assert [one.data.tags["mlflow.parentRunId"] for one in evaluations] == [parent.run_id] * 2
    for name, value in HEADLINES.items():
        history = client.get_metric_history(parent.run_id, name)
        assert [(one.step, one.value, one.timestamp) for one in history] == [
            (step, value, 1_700_000_000_500 + 1000 * step) for step in (10, 20)
        ]
    assert client.get_metric_history(parent.run_id, f"baseline/{MIOU}") == []
    shown = client.get_run(parent.run_id)
    assert shown.info.status == "RUNNING"
    assert set(shown.data.metrics) == {"train/loss", *HEADLINES}
    again = Tracker(TrackingSettings(uri=parent.uri, experiment="tests"), "seven", parent.run_id)
    assert again.last_step == 20


def test_an_evaluations_run_holds_all_its_numbers_and_files_once(
    sent_twice: tuple[Tracker, list[Any]], client: Any
) -> None:
    for step, one in zip((10, 20), sent_twice[1], strict=True):
        ends = {f"interval_low/{MIOU}": 0.2, f"interval_high/{MIOU}": 0.3}
        assert one.data.metrics == METRICS | ends
        assert all(len(client.get_metric_history(one.info.run_id, name)) == 1 for name in one.data.metrics)
        assert one.info.status == "FINISHED"
        assert one.info.run_name == f"step {step}: evaluation"
        assert one.data.tags["mlflow.note.content"] == "What *ran*."
        listed = {path.path for path in client.list_artifacts(one.info.run_id)}
        assert listed == {"config.yaml", "figures", "images", "metrics.json", "pictures", "tables"}
        for place, name in (("figures", "pr_coco_panoptic.png"), ("tables", "classes.json")):
            assert [path.path for path in client.list_artifacts(one.info.run_id, place)] == [f"{place}/{name}"]
        where = Path(one.info.artifact_uri.removeprefix("file://")) / "pictures" / "coco_panoptic.png"
        assert where.read_bytes() == png(step)


def test_a_checkpoint_is_one_model_whose_numbers_name_their_data(
    sent_twice: tuple[Tracker, list[Any]], client: Any
) -> None:
    parent, evaluations = sent_twice
    models = client.search_logged_models([parent.experiment_id], filter_string="name LIKE 'seven%'")
    assert sorted(one.name for one in models) == ["seven-step-10", "seven-step-20"]
    for model, one in zip(sorted(models, key=lambda model: model.name), evaluations, strict=True):
        assert str(model.status) == "READY"
        assert model.tags["mlflow.model.isExternal"] == "true"
        assert model.source_run_id == parent.run_id
        assert set(model.params) == {"path", "run", "step", "sha256"}
        step = model.params["step"]
        assert model.tags["mlflow.note.content"].startswith(f"Weights after step {step} of the training `")
        numbers = {row.key: row for row in model.metrics}
        assert {name: row.value for name, row in numbers.items()} == OF_MODEL
        assert len(model.metrics) == len(OF_MODEL)
        assert {(row.dataset_name, row.dataset_digest) for row in model.metrics} == {("coco_panoptic/val", "c" * 32)}
        assert [entry.model_id for entry in one.inputs.model_inputs] == [model.model_id]
    made = client.get_run(parent.run_id).outputs.model_outputs
    assert sorted(one.step for one in made) == [10, 20]


def test_the_same_pictures_move_along_a_slider(sent_twice: tuple[Tracker, list[Any]], client: Any) -> None:
    parent, evaluations = sent_twice
    keys = ("pictures~coco_panoptic", "pr_coco_panoptic")
    assert images(client, parent.run_id) == [(key, step) for key in keys for step in ("10", "20")]
    assert images(client, evaluations[1].info.run_id) == [(key, "20") for key in keys]
    assert client.get_run(parent.run_id).data.tags["mlflow.loggedImages"] == "True"


def test_the_list_of_runs_has_at_most_ten_columns_of_settings(
    sent_twice: tuple[Tracker, list[Any]], client: Any
) -> None:
    parent, evaluations = sent_twice
    assert client.get_run(parent.run_id).data.params == {
        "model.preset": "swin_tiny",
        "datasets": "coco_panoptic",
        "training.steps": "20",
        "training.global_batch": "8",
        "training.seed": "3",
        "optimizer.lr": "0.0001",
    }
    shown = evaluations[0].data.params
    assert shown == {
        "checkpoint.step": "10",
        "split": "val",
        "datasets": "coco_panoptic",
        "image_size": "{short_side: 800, max_long_side: 1333}",
    }
    assert [one.data.tags["mlflow.source.name"] for one in evaluations] == ["jobs.evaluate"] * 2


def test_the_same_weights_elsewhere_are_the_same_model(tracking: TrackingSettings, client: Any, tmp_path: Path) -> None:
    ids = []
    for place, digest in (("a", "d" * 64), ("b", "d" * 64), ("c", None), ("c", None)):
        where = {"run": None, "step": None, "path": f"/models/it's {place}", "digest": digest}
        output = tmp_path / f"{len(ids)}"
        tracked = write_evaluation(output, tracking, None, checkpoint=where)
        found = client.get_run(send_evaluation(tracked, Folder(output)))
        ids.append(found.inputs.model_inputs[0].model_id)
        assert "mlflow.parentRunId" not in found.data.tags
    assert ids[0] == ids[1] != ids[2] == ids[3]


@pytest.mark.parametrize("fault", ["no id", "damaged", "elsewhere", "deleted", "another's", "gone", "no training"])
def test_without_its_trainings_run_an_evaluation_is_a_run_of_its_own(
    tracking: TrackingSettings, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    training = tmp_path / "run"
    if fault != "gone":
        parent = begin_training(training, tracking, "lost")
        if fault == "no id":
            (training / RUN_ID_FILE).unlink()
        elif fault == "damaged":
            (training / RUN_ID_FILE).write_text("x")
        elif fault == "elsewhere":
            (training / RUN_ID_FILE).write_text("f" * 32)
        elif fault == "deleted":
            client.delete_run(parent.run_id)
        elif fault == "another's":
            write_training(training, tracking, "copied")
        else:
            (training / "tracking.json").unlink()
    tracked = write_evaluation(tmp_path / "evaluation", tracking, training)
    capsys.readouterr()
    found = client.get_run(send_evaluation(tracked, Folder(tmp_path / "evaluation")))
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("MLflow shows this evaluation as a run of its own, not below its training's: ")
    assert "mlflow.parentRunId" not in found.data.tags
    assert found.data.metrics.items() > METRICS.items()
    assert len(found.inputs.model_inputs) == 1


def test_an_older_output_can_be_sent_and_what_is_no_picture_is_a_file(
    tracking: TrackingSettings, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = write_evaluation(tmp_path, tracking, None)
    (tmp_path / "metrics.json").write_bytes(b'{"time": 5, "metrics": {"a": 1, "b": null}, "pictures": ["a.png"]}')
    (tmp_path / "a.png").write_bytes(b"png")
    found = client.get_run(send_evaluation(tracked, Folder(tmp_path)))
    assert found.data.metrics == {"a": 1.0}
    assert [one.path for one in client.list_artifacts(found.info.run_id, "pictures")] == ["pictures/a.png"]
    assert f"warning: {tmp_path}/a.png: not a picture: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "said"),
    [(b"{", "not JSON: "), (b'{"metrics": {}}', "time: Field required"), (b'{"time": 1, "metrics": {"a": "x"}}', "m")],
)
def test_a_damaged_file_is_named(tmp_path: Path, written: bytes, said: str) -> None:
    (tmp_path / "metrics.json").write_bytes(written)
    with pytest.raises(ValueError, match=f"^{tmp_path}/metrics.json: {said}"):
        EvaluationFile.load(Folder(tmp_path))


def test_a_run_of_an_earlier_version_keeps_its_many_settings(tracking: TrackingSettings, tmp_path: Path) -> None:
    earlier = Tracker(tracking, "old")
    earlier.log_params({"training": {"steps": 20}, "more": {str(i): i for i in range(150)}, "datasets": "()"})
    (tmp_path / RUN_ID_FILE).write_text(earlier.run_id)
    tracker = write_training(tmp_path, tracking, "old").open(Folder(tmp_path))
    params = tracker.ask(lambda client: client.get_run(earlier.run_id)).data.params
    assert params["datasets"] == "()"  # As it was: MLflow lets no setting change.
    assert params["optimizer.lr"] == "0.0001"


def test_a_description_that_somebody_wrote_stays(tracking: TrackingSettings, client: Any, tmp_path: Path) -> None:
    tracked = write_training(tmp_path, tracking, "described")
    tracker = tracked.open(Folder(tmp_path))
    tracked.describe(tracker, tracked.training_words())
    assert client.get_run(tracker.run_id).data.tags["mlflow.note.content"].startswith("Training of `described` on coco")
    client.set_tag(tracker.run_id, "mlflow.note.content", "mine")
    again = TrackedRun.load(Folder(tmp_path)).open(Folder(tmp_path))
    tracked.describe(again, tracked.training_words())
    assert client.get_run(tracker.run_id).data.tags["mlflow.note.content"] == "mine"


@pytest.fixture
def server() -> Iterator[MlflowStandIn]:
    server = MlflowStandIn()
    yield server
    server.stop()


def test_a_server_gets_the_same(server: MlflowStandIn, tmp_path: Path) -> None:
    tracking = TrackingSettings(uri=server.uri)
    parent = begin_training(tmp_path / "run", tracking, "seven")
    tracked = write_evaluation(tmp_path / "evaluation", tracking, tmp_path / "run")
    for _ in range(2):
        run_id = send_evaluation(tracked, Folder(tmp_path / "evaluation"))
    assert server.runs[run_id]["tags"]["mlflow.parentRunId"] == parent.run_id
    assert server.history(parent.run_id, MIOU) == [(10, 0.25)]
    assert parent.last_step == -1
    [model] = server.models.values()
    assert model["metrics"][MIOU]["dataset_digest"] == DATASETS[0]["digest"]
    assert len(server.runs[parent.run_id]["models_out"]) == len(server.runs[run_id]["models_in"]) == 1
    stored = [path.partition("/") for path in server.artifacts]
    for one in (run_id, parent.run_id):
        assert sum(owner == one and path.startswith("images/") for owner, _, path in stored) == 4
    assert f"{run_id}/pictures/coco_panoptic.png" in server.artifacts
