"""The few settings that stand beside a run in MLflow's list, where a setting of any run is a column of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

# What tells runs apart, by the settings' own names; `datasets` are those that were read.  All others are in the run's
# artifact config.yaml.
DATASETS = "datasets"
TRAINING = (
    "model.preset",
    "model.init",
    DATASETS,
    "training.steps",
    "training.global_batch",
    "training.seed",
    "optimizer.lr",
)
EVALUATION = (DATASETS, "split", "image_size", "checkpoint.step")
MOST = 10  # Columns of a list with runs of every kind.
assert len({*TRAINING, *EVALUATION}) <= MOST
# What a training's description has.
DESCRIBED = (*TRAINING, "model.overrides", "training.precision", "run.num_workers")


def visible_params(
    names: Sequence[str], settings: Mapping[str, Any], datasets: Sequence[Mapping[str, str]]
) -> dict[str, str]:
    """Those of the settings as text; what is not set, or unknown to the version that made the run, is left out.

    `datasets` is as `semsam.tracking.tracker.identity` has them.
    """
    read = ", ".join(sorted({one["name"].partition("/")[0] for one in datasets}))
    values = {name: read if name == DATASETS else _at(settings, name) for name in names}
    return {name: _text(value) for name, value in values.items() if value not in (None, "", {}, [], ())}


def _at(settings: Mapping[str, Any], name: str) -> Any:
    """The setting at a dotted name, also where that is one flat name; None where there is none."""
    if name in settings:
        return settings[name]
    first, _, rest = name.partition(".")
    below = settings.get(first)
    return _at(below, rest) if rest and isinstance(below, Mapping) else None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()
