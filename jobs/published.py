"""Published numbers as MLflow runs, so that its list and its compare view show them beside one's own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import TypeAdapter

from semsam.config import parse_yaml
from semsam.tracking.tracker import NOTE_TAG, Point, Tracker, TrackingSettings, find_run

FILE = Path(__file__).parent / "published.yaml"
MODEL_TAG = "semsam.published"  # By which a model's run is found again.


@dataclass(frozen=True)
class Published:
    """The numbers of several models, each by its name in MLflow, and how numbers were made."""

    source: str
    date: date  # When it was published.
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
    # One's own runs come first in a list that begins with the latest, and these in their order.
    day = datetime.combine(published.date, datetime.min.time(), UTC).timestamp()
    return [_send(tracking, published, model, day - place) for place, model in enumerate(published.models)]


def _send(tracking: TrackingSettings, published: Published, model: str, at: float) -> str:
    known = find_run(tracking, MODEL_TAG, model)
    with Tracker(tracking, f"published: {model}", known, f"{model} (published)", at) as run:
        source = {"mlflow.source.name": published.source, "mlflow.source.type": "LOCAL"}
        run.set_tags({MODEL_TAG: model, NOTE_TAG: _words(published, model)} | source)
        missing = {name: value for name, value in published.models[model].items() if run.metrics.get(name) != value}
        if missing:
            run.log_points([Point(0, time.time(), missing)])
    return run.run_id


def _words(published: Published, model: str) -> str:
    """Where the numbers are from and how they were made, in Markdown."""
    lines = [f"**{model}**: as published, not measured here. Source: {published.source}.", ""]
    lines += [f"- `{number}`: {published.convention(number)}." for number in published.models[model]]
    return "\n".join(lines)
