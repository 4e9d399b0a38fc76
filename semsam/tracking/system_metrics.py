"""CPU, memory, disk, network and GPUs of the first worker's machine, beside a training's numbers in MLflow."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any

from semsam.tracking.server import client_address, within
from semsam.tracking.tracker import Tracker

# Seconds between two looks; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes it.
EVERY = 15.0
# In the metrics' names: the machine, by who of the training is there, so that runs can be compared wherever they were;
# MLFLOW_SYSTEM_METRICS_NODE_ID changes it.
NODE = "rank-0"
_SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
_STOP_WITHIN = 2.0


class SystemMetrics:
    """Looks now and then, on a thread of MLflow's, and sends what it saw; never an error, and never waited for."""

    def __init__(self) -> None:
        self._monitor: Any = None
        self._is_off = os.environ.get(_SWITCH, "").lower() in ("false", "0")

    def keep_on(self, tracker: Tracker) -> None:
        """Start, unless it is on: MLflow's thread ends for good where it once gets no answer."""
        thread = getattr(self._monitor, "_process", None)
        if self._is_off or (thread is not None and thread.is_alive()):
            return
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
            self._monitor = SystemMetricsMonitor(
                tracker.run_id,
                sampling_interval=EVERY,
                resume_logging=True,
                node_id=NODE,
                tracking_uri=client_address(tracker.uri),
            )
            self._monitor.start()
        except Exception:  # psutil is missing, or anything else: a training has no need of it.
            self._is_off = True

    def stop(self) -> None:
        """End it; what it has not sent by then is lost."""
        if self._monitor is not None:
            with suppress(Exception):
                within(_STOP_WITHIN, self._monitor.finish)
