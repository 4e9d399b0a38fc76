"""Send to MLflow what it lacks of a training or an evaluation: `python -m jobs.track <folder> [tracking.uri=...]`.

    python -m jobs.track outputs/runs/semantic-sam tracking.uri=https://mlflow.example.org

The folder is that of a run or an evaluation's output, local or s3://.  What MLflow has is not sent again, so that it
may be run at any time, also while the training goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import yaml

from jobs.arguments import read_arguments
from jobs.cluster import main_exit, stable_path
from semsam.config import config_values, settings
from semsam.storage import Folder
from semsam.tracking.address import VARIABLE, Address
from semsam.tracking.tracked_run import TrackedRun, read_run_id
from semsam.tracking.tracker import Point, TrackingSettings, open_experiment, tracking_uri
from semsam.training.metric_queue import points, send_points
from semsam.training.train_log import read_log

METRICS_FILE = "metrics.json"  # Of an evaluation: its numbers, and which pictures are its own.


@settings
class Target:
    """Where to send it; None: where the training or evaluation would have."""

    uri: Address | None = None
    experiment: str | None = None  # For what has no MLflow run yet.


@settings
class TrackJob:
    """What to send."""

    folder: str
    tracking: Target = field(default_factory=Target)


@dataclass(frozen=True)
class Sent:
    """What there was to do, and where it lies now."""

    what: str
    run_id: str
    uri: str


def run(job: TrackJob) -> Sent:
    """Send what is missing.  Raises `ValueError` where there is nothing of the kind, or MLflow cannot be had."""
    folder = Folder(stable_path(job.folder, "folder"))
    tracked = TrackedRun.load(folder)
    given = {name: value for name, value in config_values(job.tracking).items() if value is not None}
    tracked = replace(tracked, tracking=replace(tracked.tracking, **given))
    if read_run_id(folder) is None:
        open_experiment(tracked.tracking)
    uri = tracking_uri(tracked.tracking)
    if tracked.context == "evaluation":
        return Sent("the evaluation", send_evaluation(tracked, folder), uri)
    return _send_training(tracked, folder, uri)


def _send_training(tracked: TrackedRun, folder: Folder, uri: str) -> Sent:
    log = list(read_log(folder))
    all_points = list(points(log))
    tracker = tracked.open(folder)
    missing = sum(one.step > tracker.last_step for one in all_points)
    send_points(tracker, all_points, tracker.last_step)
    is_complete = bool(log) and log[-1]["step"] + 1 == tracked.params["training"]["steps"]
    if is_complete and tracker.status != "FINISHED":  # Else it may go on, and knows best.
        tracker.set_status("FINISHED")
    return Sent(f"{missing} of {len(all_points)} points", tracker.run_id, uri)


def send_evaluation(tracked: TrackedRun, folder: Folder) -> str:
    """Send an evaluation's numbers and pictures from its output; the id of its MLflow run."""
    numbers: dict[str, Any] = orjson.loads(folder.read(METRICS_FILE))
    with tracked.open(folder) as tracker:
        tracker.log_points([Point(0, numbers["time"], numbers["metrics"])])
        tracker.log_text(yaml.safe_dump(tracked.params, sort_keys=False), "config.yaml")
        for name in numbers["pictures"]:
            tracker.log_bytes(folder.read(name), f"pictures/{name}")
    return tracker.run_id


def stable_tracking(tracking: TrackingSettings) -> TrackingSettings:
    """The settings with an address that means the same to a job and its workers, whatever folder they run in.

    Raises `ValueError` for a submitted job without one: its own folder is a copy that is deleted after it.
    """
    if not tracking.enabled:
        return tracking
    if tracking.uri is None and not os.environ.get(VARIABLE):
        try:
            stable_path("mlflow.db", "tracking.uri")
        except ValueError:
            raise ValueError(
                "tracking.uri: not set, and a submitted job's folder is deleted after it; give the address of a "
                "server, or sqlite:////<absolute path>, or tracking.enabled=false"
            ) from None
    return replace(tracking, uri=tracking_uri(tracking))


def main(arguments: Sequence[str]) -> None:
    """Send what the folder of a command line has; its last line says where it lies now."""
    sent = run(read_arguments(TrackJob, arguments, __doc__, first=("folder",)))
    print(f"sent {sent.what}: MLflow run {sent.run_id} at {sent.uri}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
