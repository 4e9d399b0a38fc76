"""A checkpoint as MLflow's model: a page with the numbers of all its evaluations; the weights stay where they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semsam.tracking.tracker import NOTE_TAG, Tie, Tracker

WEIGHTS_TAG = "semsam.weights"  # By which a model is found again: the digest of its weights, or else where they lie.
EXTERNAL_TAG = "mlflow.model.isExternal"  # MLflow's own, for a model whose files it does not keep.


@dataclass(frozen=True)
class Checkpoint:
    """The weights that were evaluated; `run` and `step` are of the training that made them, if it is known."""

    path: str
    run: str | None = None
    step: int | None = None
    digest: str | None = None  # SHA-256 of the weights.

    def identity(self) -> str:
        """The same for the same weights, wherever they were copied to, if their digest is known."""
        return self.digest or self.path


def find_or_make_model(tracker: Tracker, checkpoint: Checkpoint, name: str, made_by: str | None) -> str:
    """MLflow's id of a checkpoint's model in the run's experiment; made where there is none.

    `name` is of the training or evaluation, `made_by` the id of the training's MLflow run.
    """
    quoted = checkpoint.identity().replace("'", "")
    found = tracker.ask(
        lambda client: client.search_logged_models(
            [tracker.experiment_id], filter_string=f"tags.`{WEIGHTS_TAG}` = '{quoted}'"
        )
    )
    if found:
        return str(min(found, key=lambda one: (one.creation_timestamp, one.model_id)).model_id)

    def make(client: Any) -> str:
        model = client.create_logged_model(
            tracker.experiment_id,
            name=_model_name(name, checkpoint.step),
            source_run_id=made_by,
            tags={WEIGHTS_TAG: quoted, EXTERNAL_TAG: "true", NOTE_TAG: _words(checkpoint)},
            params=_params(checkpoint),
        )
        client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    return tracker.ask(make)


def ties(model_id: str, names: Iterable[str], datasets: Sequence[Mapping[str, str]]) -> dict[str, Tie]:
    """What each number is tied to: the model, and the dataset that is a part of its name."""
    by_name = {one["name"].partition("/")[0]: one for one in datasets}
    tied = {}
    for name in names:
        of = next((by_name[part] for part in name.split("/") if part in by_name), None)
        tied[name] = Tie(model_id, of["name"], of["digest"]) if of else Tie(model_id)
    return tied


def _model_name(name: str, step: int | None) -> str:
    """Without what MLflow refuses in a model's name."""
    plain = re.sub(r"[/:.%\"']", "-", name)
    return plain if step is None else f"{plain}-step-{step}"


def _words(checkpoint: Checkpoint) -> str:
    """Which weights these are, in Markdown."""
    made = f" after step {checkpoint.step}" if checkpoint.step is not None else ""
    made += f" of the training `{checkpoint.run}`" if checkpoint.run else ""
    return f"Weights{made}. They stay where they are: `{checkpoint.path}`."


def _params(checkpoint: Checkpoint) -> dict[str, str]:
    known = {"path": checkpoint.path, "run": checkpoint.run, "step": checkpoint.step, "sha256": checkpoint.digest}
    return {name: str(value) for name, value in known.items() if value is not None}
