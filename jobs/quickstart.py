"""The whole job on the toy world: `python -m jobs.quickstart [output=<folder>] [steps=<training steps>]`.

Seven toy datasets in their native layouts become shards, a small model learns from all of them, and its evaluation
before and after stands in MLflow.  Every step is a job that can be run on its own; its command line is printed.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import orjson

from jobs import evaluate, prepare, train
from jobs.cluster import connect, main_exit
from pipelines.toy import ToySettings, write_toy_world
from semsam.config import load_config, settings
from semsam.data.manifest import Manifest
from semsam.data.schema import DATASETS
from semsam.evaluation.protocols import BASELINE

CONFIGS = Path(__file__).parent / "configs"
T = TypeVar("T")


@settings
class QuickstartJob:
    """What an earlier quickstart left in `output` is replaced; MLflow's database keeps its runs."""

    output: str = "outputs/quickstart"
    steps: int | None = None  # None: as in toy_train.yaml.
    toy: ToySettings = ToySettings(val_images=16)


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart gives back, beside its files."""

    manifests: list[Manifest]
    before: evaluate.Evaluation
    training: train.Training
    after: evaluate.Evaluation


def run(job: QuickstartJob) -> Quickstart:
    """Toy world, shards, evaluation of the untrained model, training, evaluation."""
    output = Path(job.output)
    shutil.rmtree(output, ignore_errors=True)
    toy, shards = output / "toy", output / "shards"
    with connect(dashboard=True):
        _announce("writing the toy world")
        write_toy_world(toy, job.toy)
        roots = [f"datasets.{dataset}.root={toy / dataset}" for dataset in DATASETS]
        preparing = _config(prepare.PrepareJob, "toy_prepare.yaml", [*roots, f"output={shards}"])
        manifests = prepare.run(preparing)
        before = evaluate.run(_evaluation(shards, output / "untrained", []))
        steps = [] if job.steps is None else [f"training.steps={job.steps}"]
        overrides = [f"data.root={shards}", f"run.storage={output / 'runs'}", *steps]
        training = train.run(_config(train.TrainJob, "toy_train.yaml", overrides))
        trained = [f"checkpoint={training.checkpoint}", "run_name=toy-trained"]
        after = evaluate.run(_evaluation(shards, output / "trained", trained))
    result = Quickstart(manifests, before, training, after)
    (output / "summary.json").write_bytes(orjson.dumps(figures(result), option=orjson.OPT_INDENT_2))
    return result


def figures(result: Quickstart) -> dict[str, dict[str, float]]:
    """Means over all evaluated regions of all datasets: before training, after it, and of the blind baselines."""
    names = [f"one_click/{number}" for number in ("miou_max", "miou_oracle")]
    names += ["granularity/miou_all", "box_prompt/miou", "classes/object_top1", "classes/part_top1"]
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
    lines = [prepare.table(result.manifests), "", evaluate.table(result.after.metrics, result.before.metrics), ""]
    lines.append(f"{'over all datasets':<30}{'regions':>9}{'before':>9}{'after':>9}{'blind':>9}")
    for name, row in figures(result).items():
        cells = (f"{row[c]:.3f}" if c in row else "" for c in ("before", "after", "blind"))
        lines.append(f"{name:<30}{row['regions']:>9.0f}" + "".join(f"{cell:>9}" for cell in cells))
    training = result.training
    lines.append(f"\nloss {training.first_loss:.2f} -> {training.last_loss:.2f} in {training.steps} steps")
    lines.append(f"pictures of held-out clicks: {result.after.pictures}/*.png")
    lines.append(f"checkpoint: {training.checkpoint}")
    lines.append(f"dashboard: .venv/bin/mlflow ui --backend-store-uri {result.after.tracking_uri}")
    return "\n".join(lines)


def _evaluation(shards: Path, output: Path, overrides: list[str]) -> evaluate.EvaluateJob:
    paths = [f"data={shards}", f"output={output}"]
    return _config(evaluate.EvaluateJob, "toy_evaluate.yaml", [*paths, *overrides])


def _config(kind: type[T], name: str, overrides: list[str]) -> T:
    job = kind.__module__
    _announce(" ".join(["python -m", job, f"jobs/configs/{name}", *overrides]))
    return load_config(kind, str(CONFIGS / name), overrides)


def _announce(step: str) -> None:
    print(f"\n== {step}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Run the quickstart; its last lines are the results and where they lie."""
    started = time.monotonic()
    job = load_config(QuickstartJob, None, arguments)
    result = run(job)
    print(f"\n{report(result)}")
    print(f"took {time.monotonic() - started:.0f} s; everything is in {job.output}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
