"""Evaluate a checkpoint on prepared splits: `python -m jobs.evaluate [<config.yaml>] [section.field=value ...]`.

    python -m jobs.evaluate checkpoint=/data/runs/seven/checkpoint-368750 data=/data/shards output=/data/evaluation

Numbers go to MLflow, each beside that of a guess that has not seen the image, and so do pictures.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from jobs.arguments import read_arguments
from jobs.cluster import connect, joined, main_exit, stable_path
from jobs.evaluation_run import METRICS_FILE, EvaluationFile, send_evaluation
from jobs.follow import follow
from jobs.needs import Needs
from jobs.resources import WAIT, Workers, actors
from jobs.track import stable_tracking
from pipelines.evaluate.blind import Guessing, guess
from pipelines.evaluate.drawing import draw
from pipelines.evaluate.evaluate import Manifests, ask_model
from pipelines.evaluate.item_files import ItemTask, check_left_out, chosen_rows, item_task
from pipelines.evaluate.measuring import measured
from pipelines.model_pool import ModelReference, Pool, load_predictor, weights_digest
from pipelines.sources import SOURCES, check_datasets
from semsam.config import (
    Count,
    Gpus,
    Positive,
    PositiveFloat,
    Seed,
    config_values,
    dump_config,
    settings,
)
from semsam.data.shards import Split, is_prepared, open_split
from semsam.evaluation.class_tables import class_rows, class_tables
from semsam.evaluation.number_table import flat, headline_intervals, over_datasets, table
from semsam.evaluation.protocols import BASELINE
from semsam.evaluation.questions import Questions
from semsam.model.presets import preset
from semsam.predictor import ImageSize, Predictor
from semsam.storage import Folder
from semsam.tracking.checkpoint_model import Checkpoint
from semsam.tracking.server import TrackingError
from semsam.tracking.tracked_run import TRACKING_FILE, TrackedRun
from semsam.tracking.tracker import RUN_ID_FILE, TrackingSettings, open_experiment
from semsam.training.checkpoint import checkpoint_folder
from semsam.training.resume import trained_names
from semsam.training.train_log import LOG_FILE

MARKER = "evaluation.yaml"  # Beside the pictures: how they were made, and that they are ours.
ITEMS = "items"  # The folder of what was answered, a folder for each dataset.


@settings
class EvaluateJob:
    """What to measure on what; the defaults are the paper's evaluation sizes."""

    data: str = "outputs/shards"  # Where jobs.prepare wrote.
    output: str = "outputs/evaluation"
    checkpoint: str | None = None  # A folder, local or s3://.
    # `checkpoint` is the folder of a run that may be going on: evaluate each of its checkpoints once, into folders of
    # `output`, until the run is complete; the best one is marked and stays.
    follow: bool = False
    best_by: str = "one_click/miou_oracle"  # The number to choose the best by, over all datasets.
    untrained: bool = False  # Random weights of `preset` in place of a checkpoint: where a training starts.
    preset: str = "debug"
    seed: Seed = 0
    run_name: str = "evaluation"
    datasets: tuple[str, ...] = ()  # None named: every dataset found under `data`.
    split: str = "val"
    image_size: ImageSize = field(default_factory=ImageSize)
    questions: Questions = field(default_factory=Questions)
    max_images: Positive | None = None  # Of each dataset, spread over all of it and the same in every run.
    resamples: Count = 1000  # For the 95% intervals of the headline numbers, over images; 0: none.
    max_left_out: Count = 0  # Images that may be missing because they end their worker.
    baseline_images: Count = 500  # Train images per dataset that the blind baselines are tuned on.
    blind: str | None = None  # Where blind guesses are kept, for several evaluations; None: in the output.
    pictures: Count = 3  # Rows of the picture grid per dataset.
    num_actors: Positive | None = None  # None: two, or the one that there is room for.
    # The pool grows up to so many while work waits and the cluster has room, and lets idle ones go.  None: it does not.
    max_actors: Positive | None = None
    gpus_per_actor: Gpus = 0.0  # May be a share of one.
    # Seconds to wait for CPUs and GPUs that others use or that an autoscaler may add.
    wait_for_resources: PositiveFloat = WAIT
    rows_per_task: Positive = 16
    progress_interval: PositiveFloat = 10.0  # Seconds between lines where there is no terminal.
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        check_datasets("datasets", self.datasets)
        if self.checkpoint is not None and self.untrained:
            raise ValueError("checkpoint and untrained=true contradict each other")
        if self.follow and self.checkpoint is None:
            raise ValueError("follow=true needs a checkpoint: the folder of the run")
        _pool(self)
        preset(self.preset)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives back."""

    metrics: dict[str, float]  # By MLflow name.
    # By name less the dataset: of prompts the mean over all datasets' regions, and how many; of what is found without
    # being asked for the mean over datasets, and how many.
    means: dict[str, tuple[float, int]]
    intervals: dict[str, tuple[float, float]]  # 95%, of the headline numbers by MLflow name.
    pictures: str  # Where they lie.
    run_id: str | None
    tracking_uri: str | None


def run(job: EvaluateJob) -> Evaluation:
    """Ask about every dataset, compute the numbers, draw pictures, and log all of it to one MLflow run.

    What was answered is kept in the output: the same command goes on where a killed one stopped.  With `follow`, that
    for every checkpoint of a run as it comes; the best one's is given back.  Raises `ValueError` for a dataset that was
    not prepared, a checkpoint that cannot be read or an MLflow that cannot be had, before any worker starts.  Numbers
    are printed and stored before they are sent: an MLflow that fails by then is a line on screen.
    """
    if job.checkpoint is None and not job.untrained:
        raise ValueError("checkpoint: name the folder to evaluate, or set untrained=true for random weights")
    job = _with_stable_paths(job)
    if not job.follow:
        return _evaluate(job)
    found: dict[int, Evaluation] = {}
    job = replace(job, blind=_blind_folder(job))

    def evaluate(checkpoint: Folder, step: int) -> dict[str, float]:
        name = checkpoint.path.rpartition("/")[2]
        found[step] = _evaluate(
            replace(
                job,
                follow=False,
                checkpoint=checkpoint.path,
                output=f"{job.output}/{name}",
                run_name=f"{job.run_name}-{name}",
            )
        )
        return {name: value for name, (value, _) in found[step].means.items()}

    _find_splits(job)
    with connect(workers(job)):
        followed = follow(Folder(str(job.checkpoint)), job.best_by, evaluate)
    best = followed.best
    if best is None:
        raise RuntimeError(f"{job.checkpoint}: every checkpoint was deleted before it could be evaluated")
    print(f"the best by {job.best_by}: {job.checkpoint}/checkpoint-{best}")
    if best not in found:  # It was evaluated by an earlier command, whose items are still there.
        evaluate(checkpoint_folder(Folder(str(job.checkpoint)), best), best)
    return found[best]


def _evaluate(job: EvaluateJob) -> Evaluation:
    if Folder(job.output).exists(LOG_FILE):
        raise ValueError(f"output: {job.output} is the folder of a training, with its own MLflow run; choose another")
    splits = _find_splits(job)
    if job.tracking.enabled:
        print(open_experiment(job.tracking), flush=True)
    model = ModelReference(job.checkpoint, job.preset, job.seed)
    predictor = load_predictor(model, job.image_size)
    _check_output(Folder(job.output), splits)
    rows = {name: chosen_rows(split, job.max_images) for name, split in splits.items()}
    Folder(job.output).write(MARKER, dump_config(job).encode())
    with connect(workers(job)):
        tasks = _tasks(job, splits, rows, predictor)
        asked = ask_model(tasks, model, job.image_size, job.questions, _pool(job), job.progress_interval)
        blind = guess(_guessing(job, predictor), splits, rows)
    _check_left_out(job, asked)
    numbers = {name: measured(Folder(f"{job.output}/{ITEMS}/{name}"), one) for name, one in asked.items()}
    guessed = {
        name: measured(Folder(f"{_blind_folder(job)}/{name}"), one, is_blind=True) for name, one in blind.items()
    }
    pictures: dict[str, bytes] = {}
    figures: dict[str, bytes] = {}
    tables: dict[str, bytes] = {}
    for name, split in splits.items():
        items = Folder(f"{job.output}/{ITEMS}/{name}")
        pictures |= draw(predictor, split, rows[name], items, asked[name], numbers[name], job.pictures)
        if job.pictures:
            from semsam.evaluation.figures import figures_of  # Matplotlib, which nobody else needs.

            figures |= {f"figures/{name}/{kind}.png": data for kind, data in figures_of(numbers[name]).items()}
        tables |= {f"tables/{name}/{file}": data for file, data in class_tables(class_rows(numbers[name])).items()}
    found = EvaluationFile(
        time=time.time(),
        metrics={**flat(numbers), **flat(guessed, is_blind=True)},
        intervals=headline_intervals(numbers, job.resamples),
        absent={f"{protocol}/{name}": why for name, one in numbers.items() for protocol, why in one.absent.items()},
        pictures=tuple(pictures),
        figures=tuple(figures),
        tables=tuple(tables),
        checkpoint=_checkpoint(job, asked),
        description=_description(job, asked),
    )
    run_id = keep(job, found, {**pictures, **figures, **tables}, splits)
    means = over_datasets(numbers)
    means |= {f"{BASELINE}/{name}": mean for name, mean in over_datasets(guessed).items()}
    return Evaluation(found.numbers(), means, found.intervals, job.output, run_id, job.tracking.uri if run_id else None)


def _checkpoint(job: EvaluateJob, asked: Manifests) -> Checkpoint | None:
    """Which weights were evaluated, and where in a training they come from; None for random ones."""
    if job.checkpoint is None:
        return None
    run, _, name = job.checkpoint.rpartition("/")
    step = re.fullmatch(r"checkpoint-(\d+)", name)
    is_of_run = step is not None and Folder(run).exists(LOG_FILE)
    digest = next(iter(asked.values())).asked["model"]
    return Checkpoint(job.checkpoint, run if is_of_run else None, int(step[1]) if step else None, digest)


def _description(job: EvaluateJob, asked: Manifests) -> str:
    """What ran, in Markdown."""
    model = f"`{job.checkpoint}`" if job.checkpoint else f"random weights of the preset `{job.preset}`"
    size = f"short side {job.image_size.short_side}, long side at most {job.image_size.max_long_side}"
    lines = [f"Evaluation of {model} at {size}.", "", "| dataset | split | images | left out |", "|---|---|---:|---:|"]
    for name, one in asked.items():
        images = sum(part.report.num_images for part in one.parts)
        lines.append(f"| {name} | {one.split} | {images} | {len(one.left_out)} |")
    return "\n".join(lines)


def keep(
    job: EvaluateJob, found: EvaluationFile, files: Mapping[str, bytes], splits: Mapping[str, Split]
) -> str | None:
    """Print and store what was found, and then send it; the MLflow run's id, None where there is none."""
    print(table(found.numbers(), intervals=found.intervals), flush=True)
    output = Folder(job.output)
    found = _as_before(output, found)
    output.write(METRICS_FILE, orjson.dumps(found, option=orjson.OPT_INDENT_2))
    for name, data in files.items():
        output.write(name, data)
    if not job.tracking.enabled:
        return None
    manifests = [split.manifest for split in splits.values()]
    tracked = TrackedRun.of(job.tracking, job.run_name, config_values(job), manifests, "evaluation")
    tracked.store(output)
    try:
        return send_evaluation(tracked, output)
    except TrackingError as error:
        later = f"the numbers are in {output.path}/{METRICS_FILE}; to send them: python -m jobs.track {output.path}"
        print(f"warning: {error}; {later}", flush=True)
        return None


