"""MLflow: one run per training or evaluation, with its resolved config and the identity of the data it saw."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from semsam.config import settings
from semsam.data.manifest import Manifest
from semsam.tracking.address import VARIABLE, Address, check_address, sqlite_path, without_secrets
from semsam.tracking.server import (
    OPEN_WITHIN,
    RefusedError,
    TrackingError,
    client_for,
    is_refusal,
    named_errors,
    probe,
    within,
)

T = TypeVar("T")

# MLflow refuses longer parameter values, and larger batches.
MAX_PARAM_LENGTH = 6000
MAX_PARAMS = 100
MAX_METRICS = 1000
# Which MLflow run a run's folder belongs to; in MLflow, whose it is, and the metric that every point of a training has.
RUN_ID_FILE = "mlflow_run_id"
NAME_TAG = "semsam.run"
NOTE_TAG = "mlflow.note.content"  # What MLflow shows as the description of a run or a model, in Markdown.
LOSS = "train/loss"


@settings
class TrackingSettings:
    """Where numbers go.  `uri` None: MLFLOW_TRACKING_URI, or else an SQLite file in the working folder.

    User and password in an address are used and nowhere stored; MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and
    MLFLOW_TRACKING_TOKEN do as well.
    """

    enabled: bool = True
    uri: Address | None = None
    experiment: str = "semantic-sam"


@dataclass(frozen=True)
class Point:
    """Numbers of one moment of a run."""

    step: int
    time: float  # Unix time in seconds.
    values: dict[str, float]


@dataclass(frozen=True)
class Tie:
    """What a number was measured of: MLflow's id of a model, and the data as `identity` names them."""

    model_id: str
    dataset_name: str | None = None
    dataset_digest: str | None = None


