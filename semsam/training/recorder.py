"""The first worker's account of a run: the log, a line of progress now and then, and MLflow."""

from __future__ import annotations

import resource

import numpy as np
import torch

from semsam.config import config_values
from semsam.model.weight_files import Fingerprint
from semsam.storage import Folder
from semsam.tracking import Tracker, TrackingSettings
from semsam.training.recipe import Recipe
from semsam.training.train_log import TrainLog
from semsam.training.training_data import TrainingData

RUN_ID_FILE = "mlflow_run_id"


class Recorder:
    """Records steps; what an interrupted attempt recorded of steps from `first` on is dropped.

    `known_log` is what the checkpoint to go on from says of the log.
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
    ) -> None:
        self._training = recipe.training
        self._plan = training_data.plan
        self._log = TrainLog(run, first, known_log)
        self._interval: list[dict[str, float]] = []
        self._tracker: Tracker | None = None
        if tracking is not None and tracking.enabled:
            run_id = run.read(RUN_ID_FILE).decode() if run.exists(RUN_ID_FILE) else None
            self._tracker = Tracker(tracking, run_name, run_id)
            if run_id is None:
                run.write(RUN_ID_FILE, self._tracker.run_id.encode())
                self._tracker.log_params(config_values(recipe))
                self._tracker.log_inputs(
                    [split.manifest for split in training_data.splits.values()], context="training"
                )

    def add(self, step: int, values: dict[str, float]) -> None:
        """Record a step; `values` has the loss, its terms and what else is to be said as numbers."""
        seen = self._plan.samples_seen(step + 1)
        self._log.add({"step": step, **values, "samples_seen": seen})
        self._interval.append(values)
        done = step + 1
        if done % self._training.log_every and done != self._training.steps:
            return
        mean = {name: float(np.mean([one[name] for one in self._interval])) for name in values}
        self._interval = []
        rate = 1 / mean["seconds"]
        print(
            f"step {done}/{self._training.steps}: loss {mean['loss']:.4f}, {rate:.2f} steps/s, "
            f"{rate * self._training.global_batch:.1f} images/s, {(self._training.steps - done) / rate:.0f} s left",
            flush=True,
        )
        if self._tracker is not None:
            numbers = {f"train/{name}": value for name, value in mean.items()}
            self._tracker.log_metrics(numbers | {f"samples_seen/{k}": float(v) for k, v in seen.items()}, done)

    def flush(self) -> Fingerprint:
        """Store what was recorded; what the log is known by then."""
        return self._log.flush()

    def close(self, failed: bool) -> None:
        """End the account."""
        self._log.flush()
        if self._tracker is not None:
            error = RuntimeError() if failed else None
            self._tracker.__exit__(type(error) if error else None, error, None)


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that this process has used so far, in GB (10^9 bytes): on a GPU the GPU's, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
