"""MLflow: one run per training or evaluation, with its resolved config and the identity of the data it saw."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from semsam.config import settings
from semsam.data.manifest import Manifest

# MLflow refuses longer parameter values.
MAX_PARAM_LENGTH = 6000


@settings
class TrackingSettings:
    """Where numbers go.  `uri` None: MLFLOW_TRACKING_URI, or else an SQLite file in the working folder."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "semantic-sam"


class Tracker:
    """One MLflow run; use as a context manager, on one process only.

    Leaving it ends the run as FINISHED, or FAILED when an exception passes.  `run_id` goes on with an earlier run, so
    that a restarted training keeps one history.
    """

    def __init__(self, tracking: TrackingSettings, run_name: str, run_id: str | None = None) -> None:
        from mlflow import MlflowClient

        self.uri = tracking_uri(tracking)
        self._client = MlflowClient(tracking_uri=self.uri)
        if run_id is None:
            experiment = self._client.get_experiment_by_name(tracking.experiment)
            if experiment:
                experiment_id = experiment.experiment_id
            else:
                experiment_id = self._client.create_experiment(tracking.experiment, _artifact_location(self.uri))
            run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id: str = run_id

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Nested values under dotted names; a value longer than MLflow takes is cut."""
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in flatten(values).items()]
        for start in range(0, len(flat), 100):  # MLflow's limit for one call.
            self._client.log_batch(self.run_id, params=flat[start : start + 100])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers of one step, in as few calls as MLflow allows."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def log_inputs(self, manifests: Sequence[Manifest], context: str) -> None:
        """The prepared splits that were read, by the digest of their shards."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        inputs = []
        for manifest in manifests:
            source = CodeDatasetSource({"root": manifest.source_root})
            # MLflow allows 36 characters of digest.
            dataset = MetaDataset(source, name=f"{manifest.dataset}/{manifest.split}", digest=manifest.digest()[:32])
            inputs.append(DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)]))
        self._client.log_inputs(self.run_id, inputs)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_bytes(self, data: bytes, name: str) -> None:
        """Store a file's bytes as an artifact, in the folder that its name says."""
        folder, _, own_name = name.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / own_name
            path.write_bytes(data)
            self.log_artifact(path, folder or None)

    def log_text(self, text: str, name: str) -> None:
        """Store text as an artifact."""
        self._client.log_text(self.run_id, text, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if error is None else "FAILED")


def tracking_uri(tracking: TrackingSettings) -> str:
    """Where MLflow keeps its runs: the settings' address, else MLFLOW_TRACKING_URI, else an SQLite file here."""
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def _artifact_location(uri: str) -> str | None:
    """Beside a database file, wherever the job was started; a tracking server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlruns").as_uri()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
