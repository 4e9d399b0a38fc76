"""What the quickstart and a fine-tuning share: preparing, an evaluation, a training, and an evaluation again.

All of it runs in one process and on one cluster, into one folder of this machine; the config of each job is written
beside its outputs, and its command line printed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from jobs import evaluate, prepare, train
from jobs.cluster import connect, stable_path
from jobs.evaluate import EvaluateJob
from jobs.prepare import PrepareJob
from jobs.track import stable_tracking
from jobs.train import TrainJob
from semsam.config import dump_config
from semsam.data.manifest import Manifest
from semsam.storage import S3
from semsam.tracking.tracker import open_experiment

T = TypeVar("T")


@dataclass(frozen=True)
class Chain:
    """The jobs, each with its own folder; `after` is given the training's checkpoint."""

    prepare: PrepareJob
    before: EvaluateJob
    train: TrainJob
    after: EvaluateJob


@dataclass(frozen=True)
class Chained:
    """What a chain gives back, beside its files."""

    manifests: list[Manifest]
    before: evaluate.Evaluation
    training: train.Training
    after: evaluate.Evaluation


def run_chain(chain: Chain, output: Path, begin: Callable[[], None]) -> Chained:
    """Shards, the evaluation before, training, the evaluation after.

    `begin` is called when MLflow and the cluster are there, before anything is written.
    """
    for tracking in (chain.after.tracking, chain.train.tracking):
        if tracking.enabled:
            open_experiment(stable_tracking(tracking))
    with connect(train.workers(chain.train), evaluate.workers(chain.before), dashboard=True):
        begin()
        manifests = prepare.run(_store(chain.prepare, output / "prepare.yaml"))
        before = evaluate.run(_store(chain.before, output / _file_of(chain.before)))
        trained = train.run(_store(chain.train, output / "train.yaml"))
        last = replace(chain.after, checkpoint=trained.checkpoint)
        after = evaluate.run(_store(last, output / _file_of(last)))
    return Chained(manifests, before, trained, after)


@dataclass(frozen=True)
class OwnFolder:
    """The output of a chain: of others' files it takes none, and what it wrote itself it knows."""

    job: str  # "quickstart", of `jobs.quickstart`.
    called: str  # In a message: "the quickstart".
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def marker(self) -> str:
        """A file in every folder that such a chain has written."""
        return f".{self.job}"

    def find(self, path: str) -> Path:
        """The folder.  Raises `ValueError` for one that holds anything but what an earlier chain has left."""
        if path.startswith(S3):
            raise ValueError(f"output: {path}: the {self.called} needs a folder of this machine")
        path = stable_path(path, "output")
        output = Path(path)
        try:
            found = sorted(one.name for one in output.iterdir()) if output.exists() else []
        except OSError as error:
            raise ValueError(f"output: {path}: {error.strerror}") from None
        if found and self.marker not in found:
            raise ValueError(
                f"output: {path} holds {found[0]!r}, and no {self.called} has written there; name a new or empty folder"
            )
        return output

    def mark(self, output: Path, does: str) -> None:
        """Say whose the folder is, and what the job does with it."""
        output.mkdir(parents=True, exist_ok=True)
        (output / self.marker).write_text(f"jobs.{self.job} has written this folder, and {does}.\n")

    def clear(self, output: Path) -> None:
        """Delete what an earlier chain has left, and nothing else."""
        self.mark(output, "replaces what it wrote")
        for path in (output / name for name in (*self.folders, *self.files)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def announce(step: str) -> None:
    """Say what comes now."""
    print(f"\n== {step}", flush=True)


def _file_of(job: EvaluateJob) -> str:
    return f"evaluate-{Path(job.output).name}.yaml"


def _store(job: T, path: Path) -> T:
    """The job, after its config was written to `path`, from which the printed command would run it again."""
    path.write_text(dump_config(job))
    announce(f"python -m {type(job).__module__} {path}")
    return job
