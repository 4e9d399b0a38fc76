"""From native datasets to a tracked evaluation: `python -m jobs.quickstart [<config.yaml>] [a.b=value ...]`.

    python -m jobs.quickstart output=outputs/quickstart train.training.steps=1000

Datasets in their native layouts become shards, a small model learns from all of them, and its evaluation before and
after stands in MLflow.  Without a config the datasets are the toy world, drawn for the occasion.  The steps are jobs
that can also be run on their own: the config of each is written beside its outputs, and its command line printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path

import orjson

from jobs import evaluate, prepare, train
from jobs.arguments import read_arguments
from jobs.chain import Chain, Chained, OwnFolder, announce, run_chain
from jobs.cluster import main_exit
from jobs.evaluate import EvaluateJob
from jobs.needs import Needs
from jobs.prepare import PrepareJob
from jobs.train import TrainJob
from pipelines.toy import ToySettings, write_toy_world
from semsam.config import settings
from semsam.evaluation.number_table import table as number_table
from semsam.evaluation.protocols import BASELINE

FOLDERS = ("toy", "shards", "blind", "untrained", "runs", "trained")
FILES = ("prepare.yaml", "evaluate-untrained.yaml", "train.yaml", "evaluate-trained.yaml", "summary.json")
FOLDER = OwnFolder("quickstart", "quickstart", FOLDERS, FILES)
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


def run(job: QuickstartJob) -> Chained:
    """Shards, evaluation of the untrained model, training, evaluation."""
    output = FOLDER.find(job.output)

    def begin() -> None:
        FOLDER.clear(output)
        if job.toy is not None:
            announce(f"writing the toy world to {output / 'toy'}")
            write_toy_world(output / "toy", job.toy)

    result = run_chain(_steps(job, output), output, begin)
    (output / "summary.json").write_bytes(orjson.dumps(figures(result), option=orjson.OPT_INDENT_2))
    return result


def _steps(job: QuickstartJob, output: Path) -> Chain:
    """The jobs, each with its folders below `output`."""
    shards = str(output / "shards")
    datasets = job.prepare.datasets
    if job.toy is not None:
        datasets = {name: replace(one, root=str(output / "toy" / name)) for name, one in datasets.items()}
    evaluation = replace(job.evaluate, data=shards, blind=str(output / "blind"), checkpoint=None)
    return Chain(
        prepare=replace(job.prepare, datasets=datasets, output=shards),
        before=replace(
            evaluation,
            output=str(output / "untrained"),
            untrained=True,
            preset=job.train.model.preset,
            run_name=f"{job.evaluate.run_name}-untrained",
            pictures=0,
            resamples=0,
        ),
        train=replace(
            job.train,
            data=replace(job.train.data, root=shards),
            run=replace(job.train.run, storage=str(output / "runs")),
        ),
        after=replace(evaluation, output=str(output / "trained"), untrained=False),
    )


def figures(result: Chained) -> dict[str, dict[str, float]]:
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


def report(result: Chained) -> str:
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


def needs(job: QuickstartJob) -> Needs:
    """What the job would need."""
    told = job.train.tracking.uri if job.train.tracking.enabled else None
    roots = [] if job.toy is not None else [one.root for one in job.prepare.datasets.values()]
    return Needs.of(roots, [job.output], train.workers(job.train), evaluate.workers(job.evaluate), tracking=told)


def main(arguments: Sequence[str]) -> None:
    """Run the quickstart; its last lines are the results and where they lie."""
    started = time.monotonic()
    job = read_arguments(QuickstartJob, arguments, __doc__, str(DEFAULT_CONFIG), needs=needs)
    result = run(job)
    print(f"\n{report(result)}")
    print(f"took {time.monotonic() - started:.0f} s; everything is in {job.output}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
