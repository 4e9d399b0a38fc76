"""Evaluate a checkpoint on prepared splits: `python -m jobs.evaluate [<config.yaml>] [section.field=value ...]`.

    python -m jobs.evaluate checkpoint=/data/runs/seven/checkpoint-368750 data=/data/shards output=/data/evaluation

Numbers go to MLflow, each beside that of a guess that has not seen the image, and so do pictures.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain

import orjson

from jobs.arguments import read_arguments
from jobs.cluster import connect, joined, main_exit, stable_path
from jobs.evaluation_run import METRICS_FILE, EvaluationFile, send_evaluation
from jobs.follow import follow
from jobs.resources import WAIT, Workers, actors
from jobs.track import stable_tracking
from pipelines.evaluate.evaluate import Manifests, ask_model, fit_baselines, guess_blindly
from pipelines.evaluate.item_files import ItemManifest, ItemTask, item_task, read_manifest
from pipelines.model_pool import ModelReference, Pool, load_predictor, use_vocabulary, weights_digest
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
from semsam.data.row_order import some_rows
from semsam.data.schema import Record
from semsam.data.sealed import seal, unseal_as
from semsam.data.shards import Split, is_prepared, open_split
from semsam.evaluation.baselines import Baselines
from semsam.evaluation.class_tables import class_rows, class_tables
from semsam.evaluation.dataset_numbers import FOUND, HEADLINES, DatasetNumbers, measure_dataset
from semsam.evaluation.extremes import picture_name
from semsam.evaluation.items import ImageItem
from semsam.evaluation.pictures import Row, encode_png, grid
from semsam.evaluation.protocols import BASELINE, means_of, metric_name
from semsam.evaluation.questions import Questions
from semsam.evaluation.shown import draw_click, draw_found, ends_of, middle_click, worst_click
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

LOOKED_AT = 20  # Images, for each one in the picture.
MARKER = "evaluation.yaml"  # Beside the pictures: how they were made, and that they are ours.
MOST_ENDS = 12  # Images of a dataset that are drawn because a protocol is at its best or worst on them.
ITEMS = "items"  # The folder of what was answered, a folder for each dataset.
FIT_FILE = "baselines.json"  # Beside what was guessed with them.


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
    Folder(job.output).write(MARKER, dump_config(job).encode())
    with connect(workers(job)):
        tasks = _tasks(job, splits, predictor)
        asked = ask_model(tasks, model, job.image_size, job.questions, _pool(job), job.progress_interval)
        blind = _guess(job, splits, predictor.model.settings.num_levels)
    _check_left_out(job, asked)
    numbers = {name: measure_folder(f"{job.output}/{ITEMS}/{name}") for name in splits}
    guessed = {name: measure_folder(f"{_blind_folder(job)}/{name}", is_blind=True) for name in blind}
    pictures: dict[str, bytes] = {}
    figures: dict[str, bytes] = {}
    tables: dict[str, bytes] = {}
    for name, split in splits.items():
        pictures |= _draw(job, name, split, asked[name], numbers[name], predictor)
        figures |= {f"figures/{name}/{kind}.png": data for kind, data in _figures(job, numbers[name]).items()}
        tables |= {f"tables/{name}/{file}": data for file, data in class_tables(class_rows(numbers[name])).items()}
    found = EvaluationFile(
        time=time.time(),
        metrics={**flat(numbers), **flat(guessed, is_blind=True)},
        intervals=_intervals(job, numbers),
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


def _figures(job: EvaluateJob, numbers: DatasetNumbers) -> dict[str, bytes]:
    if not job.pictures:
        return {}
    from semsam.evaluation.figures import figures_of  # Matplotlib, which nobody else needs.

    return figures_of(numbers)


def _intervals(job: EvaluateJob, numbers: Mapping[str, DatasetNumbers]) -> dict[str, tuple[float, float]]:
    return {
        metric_name(f"{protocol}/{name}", dataset): (interval.low, interval.high)
        for dataset, found in numbers.items()
        for protocol, some in found.intervals(job.resamples).items()
        for name, interval in some.items()
    }


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


def measure_folder(path: str, *, is_blind: bool = False) -> DatasetNumbers:
    """The numbers of a dataset's items.  Raises `ValueError` where these are not complete."""
    folder = Folder(path)
    manifest = read_manifest(folder)
    return measure_dataset(manifest.items(folder), manifest.vocabulary, is_blind=is_blind, trained=manifest.trained)


