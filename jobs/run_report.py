"""The report of a whole training: what its folder tells, and the evaluations of its checkpoints."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import yaml

from jobs.evaluate import MARKER
from jobs.evaluation_run import METRICS_FILE, EvaluationFile
from semsam.evaluation.run_page import Choice, EvaluatedCheckpoint, run_page
from semsam.model.semantic_sam import CONFIG_FILE
from semsam.storage import Folder
from semsam.tracking.tracked_run import TRACKING_FILE, TrackedRun, read_run_id
from semsam.tracking.tracker import Point
from semsam.training.checkpoint import latest_checkpoint, load_state
from semsam.training.followed import Followed, read_followed
from semsam.training.metric_queue import points
from semsam.training.train_log import read_log

REPORT_FILE = "report.html"
_TERMS = "train/"  # Before the log's own names in MLflow.


def run_report(run: Folder, places: Sequence[Folder], page: str) -> str:
    """The page of the training in `run`; evaluations are looked for in `places`, and in folders below them.

    Links are as they are to be in a file at `page`.  Raises `ValueError` for files that are damaged.
    """
    log = list(points(read_log(run)))
    followed = read_followed(run)
    found = list(_evaluations(run, places, page))
    known = {one.step for one in found}
    missing = [_unfound(step, value) for step, value in _steps(followed) if step not in known]
    checkpoints = sorted([*found, *missing], key=lambda one: (one.step, one.name))
    choice = None if followed is None else Choice(followed.metric, dict(_steps(followed)), followed.best)
    title = f"Training: {run.path.rpartition('/')[2]}"
    return run_page(title, _facts(run, log), _by_name(log), checkpoints, choice, _config(run))


def _steps(followed: Followed | None) -> list[tuple[int, float | None]]:
    return [] if followed is None else sorted((int(step), value) for step, value in followed.values.items())


def _by_name(log: Sequence[Point]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for point in log:
        for name, value in point.values.items():
            if name.startswith(_TERMS):
                found.setdefault(name.removeprefix(_TERMS), []).append((point.step, value))
    return found


def _evaluations(run: Folder, places: Sequence[Folder], page: str) -> Iterator[EvaluatedCheckpoint]:
    """Those of the run's checkpoints that have come to their end, each once."""
    paths = {f"{place.path}/{name}".rpartition("/")[0] for place in places for name in place.glob(f"**/{MARKER}")}
    for path in sorted(paths):
        folder = Folder(path)
        if not folder.exists(METRICS_FILE):
            print(f"{path}: not evaluated to its end; left out", flush=True)
            continue
        stored = EvaluationFile.load(folder)
        of = stored.checkpoint
        # By its name, too: runs are copied to other places.
        if (
            of is None
            or of.step is None
            or of.run is None
            or posixpath.basename(of.run) != posixpath.basename(run.path)
        ):
            print(f"{path}: not of a checkpoint of this run; left out", flush=True)
            continue
        yield EvaluatedCheckpoint(
            step=of.step,
            name=posixpath.basename(path),
            metrics=stored.headlines(),
            intervals=stored.intervals,
            absent=stored.absent,
            folder=path,
            page=_link(f"{path}/{REPORT_FILE}", page) if folder.exists(REPORT_FILE) else None,
        )


def _unfound(step: int, value: float | None) -> EvaluatedCheckpoint:
    gone = "the checkpoint was deleted before it was evaluated"
    elsewhere = "its evaluation lies elsewhere; name the folder: evaluations=[...]"
    return EvaluatedCheckpoint(step, remark=gone if value is None else elsewhere)


def _link(target: str, page: str) -> str:
    """Relative, so that the folders can be moved together."""
    return quote(posixpath.relpath(target, posixpath.dirname(page)))


def _facts(run: Folder, log: Sequence[Point]) -> dict[str, str]:
    checkpoint = latest_checkpoint(run)
    state = None if checkpoint is None else load_state(checkpoint)
    done = log[-1].step if log else 0
    facts = {"folder": run.path, "steps": f"{done:,}" if state is None else f"{done:,} of {state.num_steps:,}"}
    if log:
        first, last = (f"{datetime.fromtimestamp(log[place].time, UTC):%Y-%m-%d %H:%M}" for place in (0, -1))
        seen = {name: value for name, value in log[-1].values.items() if name.startswith("samples_seen/")}
        facts["time"] = f"{first} to {last} UTC"
        facts["samples"] = ", ".join(f"{name.partition('/')[2]} {value:,.0f}" for name, value in seen.items())
    if state is not None:
        facts["latest checkpoint"] = f"step {state.step:,}"
    run_id = read_run_id(run)
    return facts | ({} if run_id is None else {"MLflow run": run_id})


def _config(run: Folder) -> str:
    """As the latest checkpoint has it; before there is one, as MLflow does."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is not None and (text := checkpoint.read_if_there(CONFIG_FILE)) is not None:
        return text.decode()
    if not run.exists(TRACKING_FILE):
        return "Not known: the run has no checkpoint yet, and is not tracked."
    params: dict[str, Any] = TrackedRun.load(run).params
    return yaml.safe_dump(params, sort_keys=False)