def _as_before(output: Folder, found: EvaluationFile) -> EvaluationFile:
    """The same with the time of an earlier evaluation that found the same, whose MLflow run is gone on with.

    What other numbers were found before has another MLflow run, which is forgotten here.
    """
    try:
        before = EvaluationFile.load(output)
    except ValueError:  # There is none.
        before = None
    if before is not None and replace(found, time=before.time) == before:
        return before
    for name in (RUN_ID_FILE, TRACKING_FILE):
        output.remove(name)
    return found


def _with_stable_paths(job: EvaluateJob) -> EvaluateJob:
    """The job with paths that mean the same to its workers, whatever folder they run in."""
    return replace(
        job,
        data=stable_path(job.data, "data"),
        output=stable_path(job.output, "output"),
        blind=None if job.blind is None else stable_path(job.blind, "blind"),
        checkpoint=None if job.checkpoint is None else stable_path(job.checkpoint, "checkpoint"),
        tracking=stable_tracking(job.tracking),
    )


def _check_output(output: Folder, datasets: Iterable[str]) -> None:
    """Raise `ValueError` where what is to be written would come among, or replace, what others have."""
    if output.exists(MARKER):
        return
    files = [METRICS_FILE, *(f"{dataset}{name}.png" for dataset in datasets for name in ("", "-found"))]
    taken = [name for name in files if output.exists(name)]
    taken += [name for name in output.folders() if name in {ITEMS, "blind", "figures", "tables", *datasets}]
    if taken:
        raise ValueError(
            f"output: {output.path} holds {taken[0]!r}, which no evaluation has written; name another folder"
        )


