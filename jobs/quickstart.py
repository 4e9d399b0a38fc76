"""From native datasets to a tracked evaluation: `python -m jobs.quickstart [<config.yaml>] [a.b=value ...]`.

    python -m jobs.quickstart output=outputs/quickstart train.training.steps=1000

Datasets in their native layouts become shards, a small model learns from all of them, and its evaluation before and
after stands in MLflow.  Without a config the datasets are the toy world, drawn for the occasion.  The steps are jobs
that can also be run on their own: the config of each is written beside its outputs, and its command line printed.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import orjson

from jobs import evaluate, prepare, train
from jobs.arguments import read_arguments
from jobs.cluster import connect, main_exit, stable_path
from jobs.evaluate import EvaluateJob
from jobs.prepare import PrepareJob
from jobs.track import stable_tracking
from jobs.train import TrainJob
from pipelines.toy import ToySettings, write_toy_world
from semsam.config import dump_config, settings
from semsam.data.manifest import Manifest
from semsam.evaluation.number_table import table as number_table
from semsam.evaluation.protocols import BASELINE
from semsam.storage import S3
from semsam.tracking.tracker import open_experiment

T = TypeVar("T")
MARKER = ".quickstart"  # In a folder that a quickstart may clear of its outputs.
FOLDERS = ("toy", "shards", "blind", "untrained", "runs", "trained")
FILES = ("prepare.yaml", "evaluate-untrained.yaml", "train.yaml", "evaluate-trained.yaml", "summary.json")
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "quickstart.yaml"


@settings
class QuickstartJob:
    """The sections are those of the jobs, but for their folders: all of them lie in `output`.

    What an earlier quickstart left in `output` is replaced; any other folder must be new or empty.  MLflow's database
    keeps its runs.
    """

    prepare: PrepareJob
    output: str = "outputs/quickstart"  # On this machine.
    toy: ToySettings | None = None  # The toy world to write to the roots of `prepare`; None: something lies there.
    train: TrainJob = field(default_factory=TrainJob)
    evaluate: EvaluateJob = field(default_factory=EvaluateJob)


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart gives back, beside its files."""

    manifests: list[Manifest]
    before: evaluate.Evaluation
    training: train.Training
    after: evaluate.Evaluation


def run(job: QuickstartJob) -> Quickstart:
    """Shards, evaluation of the untrained model, training, evaluation."""
    output = _output(job)
    for tracking in (job.evaluate.tracking, job.train.tracking):
        if tracking.enabled:  # Before anything is replaced.
            open_experiment(stable_tracking(tracking))
    preparing, training, floor = _steps(job, output)
    with connect(train.workers(training), evaluate.workers(floor), dashboard=True):
        _clear(output)
        if job.toy is not None:
            _announce(f"writing the toy world to {output / 'toy'}")
            write_toy_world(output / "toy", job.toy)
        manifests = prepare.run(_store(preparing, output / "prepare.yaml"))
        before = evaluate.run(_store(floor, output / "evaluate-untrained.yaml"))
        trained = train.run(_store(training, output / "train.yaml"))
        final = replace(
            job.evaluate,
            data=floor.data,
            blind=floor.blind,
            output=str(output / "trained"),
            checkpoint=trained.checkpoint,
            untrained=False,
        )
        after = evaluate.run(_store(final, output / "evaluate-trained.yaml"))
    result = Quickstart(manifests, before, trained, after)
    (output / "summary.json").write_bytes(orjson.dumps(figures(result), option=orjson.OPT_INDENT_2))
    return result


def _output(job: QuickstartJob) -> Path:
    """The folder for all outputs.  Raises `ValueError` for one that holds anything but an earlier quickstart."""
    if job.output.startswith(S3):
        raise ValueError(f"output: {job.output}: the quickstart needs a folder of this machine")
    path = stable_path(job.output, "output")
    output = Path(path)
    try:
        found = sorted(one.name for one in output.iterdir()) if output.exists() else []
    except OSError as error:
        raise ValueError(f"output: {path}: {error.strerror}") from None
    if found and MARKER not in found:
        raise ValueError(
            f"output: {path} holds {found[0]!r}, and no quickstart has written there; name a new or empty folder"
        )
    return output


