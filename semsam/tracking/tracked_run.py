"""What MLflow is told of a run beside its numbers, kept in the run's folder so that it can be told later."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from semsam.config import config_values
from semsam.data.manifest import Manifest
from semsam.data.sealed import seal, unseal_as
from semsam.storage import Folder
from semsam.tracking.server import RefusedError
from semsam.tracking.tracker import NOTE_TAG, RUN_ID_FILE, Tracker, TrackingSettings, identity, tracking_uri
from semsam.tracking.visible_params import DATASETS, DESCRIBED, EVALUATION, TRAINING, visible_params

TRACKING_FILE = "tracking.json"
CONFIG_FILE = "config.yaml"  # The artifact with all settings.
_CONFIG_TAG = "semsam.config"  # Which of them the artifact holds, as the beginning of its digest.
# What has made a run, as MLflow's list shows it.
_SOURCES = {"training": "jobs.train", "evaluation": "jobs.evaluate"}


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

    def open(self, folder: Folder, more: Mapping[str, Any] | None = None, shown_as: str | None = None) -> Tracker:
        """Its MLflow run, made where the folder names none, with the settings that stand in MLflow's list of runs.

        `more` are settings beside its own, `shown_as` another name for a new run.  Sent is what MLflow lacks: a run of
        an earlier version keeps the settings it has.  An MLflow run whose id a killed process could not note any more
        stays behind, empty.
        """
        run_id = read_run_id(folder)
        tracker = Tracker(self.tracking, self.name, run_id, shown_as)
        if run_id is None:
            folder.write(RUN_ID_FILE, tracker.run_id.encode())
        try:
            names = EVALUATION if self.context == "evaluation" else TRAINING
            tracker.log_params(visible_params(names, self.params | dict(more or {}), self.datasets))
            tracker.log_datasets(self.datasets, self.context)
        except RefusedError as error:  # A server that takes less than this version's; numbers matter more.
            print(f"warning: {error}", flush=True)
        return tracker

    def describe(self, tracker: Tracker, words: str) -> None:
        """Send all settings, and a description in Markdown, unless MLflow has them: somebody may have written there."""
        text = yaml.safe_dump(self.params, sort_keys=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if tracker.tags.get(_CONFIG_TAG) != digest:
            tracker.log_text(text, CONFIG_FILE)
        note = {} if tracker.tags.get(NOTE_TAG) else {NOTE_TAG: words}
        source = {"mlflow.source.name": _SOURCES[self.context], "mlflow.source.type": "LOCAL"}
        tracker.set_tags({_CONFIG_TAG: digest} | source | note)

    def training_words(self) -> str:
        """What a training is, in Markdown."""
        shown = visible_params(DESCRIBED, self.params, self.datasets)
        lines = [f"Training of `{self.name}` on {shown.get(DATASETS, 'no dataset')}.", ""]
        lines += [f"- {name}: `{value}`" for name, value in shown.items() if name != DATASETS]
        # MLflow's slider stands at 0 first, and shows an empty frame there.
        where = "Pictures of evaluations: Model metrics, section `pictures`; move the slider to a checkpoint's step."
        return "\n".join([*lines, "", f"All settings: artifact {CONFIG_FILE}. {where}"])


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
