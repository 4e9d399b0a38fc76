"""`--dry-run` of every job: a config file of what its command line comes to, what it would need, and nothing done."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest
import yaml

from jobs.arguments import DRY_RUN
from jobs.evaluate import EvaluateJob
from semsam.config import load_config
from tests.unit.jobs.test_arguments import JOBS

# A command line of each job, and some of the lines that it needs.
LINES = {
    "compare": ("before=/a after=/b", ["this process alone", "reads /a", "reads /b"]),
    "evaluate": (
        "data=/shards checkpoint=/c output=/out num_actors=3 tracking.uri=http://mlflow:5000",
        [
            "3 workers with 1 CPU each (num_actors, num_actors, gpus_per_actor)",
            "reads /shards",
            "reads /c",
            "writes /out",
            "tells http://mlflow:5000",
        ],
    ),
    "export": ("released=/a.pth out=/b", ["this process alone", "reads /a.pth", "writes /b"]),
    "finetune": ("data=/mugs checkpoint=/c output=/out", ["reads /mugs", "reads /c", "writes /out"]),
    "generate": ("images=/photos output=/out gpus_per_actor=1", ["reads /photos", "writes /out"]),
    "prepare": (
        "datasets.ade20k.root=/a datasets.sa1b.root=s3://b/c output=/out",
        ["reads /a", "reads s3://b/c", "writes /out"],
    ),
    "quickstart": ("output=/out", ["writes /out"]),
    "report": ("/evaluation", ["this process alone", "reads /evaluation", "writes /evaluation/report.html"]),
    "serve": ("checkpoint=/c replicas=[2,4]", ["reads /c"]),
    "track": ("/run", ["this process alone", "reads /run"]),
    "train": (
        "data.root=/shards 'data.plan.stages=[{weights: {ade20k: 1}}]' run.storage=/runs run.name=x run.num_workers=4",
        ["reads /shards", "writes /runs/x"],
    ),
    "verify": ("/folder", ["this process alone", "reads /folder"]),
}


def test_there_is_a_line_for_every_job() -> None:
    assert LINES.keys() == JOBS.keys()


@pytest.mark.parametrize("name", LINES)
def test_a_dry_run_says_what_is_needed_and_does_nothing(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line, expected = LINES[name]
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"jobs.{name}").main([*shlex.split(line), DRY_RUN])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    said = [one.removeprefix("# ") for one in shown.splitlines() if one.startswith("# ")]
    assert set(expected) <= set(said)
    assert isinstance(yaml.safe_load(shown), dict)
    assert "\x1b" not in shown
    assert list(tmp_path.iterdir()) == []


def test_what_is_shown_is_a_config_file_of_the_same_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["data=/shards", "untrained=true", "resamples=7"]
    with pytest.raises(SystemExit):
        importlib.import_module("jobs.evaluate").main([*arguments, DRY_RUN])
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config(EvaluateJob, str(file), []) == load_config(EvaluateJob, None, arguments)


def test_a_mistake_is_told_as_in_earnest() -> None:
    with pytest.raises(ValueError, match=r"resample"):
        importlib.import_module("jobs.evaluate").main(["data=/shards", "untrained=true", "resample=7", DRY_RUN])
