"""Train on prepared splits: `python -m jobs.train <config.yaml> [section.field=value ...]`.

The same command again goes on after the last checkpoint of its run, and returns at once when the run is complete.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.cluster import connect, main_exit, stable_path
from jobs.track import stable_tracking
from semsam.config import Count, PlainName, Positive, config_values, load_config, parse_config, settings
from semsam.model.semantic_sam import SemanticSam
from semsam.storage import Folder, open_filesystem
from semsam.tracked_run import read_run_id
from semsam.tracking import TrackingSettings, open_experiment, tracking_uri
from semsam.tracking_address import check_address, environment_for
from semsam.training.checkpoint import checkpoint_folder
from semsam.training.engine import Worker
from semsam.training.initial_weights import start_from
from semsam.training.loop import TrainingFault
from semsam.training.recipe import Recipe
from semsam.training.resume import checkpoint_config
from semsam.training.train import check_log, train
from semsam.training.train_log import LOG_FILE, read_log
from semsam.training.training_data import TrainingData, find_checkpoint


@settings
class RunSettings:
    """Where a run's files go, `<storage>/<name>/`, and what it runs on."""

    name: PlainName = "semantic-sam"
    storage: str = "outputs/runs"  # Local, which all machines must see as the same folder, or s3://.
    num_workers: Positive = 8
    use_gpu: bool = True  # One for each worker.
    cpus_per_worker: Positive = 4
    max_failures: Count = 10  # Times that a worker may die before the job gives up.


@settings
class TrainJob(Recipe):
    """A recipe, and what trains it."""

    run: RunSettings = field(default_factory=RunSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        shares = self.run.num_workers * self.training.accumulation
        if self.training.global_batch < shares:
            raise ValueError(
                f"training.global_batch {self.training.global_batch} is less than run.num_workers "
                f"{self.run.num_workers} x training.accumulation {self.training.accumulation}: some would have nothing"
            )


@dataclass(frozen=True)
class Training:
    """What a training gives back, beside its files."""

    checkpoint: str
    log: str
    first_loss: float
    last_loss: float
    steps: int


def run(job: TrainJob) -> Training:
    """Train to the last step, going on from the run's latest checkpoint.

    Raises `ValueError`, before any worker starts, for data that is not prepared, for a checkpoint of another training,
    for weights to begin with that do not fit and for an MLflow that cannot be had when it begins; and for a sample that
    cannot be read.
    """
    job = _with_stable_paths(job)
    folder = Folder(job.run.storage) / job.run.name
    recipe = job.in_parts()
    checkpoint, step = find_checkpoint(folder, recipe, TrainingData.of(recipe))
    if checkpoint is not None:
        check_log(folder, checkpoint)
    if step < job.training.steps and job.tracking.enabled:
        _look_for_mlflow(job.tracking, folder, is_begun=step > 0)
    if step == 0 and recipe.model.init is not None:
        start_from(SemanticSam(recipe.model.resolve()), recipe.model)  # For its errors: the workers do it again.
    if step < job.training.steps:
        with connect(num_cpus=max(os.cpu_count() or 1, job.run.num_workers * job.run.cpus_per_worker), dashboard=True):
            _fit(job, folder)
    losses = [entry["loss"] for entry in read_log(folder)]
    return Training(
        checkpoint=checkpoint_folder(folder, job.training.steps).path,
        log=f"{folder.path}/{LOG_FILE}",
        first_loss=losses[0],
        last_loss=losses[-1],
        steps=job.training.steps,
    )


def _with_stable_paths(job: TrainJob) -> TrainJob:
    """The job with paths and addresses that mean the same to its workers, whatever folder they run in."""
    return replace(
        job,
        data=replace(job.data, root=stable_path(job.data.root)),
        model=replace(job.model, init=stable_path(job.model.init)) if job.model.init else job.model,
        run=replace(job.run, storage=stable_path(job.run.storage)),
        tracking=stable_tracking(job.tracking),
    )


def _look_for_mlflow(tracking: TrackingSettings, folder: Folder, is_begun: bool) -> None:
    """Raise `ValueError` where a training could not be tracked from its first step; one that goes on need not wait."""
    check_address(tracking_uri(tracking))
    if read_run_id(folder) is None and not is_begun:
        print(open_experiment(tracking), flush=True)


def _fit(job: TrainJob, folder: Folder) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    filesystem, path = open_filesystem(folder.path)
    is_local = "://" not in folder.path
    if is_local:
        Path(path).mkdir(parents=True, exist_ok=True)
    # Not in the config, which Ray shows in its dashboard.
    environment = environment_for(tracking_uri(job.tracking)) if job.tracking.enabled else {}
    trainer = TorchTrainer(
        lambda config: _work(config, environment),
        train_loop_config={"job": config_values(job)},
        scaling_config=ScalingConfig(
            num_workers=job.run.num_workers,
            use_gpu=job.run.use_gpu,
            resources_per_worker={"CPU": job.run.cpus_per_worker} | ({"GPU": 1} if job.run.use_gpu else {}),
        ),
        # Ray's own notes on this attempt.  It is told of no checkpoints: workers look for them in the run's folder,
        # for what had been reported may be lost with a controller, and what is stored may not have been reported.
        run_config=RunConfig(
            name=f"attempt-{int(time.time())}",
            storage_path=f"{path}/ray",
            storage_filesystem=None if is_local else filesystem,
            failure_config=FailureConfig(max_failures=job.run.max_failures),
        ),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise RuntimeError(_root_cause(error)) from None
    finally:
        # Ray leaves its own handler behind, which would go on asking this training's controller, ended or not.
        signal.signal(signal.SIGINT, on_interrupt)
    if result.return_value:
        raise ValueError(result.return_value)


def _work(config: dict[str, Any], environment: Mapping[str, str]) -> str | None:
    """What each worker does; returns why the training cannot go on, if so: raised, it would be tried again."""
    import ray.train
    import ray.train.torch
    import torch

    os.environ.update(environment)
    job = parse_config(TrainJob, config["job"], "the job")
    # DeepSpeed calls by its old name what this torch has renamed.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    torch.set_num_threads(job.run.cpus_per_worker)
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    folder = Folder(job.run.storage) / job.run.name
    recipe = job.in_parts()
    try:
        train(
            recipe,
            checkpoint_config(recipe, config_values(job)),
            folder,
            worker,
            job.run.name,
            job.tracking if job.tracking.enabled else None,
        )
    except TrainingFault as fault:
        return str(fault)
    return None


def _root_cause(error: Exception) -> str:
    """What the workers raised, the first of them last."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return str(error)
    return "\n".join(f"worker {rank}: {failure}" for rank, failure in sorted(failures.items(), reverse=True))


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last line says where the outputs are."""
    config, overrides = (arguments[0], arguments[1:]) if arguments and "=" not in arguments[0] else (None, arguments)
    result = run(load_config(TrainJob, config, overrides))
    print(f"loss {result.first_loss:.4f} at first, {result.last_loss:.4f} at last; log in {result.log}")
    print(f"checkpoint in {result.checkpoint}")


if __name__ == "__main__":
    # By the name under which workers can import it: what is defined in `__main__` would be sent to them by value,
    # and a settings class does not survive that.
    from jobs.train import main as importable_main

    main_exit(importable_main, sys.argv[1:])
