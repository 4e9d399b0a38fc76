"""What a training says of itself to Prometheus, by way of Ray's own metrics: each name below, with `ray_` before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ray.util.metrics import Gauge

from semsam.storage import Folder
from semsam.training.checkpoint import checkpoint_steps

# Seconds between publications.  Ray forgets what was not set since its last report; one is due every ten.
PUBLISH_EVERY = 4.0
# Seconds between looks for a new checkpoint: a listing, and one more request for each that is kept.
LOOK_EVERY = 30.0
NAMES = {
    "semsam_step": "Steps done",
    "semsam_images_per_second": "Images of the last step by the time from its beginning to the next one's",
    "semsam_loss": "Loss of the last step",
    "semsam_data_wait_share": "Share of the last step that waited for data",
    "semsam_checkpoint_step": "Step of the latest complete checkpoint; 0 without one",
    "semsam_checkpoint_age_seconds": "Seconds of work that a kill would cost: since the latest checkpoint was seen to "
    "be complete, or since this attempt began",
}


class Gauges:
    """The gauges of one run; use as a context manager in each worker, and call at the beginning of each step.

    The training only leaves numbers here.  A thread of the first worker publishes its own and looks for checkpoints, so
    that their age also grows in a step that hangs.  Where storage cannot be seen just then the age goes on growing: no
    training ends for a number on a dashboard.
    """

    def __init__(self, run: Folder, name: str, global_batch: int, rank: int = 0) -> None:
        self._run, self._global_batch, self._rank = run, global_batch, rank
        self._tags = {"run": name}
        self._values: dict[str, float] = {}
        self._began: float | None = None  # The step in work.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="gauges", daemon=True)

    def __call__(self, step: int) -> None:
        """Note that a step begins."""
        now = time.monotonic()
        self._values["semsam_step"] = step
        if self._began is not None:
            self._values["semsam_images_per_second"] = self._global_batch / max(now - self._began, 1e-9)
        self._began = now

    def record(self, values: Mapping[str, float]) -> None:
        """Note what a step came to: its loss, its seconds and how many of them waited for data."""
        self._values["semsam_loss"] = values["loss"]
        self._values["semsam_data_wait_share"] = values["data_wait"] / max(values["seconds"], 1e-9)

    def __enter__(self) -> Self:
        if self._rank == 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()  # And no waiting for the thread, whose storage may be away.

    def _publish(self) -> None:
        gauges = {name: Gauge(name, description=what, tag_keys=("run",)) for name, what in NAMES.items()}
        latest, since, looked = -1, time.monotonic(), float("-inf")
        while not self._ended.wait(PUBLISH_EVERY):
            now = time.monotonic()
            if now - looked > LOOK_EVERY:
                looked, found = now, self._latest(latest)
                if found != latest:
                    latest, since = found, now
            checkpoint = {"semsam_checkpoint_step": max(latest, 0), "semsam_checkpoint_age_seconds": now - since}
            for name, value in (self._values | checkpoint).items():
                gauges[name].set(value, self._tags)

    def _latest(self, known: int) -> int:
        """The step of the latest complete checkpoint; what was known where that cannot be seen."""
        try:
            return max(checkpoint_steps(self._run), default=0)
        except (ValueError, OSError):
            return known
