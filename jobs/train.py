"""Train on prepared splits: `python -m jobs.train <config.yaml> [section.field=value ...]`.

    python -m jobs.train jobs/configs/seven_swin_tiny.yaml data.root=/data/shards run.num_workers=4

The same command again goes on after the last checkpoint of its run, and returns at once when the run is complete.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jobs.arguments import read_arguments
from jobs.cluster import connect, joined, main_exit, stable_path
from jobs.needs import Needs
from jobs.resources import WAIT, Workers
from jobs.track import stable_tracking
from pipelines.sources import check_datasets
from semsam.config import Count, PlainName, Positive, PositiveFloat, config_values, parse_config, settings
from semsam.model.semantic_sam import SemanticSam
from semsam.storage import Folder, open_filesystem
from semsam.tracking.address import check_address, environment_for
from semsam.tracking.tracked_run import read_run_id
from semsam.tracking.tracker import TrackingSettings, open_experiment, tracking_uri
from semsam.training.attempt import RunFolder, attempt_on
from semsam.training.checkpoint import checkpoint_folder, checkpoint_steps
from semsam.training.engine import Worker
from semsam.training.faults import TrainingFault
from semsam.training.initial_weights import freeze, start_from
from semsam.training.recipe import Recipe
from semsam.training.train import check_log, train
from semsam.training.train_log import LOG_FILE, read_log
from semsam.training.training_data import TrainingData, find_checkpoint
from semsam.training.watchdog import Watchdog

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.v2.api.callback import RayTrainCallback

_SAVE_WITHIN = 180.0  # Seconds for a checkpoint before workers are added.
_NOTICE = 120.0  # Seconds of a notice that does not say when; Ray's own.
_NOTICE_GRACE = 30.0  # Seconds within which Ray has noticed that a machine is gone.


@settings
class RunSettings:
    """Where a run's files go, `<storage>/<name>/`, and what it runs on."""

    name: PlainName = "semantic-sam"
    storage: str = "outputs/runs"  # Local, which all machines must see as the same folder, or s3://.
    # Or [least, most]: as many as there is room for, fewer when a machine is lost and more when one is added.  Steps,
    # samples and losses are the same for any number.
    num_workers: Positive | tuple[Positive, Positive] = 8
    use_gpu: bool = True  # One for each worker.
    cpus_per_worker: Positive = 4
    # Times that a worker may die before the job gives up; machines that are taken away with notice do not count.
    max_failures: Count = 10
    # Seconds between looks for machines to add, where num_workers has a least and a most.
    grow_every_s: PositiveFloat = 60.0
    # Seconds that a step may take until it is said where all workers stand, and until they are ended, to go on from the
    # last checkpoint.  A wait for a checkpoint is part of a step; a start with its first step has at least these.
    stall_warning_s: PositiveFloat = 180.0
    stall_timeout_s: PositiveFloat = 900.0
    # Seconds to wait, before the training begins, for CPUs and GPUs that others use or that an autoscaler may add.
    wait_for_resources: PositiveFloat = WAIT

    def __post_init__(self) -> None:
        if self.least_workers > self.most_workers:
            raise ValueError(f"num_workers: {list(self.worker_range())}: the least is more than the most")

    def worker_range(self) -> tuple[int, int]:
        """How many workers there are at least and at most."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers

    @property
    def least_workers(self) -> int:
        return self.worker_range()[0]

    @property
    def most_workers(self) -> int:
        return self.worker_range()[1]


@settings
class TrainJob(Recipe):
    """A recipe, and what trains it."""

    run: RunSettings = field(default_factory=RunSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        check_datasets("data.plan.stages", self.data.datasets())
        check_datasets("data.sample.augmentation.scales", self.data.sample.augmentation.scales)
        shares = self.run.most_workers * self.training.accumulation
        if self.training.global_batch < shares:
            raise ValueError(
                f"training.global_batch {self.training.global_batch} is less than run.num_workers "
                f"{self.run.most_workers} x training.accumulation {self.training.accumulation}: some would have nothing"
            )


class WorkersDiedError(RuntimeError):
    """The workers died more often than they may; what they raised."""


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
    for weights to begin with that do not fit, for an MLflow that cannot be had when it begins and where another
    training writes to the run's folder; and later for what trying again would not mend (`TrainingFault`).
    """
    job = _with_stable_paths(job)
    folder = Folder(job.run.storage) / job.run.name
    _check_is_a_run(folder)
    recipe = job.in_parts()
    checkpoint, step = find_checkpoint(folder, recipe, TrainingData.of(recipe))
    if checkpoint is not None:
        check_log(folder, checkpoint)
    if step < job.training.steps and job.tracking.enabled:
        _look_for_mlflow(job.tracking, folder, is_begun=step > 0)
    if step == 0 and (recipe.model.init is not None or recipe.optimizer.frozen):
        model = SemanticSam(recipe.model.resolve())
        freeze(model, recipe.optimizer.frozen)  # Both for their errors: the workers do it again.
        start_from(model, recipe.model)
    if step < job.training.steps:
        with attempt_on(folder) as run_folder, connect(workers(job), dashboard=True):
            _fit_to_the_end(job, run_folder)
    losses = [entry["loss"] for entry in read_log(folder)]
    return Training(
        checkpoint=checkpoint_folder(folder, job.training.steps).path,
        log=f"{folder.path}/{LOG_FILE}",
        first_loss=losses[0],
        last_loss=losses[-1],
        steps=job.training.steps,
    )


