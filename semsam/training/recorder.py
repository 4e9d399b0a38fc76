"""The first worker's account of a run: the log, a line of progress now and then, and MLflow."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from semsam.config import config_values
from semsam.model.weight_files import Fingerprint
from semsam.storage import Folder
from semsam.tracking.tracked_run import TrackedRun
from semsam.tracking.tracker import TrackingSettings
from semsam.training.metric_queue import MEAN_OF, SAMPLES_SEEN, TIME, MetricQueue, point, points
from semsam.training.recipe import Recipe
from semsam.training.train_log import TrainLog, read_log
from semsam.training.training_data import TrainingData


class Recorder:
    """Records steps; what an interrupted attempt recorded of steps from `first` on is dropped.

    `known_log` is what the checkpoint to go on from says of the log, `num_workers` how many train; `on_record` is told
    what each step came to.
    """

    def __init__(
        self,
        recipe: Recipe,
        training_data: TrainingData,
        run: Folder,
        first: int,
        run_name: str,
        tracking: TrackingSettings | None,
        known_log: Fingerprint | None = None,
        num_workers: int = 1,
        on_record: Callable[[Mapping[str, float]], None] = lambda values: None,
    ) -> None:
        self._on_record = on_record
        self._training = recipe.training
        self._plan = training_data.plan
        self._log = TrainLog(run, first, known_log)
        self._interval: list[dict[str, Any]] = []  # Entries of the log since the last line of progress.
        begun = first % recipe.training.log_every
        if begun:  # Told as one with what an earlier attempt did of it.
            self._interval = [entry for entry in read_log(run) if entry["step"] >= first - begun]
        self._queue: MetricQueue | None = None
        if tracking is not None and tracking.enabled:
            manifests = [split.manifest for split in training_data.splits.values()]
            params = config_values(recipe) | {"run": {"num_workers": num_workers}}
            tracked = TrackedRun.of(tracking, run_name, params, manifests, "training")
            tracked.store(run)
            self._queue = MetricQueue(
                lambda: tracked.open(run),
                lambda: points(read_log(run)),
                lambda tracker: tracked.describe(tracker, tracked.training_words()),
                f"python -m jobs.track {run.path}",
            )

    def add(self, step: int, values: dict[str, float]) -> None:
        """Record a step; `values` has the loss, its terms and what else is to be said as numbers."""
        self._on_record(values)
        seen = self._plan.samples_seen(step + 1)
        entry = {"step": step, **values, SAMPLES_SEEN: seen, TIME: round(time.time(), 3)}
        self._interval.append(entry)
        done = step + 1
        is_told = done % self._training.log_every == 0 or done == self._training.steps
        self._log.add(entry | ({MEAN_OF: len(self._interval)} if is_told else {}))
        if not is_told:
            return
        interval, self._interval = self._interval, []
        loss, seconds = (float(np.mean([one[name] for one in interval])) for name in ("loss", "seconds"))
        print(
            f"step {done}/{self._training.steps}: loss {loss:.4f}, {1 / seconds:.2f} steps/s, "
            f"{self._training.global_batch / seconds:.1f} images/s, "
            f"{(self._training.steps - done) * seconds:.0f} s left",
            flush=True,
        )
        if self._queue is not None:
            self._queue.put(point(interval))

    def flush(self) -> Fingerprint:
        """Store what was recorded; what the log is known by then."""
        return self._log.flush()

    def close(self, failed: bool) -> None:
        """End the account; raises what storage does only where nothing else has ended the run."""
        fault = None
        try:
            self._log.flush()
        except OSError as error:
            fault = error
        if self._queue is not None:
            self._queue.close("FAILED" if failed or fault else "FINISHED")
        if fault is not None:
            if not failed:
                raise fault
            print(f"warning: {fault}", flush=True)


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that this process has used so far, in GB (10^9 bytes): on a GPU the GPU's, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