def _find_splits(job: EvaluateJob) -> dict[str, Split]:
    names = job.datasets or tuple(d for d in SOURCES if is_prepared(f"{job.data}/{d}/{job.split}"))
    if not names:
        raise ValueError(f"{job.data}: no prepared dataset with a {job.split} split; run jobs.prepare first")
    return {name: open_split(job.data, name, job.split) for name in names}


def _tasks(
    job: EvaluateJob, splits: Mapping[str, Split], rows: Mapping[str, Sequence[int]], predictor: Predictor
) -> dict[str, ItemTask]:
    asked = {
        "model": weights_digest(predictor.model),
        "image_size": config_values(job.image_size),
        "questions": config_values(job.questions),
        "trained": None if job.checkpoint is None else trained_names(Folder(job.checkpoint)),
    }
    return {
        name: item_task(split, rows[name], job.rows_per_task, f"{job.output}/{ITEMS}/{name}", asked, job.max_left_out)
        for name, split in splits.items()
    }


def _guessing(job: EvaluateJob, predictor: Predictor) -> Guessing:
    levels = predictor.model.settings.num_levels
    return Guessing(job.data, _blind_folder(job), job.questions, levels, job.baseline_images, job.rows_per_task)


def _blind_folder(job: EvaluateJob) -> str:
    return job.blind or f"{job.output}/blind"