def workers(job: TrainJob) -> Workers:
    """What the job needs of a cluster."""
    run = job.run
    return Workers(
        count=run.least_workers,
        cpus=run.cpus_per_worker,
        gpus=int(run.use_gpu),
        count_setting="run.num_workers",
        cpus_setting="run.cpus_per_worker",
        gpus_setting="run.use_gpu",
        wait_setting="run.wait_for_resources",
        wait=run.wait_for_resources,
        shares_cpus=True,
    )


def _check_is_a_run(folder: Folder) -> None:
    """Raise `ValueError` for a folder with checkpoints of something else: a training deletes those it cannot use."""
    steps = [name for name in folder.folders() if re.fullmatch(r"checkpoint-\d+", name)]
    if steps and not ("ray" in folder.folders() or folder.read_appended(LOG_FILE) or checkpoint_steps(folder)):
        raise ValueError(
            f"run.name: {folder.path} holds {steps[0]!r}, which no training of ours has written; choose another name"
        )


def _with_stable_paths(job: TrainJob) -> TrainJob:
    """The job with paths and addresses that mean the same to its workers, whatever folder they run in."""
    return replace(
        job,
        data=replace(job.data, root=stable_path(job.data.root, "data.root")),
        model=replace(job.model, init=stable_path(job.model.init, "model.init")) if job.model.init else job.model,
        run=replace(job.run, storage=stable_path(job.run.storage, "run.storage")),
        tracking=stable_tracking(job.tracking),
    )


def _look_for_mlflow(tracking: TrackingSettings, folder: Folder, is_begun: bool) -> None:
    """Raise `ValueError` where a training could not be tracked from its first step; one that goes on need not wait."""
    check_address(tracking_uri(tracking))
    if read_run_id(folder) is None and not is_begun:
        print(open_experiment(tracking), flush=True)


def _fit_to_the_end(job: TrainJob, folder: RunFolder) -> None:
    """Train until the last step; workers may die `max_failures` times in a row without a new checkpoint."""
    while True:
        before = checkpoint_steps(folder)[-1:]
        try:
            _fit(job, folder)
        except WorkersDiedError:
            if checkpoint_steps(folder)[-1:] <= before:
                raise
            print(
                "workers died more often than run.max_failures, but not without a new checkpoint: on from there",
                flush=True,
            )
            continue
        found = checkpoint_steps(folder)[-1:]
        if found != [job.training.steps]:
            raise RuntimeError(f"{folder.path}: the workers ended after checkpoint {found}, not {job.training.steps}")
        return


