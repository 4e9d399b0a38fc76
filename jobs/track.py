"""Send to MLflow what it lacks of a training or an evaluation: `python -m jobs.track <folder> [tracking.uri=...]`.

    python -m jobs.track outputs/runs/semantic-sam tracking.uri=https://mlflow.example.org
    python -m jobs.track published=true tracking.uri=https://mlflow.example.org

The folder is that of a run or an evaluation's output, local or s3://.  What MLflow has is not sent again, so that it
may be run at any time, also while the training goes on.  With published=true the published numbers of Semantic-SAM, SAM
and others become runs of their own, so that MLflow shows them beside one's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from jobs.arguments import read_arguments
from jobs.cluster import main_exit, stable_path
from jobs.evaluation_run import send_evaluation
from jobs.needs import Needs
from jobs.published import send_published
from semsam.config import config_values, settings
from semsam.storage import Folder
from semsam.tracking.address import VARIABLE, Address
from semsam.tracking.tracked_run import TrackedRun, read_run_id
from semsam.tracking.tracker import TrackingSettings, open_experiment, tracking_uri
from semsam.training.metric_queue import points, send_points
from semsam.training.train_log import read_log


@settings
class Target:
    """Where to send it; None: where the training or evaluation would have."""

    uri: Address | None = None
    experiment: str | None = None  # For what has no MLflow run yet.


@settings
class TrackJob:
    """What to send: what lies in a folder, or what others have published."""

    folder: str | None = None
    published: bool = False
    tracking: Target = field(default_factory=Target)

    def __post_init__(self) -> None:
        if (self.folder is None) != self.published:
            raise ValueError("folder: name that of a training or an evaluation, or set published=true instead of one")


@dataclass(frozen=True)
class Sent:
    """What there was to do, and where it lies now."""

    what: str
    run_id: str  # Of several the last one's.
    uri: str


def run(job: TrackJob) -> Sent:
    """Send what is missing.  Raises `ValueError` where there is nothing of the kind, or MLflow cannot be had."""
    given = {name: value for name, value in config_values(job.tracking).items() if value is not None}
    if job.folder is None:
        tracking = stable_tracking(TrackingSettings(**given))
        print(open_experiment(tracking), flush=True)
        run_ids = send_published(tracking)
        return Sent(f"{len(run_ids)} published models", run_ids[-1], tracking_uri(tracking))
    folder = Folder(stable_path(job.folder, "folder"))
    tracked = TrackedRun.load(folder)
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
    tracked.describe(tracker, tracked.training_words())
    is_complete = bool(log) and log[-1]["step"] + 1 == tracked.params["training"]["steps"]
    if is_complete and tracker.status != "FINISHED":  # Else it may go on, and knows best.
        tracker.set_status("FINISHED")
    return Sent(f"{missing} of {len(all_points)} points", tracker.run_id, uri)


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


def needs(job: TrackJob) -> Needs:
    """What the job would need."""
    return Needs.of([job.folder], [job.folder], tracking=job.tracking.uri)


def main(arguments: Sequence[str]) -> None:
    """Send what the folder of a command line has; its last line says where it lies now."""
    sent = run(read_arguments(TrackJob, arguments, __doc__, first=("folder",), needs=needs))
    print(f"sent {sent.what}: MLflow run {sent.run_id} at {sent.uri}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