class Tracker:
    """One MLflow run; use as a context manager, on one process only.

    Leaving it ends the run as FINISHED, or FAILED when an exception passes.  `run_id` goes on with an earlier run, so
    that a restarted training keeps one history.  Every method raises `TrackingError` where MLflow fails, after a
    minute at most, and `RefusedError` for what would fail again.  Of a training it knows the last step that MLflow has.
    A new run is shown under its name, or another, and as one of now, or of the Unix time `at` in seconds.
    """

    def __init__(
        self,
        tracking: TrackingSettings,
        run_name: str,
        run_id: str | None = None,
        shown_as: str | None = None,
        at: float | None = None,
    ) -> None:
        self.uri = tracking_uri(tracking)
        self._at = None if at is None else round(at * 1000)
        check_address(self.uri)
        with self._named():
            probe(self.uri)
            self._client = client_for(self.uri)
            if run_id is None:
                experiment = _experiment(self._client, tracking)
                run = self._client.create_run(
                    experiment, self._at, tags={NAME_TAG: run_name}, run_name=shown_as or run_name
                )
            else:
                run = self._known(run_id)
        self._check(run, run_name)
        self.run_id: str = run.info.run_id
        self.status: str = run.info.status  # Before this process changed it.
        self.last_step: int = max((one.step for one in run.data._metric_objs if one.key == LOSS), default=-1)
        self.experiment_id: str = run.info.experiment_id
        self.tags: dict[str, str] = dict(run.data.tags)
        self.metrics: dict[str, float] = run.data.metrics  # The latest of each, when it was opened.
        self._params = run.data.params
        self._inputs = {one.dataset.name for one in run.inputs.dataset_inputs} if run.inputs else set()
        # Ids of the models that it measured or made, which MLflow would list again as often as it is told of them.
        self._models_in = {one.model_id for one in (run.inputs.model_inputs or ())} if run.inputs else set()
        self._models_out = {one.model_id for one in (run.outputs.model_outputs or ())} if run.outputs else set()

    def _known(self, run_id: str) -> Any:
        try:
            with self._named():
                return self._client.get_run(run_id)
        except RefusedError as error:
            raise RefusedError(f"{error}; remove {RUN_ID_FILE} for a new one") from None

    def _check(self, run: Any, run_name: str) -> None:
        where, run_id = f"tracking.uri: MLflow at {self.uri}", run.info.run_id
        if run.info.lifecycle_stage != "active":
            raise RefusedError(
                f"{where}: run {run_id} was deleted there; restore it, or remove {RUN_ID_FILE} for a new one"
            )
        owner = run.data.tags.get(NAME_TAG, run_name)
        if owner != run_name:
            raise RefusedError(
                f"{where}: run {run_id} is that of {owner}, not of {run_name}; remove {RUN_ID_FILE} for a new one"
            )

    def ask(self, action: Callable[[Any], T]) -> T:
        """What `action` gets from MLflow's client; errors are named as those of every method."""
        with self._named():
            return action(self._client)

    def set_status(self, status: str) -> None:
        """RUNNING, FINISHED or FAILED."""
        with self._named():
            if status == "RUNNING":
                self._client.update_run(self.run_id, status=status)
            else:
                self._client.set_terminated(self.run_id, status, self._at)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set those that are not so yet."""
        from mlflow.entities import RunTag

        changed = {name: value for name, value in tags.items() if self.tags.get(name) != value}
        if changed:
            with self._named():
                self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in changed.items()])
            self.tags.update(changed)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Nested values under dotted names, those that MLflow has not; a longer value than it takes is cut."""
        from mlflow.entities import Param

        flat = [
            Param(name, str(value)[:MAX_PARAM_LENGTH])
            for name, value in flatten(values).items()
            if name not in self._params
        ]
        with self._named():
            for start in range(0, len(flat), MAX_PARAMS):
                self._client.log_batch(self.run_id, params=flat[start : start + MAX_PARAMS])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers of one step, in as few calls as MLflow allows."""
        from mlflow.utils.time import get_current_time_millis

        self.log_points([Point(step, get_current_time_millis() / 1000, dict(values))])

    def log_points(self, points: Sequence[Point], ties: Mapping[str, Tie] | None = None) -> None:
        """Numbers of several steps in their order.  A call holds whole points, so that MLflow has all of one or none.

        The same point again is the same row to MLflow.  `ties` says of some numbers, by name, what they are of.
        """
        from mlflow.entities import Metric

        tied = {name: dataclasses.asdict(tie) for name, tie in (ties or {}).items()}
        batch: list[Metric] = []
        for point in points:
            when = round(point.time * 1000)
            metrics = [
                Metric(name, float(value), when, point.step, **tied.get(name, {}))
                for name, value in point.values.items()
            ]
            if len(batch) + len(metrics) > MAX_METRICS:
                self._log_metrics(batch)
                batch = []
            batch += metrics
        self._log_metrics(batch)

    def _log_metrics(self, batch: Sequence[Any]) -> None:
        with self._named():
            for start in range(0, len(batch), MAX_METRICS):
                self._client.log_batch(self.run_id, metrics=batch[start : start + MAX_METRICS])

    def log_inputs(self, manifests: Sequence[Manifest], context: str) -> None:
        """The prepared splits that were read, by the digest of their shards."""
        self.log_datasets([identity(manifest) for manifest in manifests], context)

    def log_datasets(self, datasets: Sequence[Mapping[str, str]], context: str) -> None:
        """What `identity` says of prepared splits, those that MLflow has not."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        inputs = []
        for one in datasets:
            if one["name"] not in self._inputs:
                dataset = MetaDataset(CodeDatasetSource({"root": one["root"]}), name=one["name"], digest=one["digest"])
                inputs.append(DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)]))
        if inputs:
            with self._named():
                self._client.log_inputs(self.run_id, inputs)

    def log_measured_model(self, model_id: str) -> None:
        """The model that this run measured, once."""
        from mlflow.entities import LoggedModelInput

        if model_id not in self._models_in:
            self.ask(lambda client: client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)]))
            self._models_in.add(model_id)

    def log_made_model(self, model_id: str, step: int) -> None:
        """The model that this run's training had made by a step, once."""
        from mlflow.entities import LoggedModelOutput

        if model_id not in self._models_out:
            self.ask(lambda client: client.log_outputs(self.run_id, [LoggedModelOutput(model_id, step)]))
            self._models_out.add(model_id)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts."""
        with self._named():
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
        with self._named():
            self._client.log_text(self.run_id, text, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if error is None else "FAILED"
        if self.status == status:  # An ended run that was sent again keeps the time of its end.
            return
        try:
            self.set_status(status)
        except TrackingError:
            if error is None:  # Else it would hide why the run ended.
                raise

    def _named(self) -> AbstractContextManager[None]:
        return named_errors(self.uri)


def open_experiment(tracking: TrackingSettings) -> str:
    """Look, before any work, whether MLflow can be had; a line that says where numbers will go.

    Makes the experiment where there is none.  Raises `TrackingError` or `ValueError` within half a minute, naming
    `tracking.uri` or `tracking.experiment`.
    """
    uri = tracking_uri(tracking)
    check_address(uri)
    # A file is nobody's to wait for, and a new one takes MLflow a while to fill.
    seconds = None if uri.startswith("sqlite") else OPEN_WITHIN
    with named_errors(uri):
        within(seconds, lambda: probe(uri))
        import mlflow  # noqa: F401  Seconds that no server is to blame for.

        within(seconds, lambda: _experiment(client_for(uri), tracking))
    return f"MLflow: experiment {tracking.experiment} at {uri}"


def find_run(tracking: TrackingSettings, tag: str, value: str) -> str | None:
    """The id of the oldest run of the experiment with a tag; None where there is none.  Errors are as `Tracker`'s."""
    uri = tracking_uri(tracking)
    with named_errors(uri):
        probe(uri)
        client = client_for(uri)
        words = f"tags.`{tag}` = '{value}'"
        runs = client.search_runs([_experiment(client, tracking)], words, max_results=1, order_by=["start_time ASC"])
    return runs[0].info.run_id if runs else None


def tracking_uri(tracking: TrackingSettings) -> str:
    """Where MLflow keeps its runs: the settings' address, else MLFLOW_TRACKING_URI, else an SQLite file here.

    It holds no user and no password.
    """
    given = tracking.uri or os.environ.get(VARIABLE)
    return without_secrets(given) if given else f"sqlite:///{Path('mlflow.db').resolve()}"


def identity(manifest: Manifest) -> dict[str, str]:
    """What MLflow keeps of a prepared split."""
    # MLflow allows 36 characters of digest.
    name = f"{manifest.dataset}/{manifest.split}"
    return {"name": name, "digest": manifest.digest()[:32], "root": manifest.source_root}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _experiment(client: Any, tracking: TrackingSettings) -> str:
    """The id of the experiment, which is made where there is none."""
    uri, name = tracking_uri(tracking), tracking.experiment
    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            made: str = client.create_experiment(name, _artifact_location(uri))
            return made
    except Exception as error:
        if not is_refusal(error):
            raise
        raise RefusedError(f"tracking.experiment: {name!r}, in MLflow at {uri}: {error}") from None
    if found.lifecycle_stage != "active":
        raise RefusedError(
            f"tracking.experiment: {name} was deleted in MLflow at {uri}; choose another name, or restore it: "
            f"mlflow experiments restore -x {found.experiment_id}"
        )
    return str(found.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Beside a database file, wherever the job was started; a tracking server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(sqlite_path(uri)).parent / "mlruns").as_uri()
