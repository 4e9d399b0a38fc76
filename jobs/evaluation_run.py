"""An evaluation in MLflow: a run below that of its training, its numbers tied to the checkpoint and the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson
from pydantic import TypeAdapter, ValidationError

from semsam.evaluation.headlines import is_headline
from semsam.evaluation.protocols import BASELINE
from semsam.storage import Folder
from semsam.tracking.checkpoint_model import Checkpoint, find_or_make_model, ties
from semsam.tracking.server import RefusedError, TrackingError
from semsam.tracking.stepped_images import SteppedImages, image_key
from semsam.tracking.tracked_run import TrackedRun, read_run_id
from semsam.tracking.tracker import Point, Tie, Tracker

METRICS_FILE = "metrics.json"  # Of an evaluation: its numbers, and which other files are its own.
PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class EvaluationFile:
    """What an evaluation's metrics.json holds; earlier versions wrote less."""

    time: float  # Unix time in seconds.
    metrics: dict[str, float | None]  # By MLflow name; None for what is not a number.
    pictures: tuple[str, ...] = ()  # Names of files beside it.
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # Of some of the metrics: low and high.
    absent: dict[str, str] = field(default_factory=dict)  # Why a protocol has no numbers of a dataset.
    checkpoint: Checkpoint | None = None
    description: str | None = None  # Markdown.

    @staticmethod
    def load(folder: Folder) -> EvaluationFile:
        """Raises `ValueError`, with the path, for anything else."""
        path = f"{folder.path}/{METRICS_FILE}"
        try:
            return TypeAdapter(EvaluationFile).validate_python(orjson.loads(folder.read(METRICS_FILE)))
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON: {error}") from None
        except ValidationError as error:
            [first, *_] = error.errors()
            raise ValueError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None

    @property
    def step(self) -> int:
        """Where its numbers stand on MLflow's axis of steps."""
        return self.checkpoint.step or 0 if self.checkpoint else 0

    def numbers(self) -> dict[str, float]:
        """All metrics that are numbers."""
        return {name: value for name, value in self.metrics.items() if value is not None}

    def of_model(self) -> dict[str, float]:
        """Those of the model: all that no baseline has made."""
        return {name: value for name, value in self.numbers().items() if BASELINE not in name.split("/")}

    def headlines(self) -> dict[str, float]:
        """The model's that stand in a table's cells."""
        return {name: value for name, value in self.of_model().items() if is_headline(name)}


def send_evaluation(tracked: TrackedRun, folder: Folder) -> str:
    """Send an evaluation's output, numbers first; the id of its MLflow run.  Sending it again changes nothing."""
    found = EvaluationFile.load(folder)
    of = found.checkpoint
    known = {"checkpoint.step": of.step} if of else {}
    parent = _parent(tracked, of.run) if of and of.run else None
    shown_as = _shown_name(tracked.name, of.step) if of and of.step is not None else None
    with tracked.open(folder, known, shown_as) as tracker:
        if parent is not None:
            tracker.set_tags({PARENT_TAG: parent.run_id})
        model_id = _model(tracked, tracker, of, parent) if of else None
        tied = {} if model_id is None else ties(model_id, found.of_model(), tracked.datasets)
        _send_numbers(found, tracker, tied)
        if of is None or of.step is None:  # Then it has no place among the parent's steps.
            parent = None
        if parent is not None:
            parent.log_points([Point(found.step, found.time, found.headlines())])
            if model_id is not None:
                parent.log_made_model(model_id, found.step)
        tracked.describe(tracker, found.description or f"Evaluation `{tracked.name}`.")
        _send_files(found, folder, tracker)
        for run in (tracker, parent) if parent is not None else (tracker,):
            _send_images(found, folder, run)
    return tracker.run_id


def _shown_name(name: str, step: int) -> str:
    """An evaluation's name in MLflow, where names are cut after a few letters."""
    return f"step {step}: {name.removesuffix(f'-checkpoint-{step}')}"


def _parent(tracked: TrackedRun, training: str) -> Tracker | None:
    """The MLflow run of the training in a folder, if this MLflow has it; else it is said that there is none."""
    try:
        folder = Folder(training)
        run_id = read_run_id(folder)
        if run_id is None:
            raise ValueError(f"{training} names no MLflow run")
        return Tracker(tracked.tracking, TrackedRun.load(folder).name, run_id)
    except (ValueError, OSError) as error:
        if isinstance(error, TrackingError) and not isinstance(error, RefusedError):
            raise
        reason = error
    print(f"MLflow shows this evaluation as a run of its own, not below its training's: {reason}", flush=True)
    return None


def _model(tracked: TrackedRun, tracker: Tracker, of: Checkpoint, parent: Tracker | None) -> str | None:
    """MLflow's id of the checkpoint; None where it has no models, as servers before MLflow 3."""
    name, made_by = (parent.tags.get("mlflow.runName", tracked.name), parent.run_id) if parent else (tracked.name, None)
    try:
        model_id = find_or_make_model(tracker, of, name, made_by)
        tracker.log_measured_model(model_id)
    except TrackingError as error:
        print(f"warning: {error}; the numbers are sent without their model", flush=True)
        return None
    return model_id


def _send_numbers(found: EvaluationFile, tracker: Tracker, tied: Mapping[str, Tie]) -> None:
    """Beside each number the ends of its interval, in groups of their own."""
    ends = {
        f"interval_{end}/{name}": interval[place]
        for place, end in enumerate(("low", "high"))
        for name, interval in found.intervals.items()
    }
    tracker.log_points([Point(found.step, found.time, found.numbers() | ends)], tied)


def _send_files(found: EvaluationFile, folder: Folder, tracker: Tracker) -> None:
    places: Iterable[tuple[str, tuple[str, ...]]] = (
        ("", (METRICS_FILE,)),
        ("pictures/", found.pictures),
        ("tables/", found.tables),
        ("figures/", found.figures),
    )
    for place, names in places:
        for name in names:
            tracker.log_bytes(folder.read(name), place + name.removeprefix(place))


def _send_images(found: EvaluationFile, folder: Folder, run: Tracker) -> None:
    """The same keys at every evaluation, so that each is a row of MLflow's grid that moves with the step.

    Pictures of single images, which are in folders, are others every time.
    """
    images = SteppedImages(run)
    shown = {name: f"pictures/{name}" for name in found.pictures if "/" not in name}
    for name, title in (shown | {name: name for name in found.figures}).items():
        try:
            images.log(folder.read(name), image_key(title), found.step, found.time)
        except TrackingError:
            raise
        except ValueError as error:
            print(f"warning: {folder.path}/{name}: {error}; MLflow has it as a file only", flush=True)