def _check_left_out(job: EvaluateJob, asked: Manifests) -> None:
    """Name the images that ended their worker; `RuntimeError` where there are more than the job allows."""
    left_out = {dataset: manifest.left_out for dataset, manifest in asked.items()}
    for dataset, some in left_out.items():
        for one in some:
            print(f"left out: {dataset} {one.sample_id}: {one.reason} ({one.detail})", flush=True)
    check_left_out(left_out, job.max_left_out)


def workers(job: EvaluateJob) -> Workers:
    """What the job needs of a cluster."""
    return actors(job.num_actors or 1, job.gpus_per_actor, job.wait_for_resources)


def _pool(job: EvaluateJob) -> Pool:
    return Pool(job.num_actors, job.gpus_per_actor, job.max_actors)


def needs(job: EvaluateJob) -> Needs:
    """What the job would need."""
    told = job.tracking.uri if job.tracking.enabled else None
    return Needs.of([job.data, job.checkpoint], [job.output, job.blind], workers(job), tracking=told)


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last line says where the outputs are."""
    job = read_arguments(EvaluateJob, arguments, __doc__, needs=needs)
    with joined(workers(job)):
        result = run(job)
    place = f"MLflow run {result.run_id} at {result.tracking_uri}" if result.run_id else f"its {METRICS_FILE}"
    print(f"pictures in {result.pictures}, numbers in {place}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