def over_datasets(numbers: Mapping[str, DatasetNumbers]) -> dict[str, tuple[float, int]]:
    """Means over all regions that were asked for, and over datasets; see `Evaluation`."""
    means = means_of(one.prompts.sums() for one in numbers.values())
    found: dict[str, list[float]] = {}
    for one in numbers.values():
        for protocol in FOUND:
            for name in HEADLINES[protocol] if protocol in one.protocols else ():
                if name in one.protocols[protocol].values:
                    found.setdefault(f"{protocol}/{name}", []).append(one.protocols[protocol].values[name])
    return means | {name: (sum(values) / len(values), len(values)) for name, values in sorted(found.items())}


def flat(numbers: Mapping[str, DatasetNumbers], *, is_blind: bool = False) -> dict[str, float]:
    """Every number by its name in MLflow."""
    return {
        metric_name(f"{protocol}/{name}", dataset, is_blind): value
        for dataset, found in numbers.items()
        for protocol, one in found.protocols.items()
        for name, value in one.values.items()
    }


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


def table(
    metrics: Mapping[str, float],
    before: Mapping[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """The headline numbers as lines, each beside its interval, its blind baseline and its value before training."""
    lines = [f"{'metric':<44}{'before' if before else '':>8}{'model':>8}{'95%' if intervals else '':>16}{'blind':>8}"]
    for name, value in metrics.items():
        protocol, _, rest = name.partition("/")
        if rest.rpartition("/")[2] in HEADLINES.get(protocol, ()):
            blind, earlier = metrics.get(f"{BASELINE}/{name}"), (before or {}).get(name)
            low, high = (intervals or {}).get(name, (None, None))
            between = "" if low is None else f"{low:.3f} to {high:.3f}"
            lines.append(f"{name:<44}{_cell(earlier)}{_cell(value)}{between:>16}{_cell(blind)}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'' if value is None else f'{value:.3f}':>8}"


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
    """Raise `ValueError` where pictures or numbers would replace those of others."""
    ours = [METRICS_FILE, *(f"{dataset}{name}.png" for dataset in datasets for name in ("", "-found"))]
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


def _tasks(job: EvaluateJob, splits: Mapping[str, Split], predictor: Predictor) -> dict[str, ItemTask]:
    asked = {
        "model": weights_digest(predictor.model),
        "image_size": config_values(job.image_size),
        "questions": config_values(job.questions),
        "trained": None if job.checkpoint is None else trained_names(Folder(job.checkpoint)),
    }
    return {
        name: item_task(
            split, _some(name, split, job.max_images), job.rows_per_task, f"{job.output}/{ITEMS}/{name}", asked
        )
        for name, split in splits.items()
    }


def _guess(job: EvaluateJob, splits: Mapping[str, Split], levels: int) -> Manifests:
    """What is guessed without seeing an image, after tuning it on the train splits."""
    where = _blind_folder(job)
    baselines = _baselines(job, where, splits, levels)
    tasks = {}
    for name, split in splits.items():
        asked = {"baselines": asdict(baselines[name]), "questions": config_values(job.questions), "levels": levels}
        rows = _some(name, split, job.max_images)
        tasks[name] = item_task(split, rows, job.rows_per_task, f"{where}/{name}", asked)
    return guess_blindly(tasks, baselines, job.questions, levels)


def _blind_folder(job: EvaluateJob) -> str:
    return job.blind or f"{job.output}/blind"


def _baselines(job: EvaluateJob, where: str, splits: Mapping[str, Split], levels: int) -> dict[str, Baselines]:
    """The blind baselines of every dataset: those that lie there already if they were tuned on the same images."""
    found: dict[str, Baselines] = {}
    missing, made_from = {}, {}
    for name in splits:
        root = f"{job.data}/{name}/train"
        if not is_prepared(root):
            print(f"{name}: no train split, so no blind baselines")
            found[name] = Baselines()
            continue
        train = open_split(job.data, name, "train")
        rows = _some(name, train, job.baseline_images)
        made_from[name] = f"{train.manifest.digest()} {len(rows)} {levels}"
        kept = _kept_baselines(Folder(f"{where}/{name}"))
        if kept is not None and kept.made_from == made_from[name]:
            found[name] = kept.baselines
        else:
            missing[name] = (root, rows)
    for name, baselines in fit_baselines(missing, levels, job.rows_per_task).items() if missing else ():
        found[name] = baselines
        Folder(f"{where}/{name}").write(FIT_FILE, seal(asdict(_KeptBaselines(made_from[name], baselines))))
    return found


@dataclass(frozen=True)
class _KeptBaselines:
    made_from: str  # Of which train images, and for how many levels.
    baselines: Baselines


def _kept_baselines(folder: Folder) -> _KeptBaselines | None:
    data = folder.read_if_there(FIT_FILE)
    try:
        return None if data is None else unseal_as(_KeptBaselines, data, FIT_FILE, "blind baselines")
    except ValueError:  # Damaged, or of another version: tuned anew.
        return None


def _check_left_out(job: EvaluateJob, asked: Manifests) -> None:
    """Name the images that ended their worker; `RuntimeError` where there are more than the job allows."""
    left_out = [(dataset, one) for dataset, manifest in asked.items() for one in manifest.left_out]
    lines = [f"{dataset} {one.sample_id}: {one.reason} ({one.detail})" for dataset, one in left_out]
    for line in lines:
        print(f"left out: {line}", flush=True)
    if len(left_out) > job.max_left_out:
        raise RuntimeError(
            f"{len(left_out)} images are left out, more than max_left_out = {job.max_left_out}: {lines[0]}"
        )


def _some(dataset: str, split: Split, limit: int | None) -> list[int]:
    """The rows to look at."""
    rows: list[int] = some_rows(dataset, len(split), len(split) if limit is None else limit).tolist()
    return rows


def workers(job: EvaluateJob) -> Workers:
    """What the job needs of a cluster."""
    return actors(job.num_actors or 1, job.gpus_per_actor, job.wait_for_resources)


def _pool(job: EvaluateJob) -> Pool:
    return Pool(job.num_actors or Pool.num_actors, job.gpus_per_actor, job.rows_per_task)


def _draw(
    job: EvaluateJob, dataset: str, split: Split, asked: ItemManifest, numbers: DatasetNumbers, predictor: Predictor
) -> dict[str, bytes]:
    """PNGs by name: the same clicks in every evaluation; what is found; and images that a protocol is at its ends on.

    Looks at a bounded number of images: a dataset of boxes has no masks in any.
    """
    if not job.pictures:
        return {}
    use_vocabulary(predictor, split)
    found: dict[str, list[Row]] = {}
    for row in _some(dataset, split, LOOKED_AT * job.pictures):
        if len(found.get(f"{dataset}.png", ())) == job.pictures:
            break
        record = split.record(row)
        click = middle_click(record, row)
        if click is not None:
            found.setdefault(f"{dataset}.png", []).append(draw_click(predictor, record, click))
    if not asked.left_out:  # Positions among the answered images are those among the rows.
        rows, ends = _some(dataset, split, job.max_images), ends_of(numbers, MOST_ENDS)
        items = chain.from_iterable(asked.items(Folder(f"{job.output}/{ITEMS}/{dataset}")))
        for image, (row, item) in enumerate(zip(rows, items, strict=False)):
            if image < job.pictures and item.instances is not None:
                found.setdefault(f"{dataset}-found.png", []).append(draw_found(predictor, split.record(row), item))
            if image in ends:
                drawn = _draw_image(predictor, split.record(row), item, image)
                found[picture_name(dataset, item.sample_id)] = drawn
    return {name: encode_png(grid(some)) for name, some in found.items() if some}


def _draw_image(predictor: Predictor, record: Record, item: ImageItem, image: int) -> list[Row]:
    """What is found in an image, and the click that was answered worst."""
    click = worst_click(item, image)
    clicked = [draw_click(predictor, record, click)] if click is not None else []
    return [draw_found(predictor, record, item), *clicked] if item.instances is not None else clicked


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last line says where the outputs are."""
    job = read_arguments(EvaluateJob, arguments, __doc__)
    with joined(workers(job)):
        result = run(job)
    place = f"MLflow run {result.run_id} at {result.tracking_uri}" if result.run_id else f"its {METRICS_FILE}"
    print(f"pictures in {result.pictures}, numbers in {place}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
