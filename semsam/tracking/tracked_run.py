"""What MLflow is told of a run beside its numbers, kept in the run's folder so that it can be told later."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semsam.config import config_values
from semsam.data.manifest import Manifest
from semsam.data.sealed import seal, unseal_as
from semsam.storage import Folder
from semsam.tracking.server import RefusedError
from semsam.tracking.tracker import RUN_ID_FILE, Tracker, TrackingSettings, identity, tracking_uri

TRACKING_FILE = "tracking.json"


@dataclass(frozen=True)
class TrackedRun:
    """A training or an evaluation, as MLflow shows it; `context` says which."""

    tracking: TrackingSettings
    name: str
    params: dict[str, Any]
    datasets: list[dict[str, str]]
    context: str

    @staticmethod
    def of(
        tracking: TrackingSettings, name: str, params: Mapping[str, Any], manifests: Sequence[Manifest], context: str
    ) -> TrackedRun:
        """With an address that means the same in any folder."""
        tracking = dataclasses.replace(tracking, uri=tracking_uri(tracking))
        return TrackedRun(tracking, name, dict(params), [identity(one) for one in manifests], context)

    def store(self, folder: Folder) -> None:
        """Keep it beside the run's numbers."""
        folder.write(TRACKING_FILE, seal(config_values(self)))

    @staticmethod
    def load(folder: Folder) -> TrackedRun:
        """Raises `ValueError` where a folder holds none."""
        path = f"{folder.path}/{TRACKING_FILE}"
        data = folder.read_if_there(TRACKING_FILE)
        if data is None:
            raise ValueError(f"{path}: no such file: neither a training nor an evaluation that is tracked by MLflow")
        return unseal_as(TrackedRun, data, path, "of this version")

    def open(self, folder: Folder) -> Tracker:
        """Its MLflow run, made where the folder names none.  What is not a number is sent as far as MLflow lacks it.

        An MLflow run whose id a killed process could not note any more stays behind, empty.
        """
        run_id = read_run_id(folder)
        tracker = Tracker(self.tracking, self.name, run_id)
        if run_id is None:
            folder.write(RUN_ID_FILE, tracker.run_id.encode())
        try:
            tracker.log_params(self.params)
            tracker.log_datasets(self.datasets, self.context)
        except RefusedError as error:  # A server that takes less than this version's; numbers matter more.
            print(f"warning: {error}", flush=True)
        return tracker


def read_run_id(folder: Folder) -> str | None:
    """The id of a run's MLflow run; None where it has none yet.  Raises `RefusedError` for what is no id."""
    data = folder.read_if_there(RUN_ID_FILE)
    if data is None:
        return None
    text = data.decode("ascii", errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise RefusedError(
            f"{folder.path}/{RUN_ID_FILE}: damaged: not the id of an MLflow run; write it there again, or remove the "
            "file for a new one with all that the log has"
        )
    return text