def _fit(job: TrainJob, folder: RunFolder) -> None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    if job.run.least_workers < job.run.most_workers:
        # How long it is tried to start as many workers as before a machine was lost, of which Ray hears after a while.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    filesystem, path = open_filesystem(folder.path)
    # Not in the config, which Ray shows in its dashboard.
    environment = environment_for(tracking_uri(job.tracking)) if job.tracking.enabled else {}
    trainer = TorchTrainer(
        lambda config: _work(config, environment),
        train_loop_config={"job": config_values(job), "attempt": folder.attempt},
        scaling_config=ScalingConfig(
            num_workers=job.run.num_workers,
            elastic_resize_monitor_interval_s=job.run.grow_every_s,
            use_gpu=job.run.use_gpu,
            resources_per_worker={"CPU": job.run.cpus_per_worker} | ({"GPU": 1} if job.run.use_gpu else {}),
        ),
        # Ray's own notes on this attempt.  It is told of no checkpoints: workers look for them in the run's folder,
        # for what had been reported may be lost with a controller, and what is stored may not have been reported.
        run_config=RunConfig(
            name=f"attempt-{int(time.time())}",
            storage_path=f"{path}/ray",
            storage_filesystem=None if folder.is_local else filesystem,
            failure_config=FailureConfig(max_failures=job.run.max_failures),
            # Its warnings are of a busy machine, with stacks; what matters of them is said by `_deaths`.
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[_deaths(), _saving_before_resizes(folder)],
        ),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise WorkersDiedError(_root_cause(error)) from None
    except SystemExit:  # Of Ray's handler of Ctrl-C, when the workers are gone: with status 0.
        raise KeyboardInterrupt from None
    finally:
        # Ray leaves its own handler behind, which would go on asking this training's controller, ended or not.
        signal.signal(signal.SIGINT, on_interrupt)
    if result.return_value:
        raise ValueError(result.return_value)


def _deaths() -> UserCallback:
    """Says why workers are started again, which Ray Train says at a level of its log that also has much else."""
    from ray.train import UserCallback

    class Deaths(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for rank, error in sorted(worker_exceptions.items()):
                lines = str(error).strip().splitlines() or [type(error).__name__]
                print(f"worker {rank} ended: {lines[0]}", flush=True)

    return Deaths()


def _saving_before_resizes(folder: RunFolder) -> RayTrainCallback:
    """Has a checkpoint written before workers are changed for more of them, who go on from there."""
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller.state import ResizingState

    class SavingBeforeResizes(ControllerCallback):
        is_resize = False  # Rather than a start.

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            self.is_resize = self.is_resize or isinstance(current_state, ResizingState)

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            if not self.is_resize:
                return
            self.is_resize = False
            print(f"{resize_decision.num_workers} workers from now on, after a checkpoint", flush=True)
            deadline = time.monotonic() + _SAVE_WITHIN
            try:
                before = checkpoint_steps(folder)[-1:]
                folder.ask_to_save()
                while checkpoint_steps(folder)[-1:] == before and time.monotonic() < deadline:
                    time.sleep(0.5)
            except (OSError, ValueError) as error:  # Then they go on from the checkpoint that there is.
                print(f"warning: {error}", flush=True)

    return SavingBeforeResizes()


def _work(config: dict[str, Any], environment: Mapping[str, str]) -> str | None:
    """What each worker does; returns why the training cannot go on, if so: raised, it would be tried again."""
    import ray.train
    import ray.train.torch
    import torch

    from jobs.gauges import Gauges

    os.environ.update(environment)
    job = parse_config(TrainJob, config["job"], "the job")
    # DeepSpeed calls by its old name what this torch has renamed.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    torch.set_num_threads(job.run.cpus_per_worker)
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    folder = RunFolder(f"{job.run.storage}/{job.run.name}", config["attempt"])
    tracking = job.tracking if job.tracking.enabled else None
    notices = _Notices() if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0" else None
    try:
        with (
            Watchdog(worker, job.run.stall_warning_s, job.run.stall_timeout_s) as watchdog,
            Gauges(folder, job.run.name, job.training.global_batch, worker.rank) as gauges,
        ):

            def on_step(step: int) -> None:
                watchdog(step)
                gauges(step)

            recipe, values = job.in_parts(), config_values(job)
            train(recipe, values, folder, worker, job.run.name, tracking, on_step, notices, gauges.record)
    except TrainingFault as fault:
        return str(fault)
    except Exception:
        if notices is not None:
            notices.wait_for_the_end()
        raise
    return None


class _Notices:
    """What Ray knows of machines that will be taken away; calling it is a barrier."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._until = 0.0  # Seconds since 1970.

    def __call__(self) -> str:
        """The machines that it has not named before, in words."""
        import ray.train

        info = ray.train.get_preemption_info()
        new = set() if info is None else set(info.preempted_node_ids) - self._known
        if not new:
            return ""
        self._known |= new
        left = _NOTICE if info.deadline_ms is None else max(info.deadline_ms / 1000 - time.time(), 0)
        self._until = max(self._until, time.time() + left)
        ranks = sorted(rank for node in new for rank in info.preempted_node_to_ranks[node])
        return f"the machine of worker {', '.join(map(str, ranks))} will be taken away in {left:.0f} s"

    def wait_for_the_end(self) -> None:
        """Return some time after all machines that were named are gone; by then Ray has ended this worker.

        One whose peer is taken away fails, and would be counted among the failures if it said so before Ray knows that
        the peer's machine is gone.
        """
        while time.time() < self._until + _NOTICE_GRACE:
            time.sleep(1)


def _root_cause(error: Exception) -> str:
    """What the workers raised, the first of them last."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return str(error)
    return "\n".join(f"worker {rank}: {failure}" for rank, failure in sorted(failures.items(), reverse=True))


def needs(job: TrainJob) -> Needs:
    """What the job would need."""
    told = job.tracking.uri if job.tracking.enabled else None
    written = f"{job.run.storage}/{job.run.name}" if job.run.name else job.run.storage
    return Needs.of([job.data.root, job.model.init], [written], workers(job), tracking=told)


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last line says where the outputs are."""
    job = read_arguments(TrainJob, arguments, __doc__, needs=needs)
    with joined(workers(job)):
        result = run(job)
    print(f"loss {result.first_loss:.4f} at first, {result.last_loss:.4f} at last; log in {result.log}")
    print(f"checkpoint in {result.checkpoint}")


if __name__ == "__main__":
    # By the name under which workers can import it: what is defined in `__main__` would be sent to them by value,
    # and a settings class does not survive that.
    from jobs.train import main as importable_main

    main_exit(importable_main, sys.argv[1:])
