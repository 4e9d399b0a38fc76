"""Published numbers as MLflow runs, so that its list and its compare view show them beside one's own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from semsam.config import parse_yaml
from semsam.tracking.tracker import Point, Tracker, TrackingSettings, find_run

FILE = Path(__file__).parent / "published.yaml"
MODEL_TAG = "semsam.published"  # By which a model's run is found again.
_NOTE_TAG = "mlflow.note.content"


@dataclass(frozen=True)
class Published:
    """The numbers of several models, each by its name in MLflow, and how numbers were made."""

    source: str
    conventions: Mapping[str, str] = field(default_factory=dict)  # By the beginning of a number's name.
    models: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def convention(self, number: str) -> str:
        """How a number was made."""
        [found] = [words for start, words in self.conventions.items() if number.startswith(start)]
        return found


def load_published() -> Published:
    """What this project knows of."""
    return TypeAdapter(Published).validate_python(parse_yaml(FILE.read_bytes(), str(FILE)))


def send_published(tracking: TrackingSettings) -> list[str]:
    """Make the runs that are not there, and send what they lack; the ids of all."""
    published = load_published()
    return [_send(tracking, published, model) for model in published.models]


def _send(tracking: TrackingSettings, published: Published, model: str) -> str:
    name = f"published: {model}"
    with Tracker(tracking, name, find_run(tracking, MODEL_TAG, model)) as run:
        run.set_tags({MODEL_TAG: model, _NOTE_TAG: _words(published, model)})
        run.log_params({"model": model, "source": published.source})
        missing = {name: value for name, value in published.models[model].items() if run.metrics.get(name) != value}
        if missing:
            run.log_points([Point(0, time.time(), missing)])
    return run.run_id


def _words(published: Published, model: str) -> str:
    """Where the numbers are from and how they were made, in Markdown."""
    lines = [f"**{model}**: as published, not measured here. Source: {published.source}.", ""]
    lines += [f"- `{number}`: {published.convention(number)}." for number in published.models[model]]
    return "\n".join(lines)
