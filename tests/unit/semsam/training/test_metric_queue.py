"""MLflow that fails in every way holds up no training, and has all of it once it answers: each number once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.track import TrackJob
from jobs.track import run as track
from semsam.storage import Folder
from semsam.tracking import server as mlflow_server
from semsam.tracking.server import TrackingError
from semsam.tracking.tracker import LOSS, RUN_ID_FILE, TrackingSettings
from semsam.training import metric_queue
from semsam.training.metric_queue import points
from semsam.training.recipe import Recipe
from semsam.training.recorder import Recorder
from semsam.training.train_log import read_log
from semsam.training.training_data import TrainingData
from tests.mlflow_stand_in import MlflowStandIn

STEPS = 12
EVERY = 2
TOLD = [(step, float(step - 1.5)) for step in range(EVERY, STEPS + 1, EVERY)]  # The loss of a step is its number.


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowStandIn]:
    monkeypatch.setattr(metric_queue, "RETRY_EVERY", 0.1)
    monkeypatch.setattr(metric_queue, "CLOSE_WITHIN", 4.0)
    monkeypatch.setattr(metric_queue, "SETTLE", 0.2)
    monkeypatch.setattr(mlflow_server, "ANSWER_WITHIN", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = MlflowStandIn()
    yield server
    server.mode = "ok"
    server.stop()


@pytest.fixture
def begin(make_recipe: Callable[..., Recipe], tmp_path: Path, server: MlflowStandIn) -> Callable[..., Recorder]:
    recipe = make_recipe(steps=STEPS, global_batch=3, log_every=EVERY)
    training_data = TrainingData.of(recipe)

    def make(first: int = 0, name: str = "test", uri: str = server.uri) -> Recorder:
        return Recorder(recipe, training_data, Folder(tmp_path), first, name, TrackingSettings(uri=uri))

    return make


def add(recorder: Recorder, first: int, last: int) -> None:
    for step in range(first, last):
        recorder.add(step, {"loss": float(step), "seconds": 0.1})


def wait_for(server: MlflowStandIn, step: int) -> None:
    deadline = time.monotonic() + 30
    while not any((step, step - 1.5) in server.history(run_id, LOSS) for run_id in list(server.runs)):
        assert time.monotonic() < deadline, "not sent"
        time.sleep(0.01)


def only_run(server: MlflowStandIn, folder: Path) -> dict[str, Any]:
    """The one run, which the folder names."""
    [run_id] = server.runs
    assert (folder / RUN_ID_FILE).read_text() == run_id
    return server.runs[run_id]


def is_complete(server: MlflowStandIn, folder: Path) -> bool:
    """Whether every number of every point is there once."""
    run = only_run(server, folder)
    [run_id] = server.runs
    rows = sorted((key, step) for key, step, _, _ in run["metrics"])
    names = {key for key, _ in rows}
    assert len(names) == 4  # Loss, seconds, and samples of two datasets.
    return server.history(run_id, LOSS) == TOLD and rows == sorted((n, step) for n in names for step, _ in TOLD)


def warnings_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning: ")]


def wait_for_warning(capsys: pytest.CaptureFixture[str]) -> str:
    """What is said until there is a warning."""
    said, deadline = "", time.monotonic() + 30
    while not warnings_in(said):
        assert time.monotonic() < deadline, "no warning"
        time.sleep(0.01)
        said += capsys.readouterr().out
    return said


def test_an_undisturbed_training_is_in_mlflow_once(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = begin()
    add(recorder, 0, STEPS)
    recorder.close(failed=False)
    assert is_complete(server, tmp_path)
    run = only_run(server, tmp_path)
    assert run["status"] == "FINISHED"
    assert run["params"]["training.steps"] == str(STEPS)
    assert not warnings_in(capsys.readouterr().out)
    assert track(TrackJob(folder=str(tmp_path))).what == "0 of 6 points"


@pytest.mark.parametrize("fault", ["refuse", "hang", "fail"])
def test_an_outage_is_one_line_and_nothing_is_lost_or_doubled(
    begin: Callable[..., Recorder],
    server: MlflowStandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    recorder = begin()
    add(recorder, 0, 4)
    wait_for(server, 4)
    break_it(server, fault)
    add(recorder, 4, 9)
    said = wait_for_warning(capsys)
    mend(server)
    wait_for(server, 8)
    add(recorder, 9, STEPS)
    recorder.close(failed=False)
    assert is_complete(server, tmp_path)
    assert len(list(read_log(Folder(tmp_path)))) == STEPS
    [line] = warnings_in(said + capsys.readouterr().out)
    assert server.uri in line
    assert "the training goes on" in line


@pytest.mark.parametrize("fault", ["refuse", "hang", "fail"])
def test_an_outage_for_good_ends_in_time_and_the_rest_can_be_sent(
    begin: Callable[..., Recorder],
    server: MlflowStandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    recorder = begin()
    add(recorder, 0, 4)
    wait_for(server, 4)
    break_it(server, fault)
    add(recorder, 4, STEPS)
    started = time.monotonic()
    recorder.close(failed=False)
    assert time.monotonic() - started < 5
    assert warnings_in(capsys.readouterr().out)[-1].endswith(f": python -m jobs.track {tmp_path}")
    with pytest.raises(TrackingError, match=f"tracking.uri: MLflow at {server.uri}: "):
        track(TrackJob(folder=str(tmp_path)))
    mend(server)
    sent = track(TrackJob(folder=str(tmp_path)))
    assert is_complete(server, tmp_path)
    assert only_run(server, tmp_path)["status"] == "FINISHED"
    assert sent.run_id == (tmp_path / RUN_ID_FILE).read_text()
    assert track(TrackJob(folder=str(tmp_path))).what == "0 of 6 points"
    assert is_complete(server, tmp_path)


def test_a_store_of_files_that_fails_costs_no_number_and_the_rest_can_be_sent(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.keeps_files = False
    recorder = begin()
    add(recorder, 0, STEPS)
    recorder.close(failed=False)
    assert is_complete(server, tmp_path)
    assert only_run(server, tmp_path)["status"] == "FINISHED"
    [line] = warnings_in(capsys.readouterr().out)
    assert line.endswith(f"MLflow answers: python -m jobs.track {tmp_path}")
    server.keeps_files = True
    run_id = track(TrackJob(folder=str(tmp_path))).run_id
    assert b"lr:" in server.artifacts[f"{run_id}/config.yaml"]
    assert is_complete(server, tmp_path)


def test_a_training_has_few_settings_in_the_list_and_all_in_a_file_that_is_sent_once(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path
) -> None:
    begin().close(failed=True)
    run = only_run(server, tmp_path)
    assert len(run["params"]) <= 10
    assert run["params"]["model.preset"] == "debug"
    [name] = server.artifacts
    assert b"weight_decay:" in server.artifacts.pop(name)
    assert "global_batch: `3`" in run["tags"]["mlflow.note.content"]
    add(begin(), 0, STEPS)
    wait_for(server, STEPS)
    assert not server.artifacts


def test_a_server_that_hangs_holds_up_no_step(begin: Callable[..., Recorder], server: MlflowStandIn) -> None:
    server.mode = "hang"
    recorder = begin()
    started = time.monotonic()
    for _ in range(100):
        recorder.add(0, {"loss": 1.0, "seconds": 0.1})
    assert time.monotonic() - started < 0.5
    recorder.close(failed=True)


@pytest.mark.parametrize("fault", ["refuse", "hang", "fail"])
def test_a_resumed_run_begins_without_mlflow_and_sends_what_both_attempts_have(
    begin: Callable[..., Recorder],
    server: MlflowStandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    first = begin()
    add(first, 0, 4)
    wait_for(server, 4)
    break_it(server, fault)
    add(first, 4, 8)
    first.close(failed=True)
    capsys.readouterr()
    second = begin(first=7)  # In the midst of an interval.
    add(second, 7, 10)
    said = wait_for_warning(capsys)
    mend(server)
    add(second, 10, STEPS)
    second.close(failed=False)
    assert is_complete(server, tmp_path)
    assert len(warnings_in(said + capsys.readouterr().out)) == 1
    assert only_run(server, tmp_path)["status"] == "FINISHED"


def test_steps_done_again_after_a_kill_are_not_doubled(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path
) -> None:
    killed = begin()
    add(killed, 0, 9)
    wait_for(server, 8)  # And no more of it: no close, as after SIGKILL.
    again = begin(first=4)
    add(again, 4, STEPS)
    again.close(failed=False)
    assert is_complete(server, tmp_path)


def test_what_a_full_queue_turned_away_is_sent_at_the_end(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_queue, "MAX_WAITING", 2)
    server.mode = "hang"
    recorder = begin()
    add(recorder, 0, STEPS)
    server.mode = "ok"
    recorder.close(failed=False)
    assert is_complete(server, tmp_path)


def test_a_run_deleted_in_mlflow_is_one_line_and_jobs_track_says_so(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = begin()
    add(recorder, 0, 4)
    wait_for(server, 4)
    only_run(server, tmp_path)["stage"] = "deleted"
    add(recorder, 4, STEPS)
    recorder.close(failed=False)
    [line] = warnings_in(capsys.readouterr().out)
    assert "must be in the 'active' state" in line
    with pytest.raises(TrackingError, match="was deleted there; restore it, or remove mlflow_run_id for a new one"):
        track(TrackJob(folder=str(tmp_path)))
    only_run(server, tmp_path)["stage"] = "active"
    track(TrackJob(folder=str(tmp_path)))
    assert is_complete(server, tmp_path)


@pytest.mark.parametrize("damaged", [b"", b"0123", b"\xff" * 32, b"0" * 31 + b"x", b"0" * 33])
def test_a_damaged_id_ends_in_no_other_run(
    begin: Callable[..., Recorder],
    server: MlflowStandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damaged: bytes,
) -> None:
    (tmp_path / RUN_ID_FILE).write_bytes(damaged)
    recorder = begin()
    add(recorder, 0, STEPS)
    recorder.close(failed=False)
    assert not server.runs
    [line] = warnings_in(capsys.readouterr().out)
    assert f"{tmp_path}/{RUN_ID_FILE}: damaged" in line
    with pytest.raises(TrackingError, match="damaged"):
        track(TrackJob(folder=str(tmp_path)))
    (tmp_path / RUN_ID_FILE).unlink()
    track(TrackJob(folder=str(tmp_path)))
    assert is_complete(server, tmp_path)


def test_the_id_of_another_training_is_not_written_to(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(name="first").close(failed=False)
    copied = begin(name="second")
    add(copied, 0, STEPS)
    copied.close(failed=False)
    assert not only_run(server, tmp_path)["metrics"]
    [line] = warnings_in(capsys.readouterr().out)
    assert "is that of first, not of second" in line


def test_an_id_that_this_mlflow_does_not_know_is_named(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path
) -> None:
    begin().close(failed=False)
    server.runs.clear()
    with pytest.raises(TrackingError, match=r"Run with id=[0-9a-f]{32} not found.*remove mlflow_run_id for a new one"):
        track(TrackJob(folder=str(tmp_path)))


def test_closing_hides_neither_why_a_run_failed_nor_that_its_log_is_lost(
    begin: Callable[..., Recorder], server: MlflowStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = begin()

    def no_space() -> None:
        raise OSError("no space left")

    recorder._log.flush = no_space  # type: ignore[assignment,method-assign]
    recorder.close(failed=True)
    assert "warning: no space left" in capsys.readouterr().out
    assert only_run(server, tmp_path)["status"] == "FAILED"
    recorder = begin()
    recorder._log.flush = no_space  # type: ignore[assignment,method-assign]
    with pytest.raises(OSError, match="no space left"):
        recorder.close(failed=False)
    assert only_run(server, tmp_path)["status"] == "FAILED"


def test_a_run_on_s3_is_sent_from_its_log(
    make_recipe: Callable[..., Recipe], server: MlflowStandIn, bucket: str, tmp_path: Path
) -> None:
    recipe, run = make_recipe(steps=STEPS, global_batch=3, log_every=EVERY), Folder(f"{bucket}/run")
    server.mode = "fail"
    recorder = Recorder(recipe, TrainingData.of(recipe), run, 0, "test", TrackingSettings(uri=server.uri))
    add(recorder, 0, STEPS)
    recorder.close(failed=False)
    server.mode = "ok"
    assert track(TrackJob(folder=run.path)).what == "6 of 6 points"
    (tmp_path / RUN_ID_FILE).write_bytes(run.read(RUN_ID_FILE))
    assert is_complete(server, tmp_path)


def test_points_depend_on_the_log_alone(begin: Callable[..., Recorder], tmp_path: Path) -> None:
    begin().close(failed=True)
    add(begin(), 0, 5)
    add(begin(first=3), 3, STEPS)
    told = list(points(read_log(Folder(tmp_path))))
    assert [(one.step, one.values[LOSS]) for one in told] == TOLD
    assert list(points([{"step": 0, "loss": 1.0, "samples_seen": {}}])) == []  # As logs were before.


def test_user_and_password_are_used_and_in_no_file(
    begin: Callable[..., Recorder],
    server: MlflowStandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    recorder = begin(uri=server.uri.replace("//", "//somebody:s3cr%40t@"))
    add(recorder, 0, 4)
    wait_for(server, 4)
    assert "Basic c29tZWJvZHk6czNjckB0" in server.authorization  # somebody:s3cr@t
    break_it(server, "refuse")
    add(recorder, 4, STEPS)
    said = wait_for_warning(capsys)
    recorder.close(failed=False)
    said += capsys.readouterr().out
    assert len(warnings_in(said)) == 2
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    logged = repr(only_run(server, tmp_path))
    for secret in ("s3cr", "somebody"):
        assert secret not in said
        assert secret.encode() not in stored
        assert secret not in logged


def break_it(server: MlflowStandIn, fault: str) -> None:
    if fault == "refuse":
        server.stop()
    else:
        server.mode = fault


def mend(server: MlflowStandIn) -> None:
    server.mode = "ok"
    if not server.is_up:
        server.start()