def _clear(output: Path) -> None:
    """Delete what an earlier quickstart has left, and nothing else."""
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text("jobs.quickstart has written this folder, and replaces what it wrote.\n")
    for path in (output / name for name in (*FOLDERS, *FILES)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _steps(job: QuickstartJob, output: Path) -> tuple[PrepareJob, TrainJob, EvaluateJob]:
    """The jobs, each with its folders below `output`; the evaluation is that of the untrained model."""
    shards = str(output / "shards")
    datasets = job.prepare.datasets
    if job.toy is not None:
        datasets = {name: replace(one, root=str(output / "toy" / name)) for name, one in datasets.items()}
    return (
        replace(job.prepare, datasets=datasets, output=shards),
        replace(
            job.train,
            data=replace(job.train.data, root=shards),
            run=replace(job.train.run, storage=str(output / "runs")),
        ),
        replace(
            job.evaluate,
            data=shards,
            output=str(output / "untrained"),
            blind=str(output / "blind"),
            checkpoint=None,
            untrained=True,
            preset=job.train.model.preset,
            run_name=f"{job.evaluate.run_name}-untrained",
            pictures=0,
            resamples=0,
        ),
    )


def figures(result: Quickstart) -> dict[str, dict[str, float]]:
    """Means over all evaluated regions of all datasets: before training, after it, and of the blind baselines."""
    names = [f"one_click/{number}" for number in ("miou_max", "miou_oracle")]
    names += ["granularity/miou_all", "box_prompt/miou", "classes/object_top1", "classes/part_top1"]
    names += ["panoptic/pq", "semantic/miou", "boxes/ap", "masks/ap", "parts_of_objects/ap"]
    before, after = result.before.means, result.after.means
    return {
        name: {
            column: value
            for column, value in (
                ("regions", float(after[name][1])),
                ("before", before[name][0]),
                ("after", after[name][0]),
                ("blind", after[f"{BASELINE}/{name}"][0] if f"{BASELINE}/{name}" in after else None),
            )
            if value is not None
        }
        for name in names
        if name in after
    }


def report(result: Quickstart) -> str:
    """The table that the quickstart ends with."""
    lines = [
        prepare.table(result.manifests),
        "",
        number_table(result.after.metrics, result.before.metrics, result.after.intervals),
        "",
    ]
    lines.append(f"{'over all datasets':<30}{'regions':>9}{'before':>9}{'after':>9}{'blind':>9}")
    for name, row in figures(result).items():
        cells = (f"{row[c]:.3f}" if c in row else "" for c in ("before", "after", "blind"))
        lines.append(f"{name:<30}{row['regions']:>9.0f}" + "".join(f"{cell:>9}" for cell in cells))
    training = result.training
    lines.append(f"\nloss {training.first_loss:.2f} -> {training.last_loss:.2f} in {training.steps} steps")
    lines.append(f"pictures of held-out clicks: {result.after.pictures}/*.png")
    lines.append(f"checkpoint: {training.checkpoint}")
    if result.after.tracking_uri:
        lines.append(f"dashboard: .venv/bin/mlflow ui --backend-store-uri {result.after.tracking_uri}")
    return "\n".join(lines)


def _store(job: T, path: Path) -> T:
    """The job, after its config was written to `path`, from which the printed command would run it again."""
    path.write_text(dump_config(job))
    _announce(f"python -m {type(job).__module__} {path}")
    return job


def _announce(step: str) -> None:
    print(f"\n== {step}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Run the quickstart; its last lines are the results and where they lie."""
    started = time.monotonic()
    job = read_arguments(QuickstartJob, arguments, __doc__, str(DEFAULT_CONFIG))
    result = run(job)
    print(f"\n{report(result)}")
    print(f"took {time.monotonic() - started:.0f} s; everything is in {job.output}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
