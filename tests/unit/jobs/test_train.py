"""What jobs.train refuses before any worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.train import TrainJob, run
from semsam.config import ConfigError, load_config, parse_config

STAGES = {"data": {"plan": {"stages": [{"weights": {"ade20k": 1.0}}]}}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"global_batch": 4}, "run": {"num_workers": 8}}, "some would have nothing"),
        ({"training": {"global_batch": 8, "accumulation": 2}, "run": {"num_workers": 8}}, "some would have nothing"),
        ({"data": STAGES["data"] | {"sample": {"prompts": {"num_levels": 3}}}}, "but the model .* has 6 levels"),
        ({"model": {"preset": "swin_huge"}}, "no preset 'swin_huge', one of debug, swin_tiny, swin_large"),
        ({"model": {"overrides": {"backbone": {"widht": 3}}}}, "backbone.widht"),
        ({"training": {"zero_stage": 4}}, "training.zero_stage: must be 0, 1, 2 or 3, not 4"),
        ({"run": {"name": "a/b"}}, "run.name: "),
        *(
            ({"run": {"name": name}}, "run.name: ")
            for name in ("", ".", "..", "../x", ".x", "x..y", "a b", "a\\b", "a\n", "s3://x")
        ),
        ({"run": {"name": "a" * 201}}, "run.name: "),
        ({"optimiser": {"lr": 1e-4}}, "optimiser"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(TrainJob, STAGES | values, "test")


def test_checkpoints_of_something_else_are_not_taken_for_a_run(tmp_path: Path) -> None:
    theirs = tmp_path / "runs" / "bert" / "checkpoint-500" / "pytorch_model.bin"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("weeks of work")
    values = STAGES | {"run": {"storage": f"{tmp_path}/runs", "name": "bert"}}
    with pytest.raises(ValueError, match=f"^run.name: {tmp_path}/runs/bert holds 'checkpoint-500', which no training"):
        run(parse_config(TrainJob, values, "test"))
    assert theirs.read_text() == "weeks of work"


@pytest.mark.parametrize("setting", ["data.root", "run.storage", "model.init"])
def test_paths_are_refused_by_their_settings(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    places = {"data.root": "/x", "run.storage": "/x", "model.init": "/x"} | {setting: "here"}
    overrides = ["data.plan.stages=[{weights: {ade20k: 1}}]", *(f"{name}={path}" for name, path in places.items())]
    with pytest.raises(ValueError, match=f"^{setting}: 'here' is relative; a submitted job needs an absolute path"):
        run(load_config(TrainJob, None, overrides))


def test_data_that_was_not_prepared_is_named(tmp_path: object) -> None:
    values = STAGES["data"] | {"root": f"{tmp_path}/nothing"}
    job = parse_config(TrainJob, {"data": values, "run": {"storage": f"{tmp_path}/runs"}}, "test")
    with pytest.raises(ValueError, match=f"{tmp_path}/nothing/ade20k/train"):
        run(job)
