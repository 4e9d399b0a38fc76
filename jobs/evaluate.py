"""Evaluate a checkpoint on prepared splits: `python -m jobs.evaluate [<config.yaml>] [section.field=value ...]`.

    python -m jobs.evaluate checkpoint=/data/runs/seven/checkpoint-368750 data=/data/shards output=/data/evaluation

Numbers go to MLflow, each beside that of a guess that has not seen the image, and so do pictures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import orjson

from jobs.arguments import read_arguments
from jobs.cluster import connect, joined, main_exit, stable_path
from jobs.resources import WAIT, Workers, actors
from jobs.track import METRICS_FILE, send_evaluation, stable_tracking
from pipelines.evaluate.evaluate import fit_baselines_on, measure_splits
from pipelines.model_pool import ModelReference, Pool, load_predictor, use_vocabulary
from pipelines.progress import Progress
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
from semsam.data.atoms import AtomMap
from semsam.data.images import decode_jpeg
from semsam.data.row_order import some_rows
from semsam.data.shards import Split, is_prepared, open_split
from semsam.data.training_sample import regions_to_train
from semsam.evaluation.baselines import Baselines
from semsam.evaluation.pictures import Row, click_row, encode_png, grid
from semsam.evaluation.protocols import BASELINE, Protocols, clicked_regions
from semsam.model.presets import preset
from semsam.predictor import ImageSize, Predictor
from semsam.storage import Folder
from semsam.tracking.server import TrackingError
from semsam.tracking.tracked_run import TRACKING_FILE, TrackedRun
from semsam.tracking.tracker import RUN_ID_FILE, TrackingSettings, open_experiment
from semsam.training.train_log import LOG_FILE

LOOKED_AT = 20  # Images, for each one in the picture.
MARKER = "evaluation.yaml"  # Beside the pictures: how they were made, and that they are ours.


@settings
class EvaluateJob:
    """What to measure on what; the defaults are the paper's evaluation sizes."""

    data: str = "outputs/shards"  # Where jobs.prepare wrote.
    output: str = "outputs/evaluation"
    checkpoint: str | None = None  # A folder, local or s3://.
    untrained: bool = False  # Random weights of `preset` in place of a checkpoint: where a training starts.
    preset: str = "debug"
    seed: Seed = 0
    run_name: str = "evaluation"
    datasets: tuple[str, ...] = ()  # None named: every dataset found under `data`.
    split: str = "val"
    image_size: ImageSize = field(default_factory=ImageSize)
    max_images: Positive | None = None  # Of each dataset, spread over all of it and the same in every run.
    baseline_images: Count = 500  # Train images per dataset that the blind baselines are tuned on.
    pictures: Count = 3  # Rows of the picture grid per dataset.
    num_actors: Positive | None = None  # None: two, or the one that there is room for.
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
        preset(self.preset)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives back."""

    metrics: dict[str, float]  # By MLflow name.
    means: dict[str, tuple[float, int]]  # Over all datasets' regions, and how many: by name less the dataset.
    baselines: dict[str, Baselines]  # By dataset.
    pictures: str  # Where they lie.
    run_id: str | None
    tracking_uri: str | None


def run(job: EvaluateJob, baselines: Mapping[str, Baselines] | None = None) -> Evaluation:
    """Measure every dataset, draw pictures, and log all of it to one MLflow run.

    `baselines` are those of an earlier evaluation of the same data, None to tune them.  Raises `ValueError` for a
    dataset that was not prepared, a checkpoint that cannot be read or an MLflow that cannot be had, before any worker
    starts.  Numbers are printed and stored before they are sent: an MLflow that fails by then is a line on screen.
    """
    if job.checkpoint is None and not job.untrained:
        raise ValueError("checkpoint: name the folder to evaluate, or set untrained=true for random weights")
    job = _with_stable_paths(job)
    if Folder(job.output).exists(LOG_FILE):
        raise ValueError(f"output: {job.output} is the folder of a training, with its own MLflow run; choose another")
    splits = _find_splits(job)
    if job.tracking.enabled:
        print(open_experiment(job.tracking), flush=True)
    model = ModelReference(job.checkpoint, job.preset, job.seed)
    predictor = load_predictor(model, job.image_size)
    _check_output(Folder(job.output), splits)
    with connect(workers(job)):
        fitted = dict(baselines or _baselines(job, splits, predictor.model.settings.num_levels))
        measured = _measure(job, splits, model, fitted)
    metrics = {name: value for dataset, one in measured.items() for name, value in one.compute(dataset).items()}
    total = Protocols()
    for one in measured.values():
        total.merge_sums(one.sums())
    drawn = {f"{dataset}.png": _draw(job, dataset, split, predictor) for dataset, split in splits.items()}
    pictures = {name: picture for name, picture in drawn.items() if picture is not None}
    run_id = keep(job, metrics, pictures, splits)
    return Evaluation(metrics, total.means(), fitted, job.output, run_id, job.tracking.uri if run_id else None)


def keep(
    job: EvaluateJob, metrics: dict[str, float], pictures: Mapping[str, bytes], splits: Mapping[str, Split]
) -> str | None:
    """Print and store what was found, and then send it; the MLflow run's id, None where there is none."""
    print(table(metrics), flush=True)
    output = Folder(job.output)
    output.write(MARKER, dump_config(job).encode())
    for name in (RUN_ID_FILE, TRACKING_FILE):  # Of an earlier evaluation, whose MLflow run has other numbers.
        output.remove(name)
    numbers = {"time": time.time(), "metrics": metrics, "pictures": list(pictures)}
    output.write(METRICS_FILE, orjson.dumps(numbers, option=orjson.OPT_INDENT_2))
    for name, picture in pictures.items():
        output.write(name, picture)
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


