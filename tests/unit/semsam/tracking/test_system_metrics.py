"""A machine's load stands beside a training's numbers, and no want of it ends or delays anything."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from semsam.tracking import system_metrics
from semsam.tracking.system_metrics import SystemMetrics
from semsam.tracking.tracker import Point, Tracker, TrackingSettings
from tests.mlflow_stand_in import MlflowStandIn


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    return TrackingSettings(uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db", experiment="tests")


def wait_for(tracker: Tracker, name: str, count: int) -> list[Any]:
    deadline = time.monotonic() + 30
    while True:
        history: list[Any] = tracker.ask(lambda client: client.get_metric_history(tracker.run_id, name))
        if len(history) >= count:
            return history
        assert time.monotonic() < deadline, "no system metrics"
        time.sleep(0.05)


def test_they_stand_under_one_name_wherever_a_training_goes_on(
    tracking: TrackingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "EVERY", 0.1)
    tracker, name = Tracker(tracking, "watched"), "system/rank-0/cpu_utilization_percentage"
    tracker.log_points([Point(3, 1.7e9, {"train/loss": 1.0})])
    steps: list[int] = []
    for _ in range(2):  # The second as another process would.
        watch = SystemMetrics()
        watch.keep_on(tracker)
        watch.keep_on(tracker)
        steps = [one.step for one in wait_for(tracker, name, len(steps) + 2)]
        watch.stop()
    assert sorted(steps) == list(range(len(steps)))
    assert Tracker(tracking, "watched", tracker.run_id).last_step == 3


def test_they_go_on_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "EVERY", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = MlflowStandIn()
    tracker, watch, name = Tracker(TrackingSettings(uri=server.uri), "x"), SystemMetrics(), "system/rank-0/disk"
    watch.keep_on(tracker)
    wait_until(lambda: any(key.startswith(name) for key, *_ in list(server.runs[tracker.run_id]["metrics"])))
    server.mode = "fail"
    wait_until(lambda: not watch._monitor._process.is_alive())
    server.mode = "ok"
    before = len(server.runs[tracker.run_id]["metrics"])
    watch.keep_on(tracker)
    wait_until(lambda: len(server.runs[tracker.run_id]["metrics"]) > before)
    server.mode = "hang"
    started = time.monotonic()
    watch.stop()
    assert time.monotonic() - started < system_metrics._STOP_WITHIN + 1
    server.mode = "ok"
    watch.stop()
    server.stop()


@pytest.mark.parametrize("absent", ["psutil", "mlflow.system_metrics.system_metrics_monitor", "switched off"])
def test_without_what_they_need_they_are_off(
    tracking: TrackingSettings, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics")]:
        monkeypatch.delitem(sys.modules, name)
    if absent == "switched off":
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    else:
        monkeypatch.setitem(sys.modules, absent, None)
    watch = SystemMetrics()
    watch.keep_on(Tracker(tracking, "bare"))
    watch.stop()
    assert watch._monitor is None


def wait_until(happened: Any) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)
