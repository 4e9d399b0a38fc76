"""What jobs.train refuses before any worker starts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.train import TrainJob, run
from semsam.config import ConfigError, parse_config
from semsam.storage import Folder
from semsam.training.attempt import attempt_on
from tests.painted_shards import VOCABULARIES, write_painted_shards

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


def test_data_that_was_not_prepared_is_named(tmp_path: object) -> None:
    values = STAGES["data"] | {"root": f"{tmp_path}/nothing"}
    job = parse_config(TrainJob, {"data": values, "run": {"storage": f"{tmp_path}/runs"}}, "test")
    with pytest.raises(ValueError, match=f"{tmp_path}/nothing/ade20k/train"):
        run(job)


def test_a_second_training_on_a_folder_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    shards = write_painted_shards(tmp_path / "shards", vocabularies={"sa1b": VOCABULARIES["sa1b"]})
    values = {
        "data": {"root": str(shards), "plan": {"stages": [{"weights": {"sa1b": 1.0}}]}},
        "run": {"storage": str(tmp_path / "runs"), "name": "mine"},
    }
    started = time.monotonic()
    with (
        attempt_on(Folder(tmp_path / "runs" / "mine")),
        pytest.raises(ValueError, match=rf"{tmp_path}/runs/mine: another training .*process {os.getpid()}, since 2"),
    ):
        run(parse_config(TrainJob, values, "test"))
    assert time.monotonic() - started < 30
    assert not ray.is_initialized()