def table(metrics: dict[str, float], before: dict[str, float] | None = None) -> str:
    """The numbers as lines, each beside its blind baseline and, if given, its value before training."""
    lines = [f"{'metric':<44}{'before' if before else '':>8}{'model':>8}{'blind':>8}"]
    for name, value in metrics.items():
        if not name.startswith(BASELINE):
            blind, earlier = metrics.get(f"{BASELINE}/{name}"), (before or {}).get(name)
            lines.append(f"{name:<44}{_cell(earlier)}{_cell(value)}{_cell(blind)}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'' if value is None else f'{value:.3f}':>8}"


def _with_stable_paths(job: EvaluateJob) -> EvaluateJob:
    """The job with paths that mean the same to its workers, whatever folder they run in."""
    return replace(
        job,
        data=stable_path(job.data, "data"),
        output=stable_path(job.output, "output"),
        checkpoint=None if job.checkpoint is None else stable_path(job.checkpoint, "checkpoint"),
        tracking=stable_tracking(job.tracking),
    )


def _check_output(output: Folder, datasets: Iterable[str]) -> None:
    """Raise `ValueError` where pictures or numbers would replace those of others."""
    ours = [METRICS_FILE, *(f"{dataset}.png" for dataset in datasets)]
    taken = [name for name in ours if output.exists(name)]
    if taken and not output.exists(MARKER):
        raise ValueError(
            f"output: {output.path} holds {taken[0]!r}, which no evaluation has written; name another folder"
        )


def _find_splits(job: EvaluateJob) -> dict[str, Split]:
    names = job.datasets or tuple(d for d in SOURCES if is_prepared(f"{job.data}/{d}/{job.split}"))
    if not names:
        raise ValueError(f"{job.data}: no prepared dataset with a {job.split} split; run jobs.prepare first")
    return {name: open_split(job.data, name, job.split) for name in names}


def _baselines(job: EvaluateJob, splits: Mapping[str, Split], levels: int) -> dict[str, Baselines]:
    roots = {dataset: f"{job.data}/{dataset}/train" for dataset in splits}
    roots = {dataset: root for dataset, root in roots.items() if is_prepared(root)}
    rows = {name: _some(name, open_split(job.data, name, "train"), job.baseline_images) for name in roots}
    fitted = fit_baselines_on(roots, rows, levels, _pool(job))
    for dataset in splits.keys() - roots.keys():
        print(f"{dataset}: no train split, so no blind baselines")
        fitted[dataset] = Baselines((), 0, None, None)
    return fitted


def _measure(
    job: EvaluateJob, splits: Mapping[str, Split], model: ModelReference, baselines: Mapping[str, Baselines]
) -> dict[str, Protocols]:
    rows = {name: _some(name, split, job.max_images) for name, split in splits.items()}
    roots = {name: split.root for name, split in splits.items()}
    measured = {name: Protocols() for name in splits}
    progress = Progress("evaluate", sum(map(len, rows.values())), interval=job.progress_interval)
    found = []
    for some in measure_splits(roots, rows, model, job.image_size, baselines, _pool(job)):
        found.append(some)
        progress.add(some.images)
    progress.close()
    for some in sorted(found, key=lambda some: some.first_row):
        measured[some.dataset].merge_sums(some.protocols.sums())
    return measured


def _some(dataset: str, split: Split, limit: int | None) -> list[int]:
    """The rows to look at."""
    rows: list[int] = some_rows(dataset, len(split), len(split) if limit is None else limit).tolist()
    return rows


def workers(job: EvaluateJob) -> Workers:
    """What the job needs of a cluster."""
    return actors(job.num_actors or 1, job.gpus_per_actor, job.wait_for_resources)


def _pool(job: EvaluateJob) -> Pool:
    return Pool(job.num_actors or Pool.num_actors, job.gpus_per_actor, job.rows_per_task)


def _draw(job: EvaluateJob, dataset: str, split: Split, predictor: Predictor) -> bytes | None:
    """A PNG with a row per image, for the middle-sized region with a mask of each; None where none is found.

    Looks at a bounded number of images: a dataset of boxes has no masks in any.
    """
    use_vocabulary(predictor, split)
    rows: list[Row] = []
    for index in _some(dataset, split, LOOKED_AT * job.pictures):
        if len(rows) == job.pictures:
            break
        record = split.record(index)
        regions = list(regions_to_train(record.regions).values())
        atoms = AtomMap.from_rles([r.rle for r in regions], record.height, record.width)
        clicked = sorted(clicked_regions(regions, atoms), key=lambda one: int(atoms.areas()[one.column]))
        if not clicked:
            continue
        one = clicked[len(clicked) // 2]
        image = np.ascontiguousarray(decode_jpeg(record.image))
        predictor.set_image(image)
        names = [predictor.object_names[one.region.object_category]] if one.region.object_category is not None else []
        names += [predictor.part_names[one.region.part_category]] if one.region.part_category is not None else []
        title = (f"{dataset} {record.sample_id}", ", ".join(names))
        rows.append(click_row(predictor, image, one.click_xy, atoms.mask(one.column), title))
    return encode_png(grid(rows)) if rows else None


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last line says where the outputs are."""
    job = read_arguments(EvaluateJob, arguments, __doc__)
    with joined(workers(job)):
        result = run(job)
    place = f"MLflow run {result.run_id} at {result.tracking_uri}" if result.run_id else f"its {METRICS_FILE}"
    print(f"pictures in {result.pictures}, numbers in {place}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
