"""The command line of every job."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from jobs.arguments import read_arguments
from jobs.train import TrainJob
from jobs.verify import VerifyJob
from semsam.config import ConfigError
from semsam.setting_kinds import fields_of, paths

JOBS = {
    "compare": "CompareJob",
    "evaluate": "EvaluateJob",
    "export": "ExportJob",
    "finetune": "FinetuneJob",
    "generate": "GenerateJob",
    "prepare": "PrepareJob",
    "serve": "ServeJob",
    "quickstart": "QuickstartJob",
    "report": "ReportJob",
    "track": "TrackJob",
    "train": "TrainJob",
    "verify": "VerifyJob",
}
ROOT = Path(__file__).parents[3]
PLAN = "data.plan.stages=[{weights: {ade20k: 1}}]"


def job_of(name: str) -> Any:
    return importlib.import_module(f"jobs.{name}")


def read(*arguments: str) -> TrainJob:
    return read_arguments(TrainJob, arguments, "")


def test_there_is_no_other_job() -> None:
    """Those with a `main`; a new one belongs into the list above."""
    runnable = [path.stem for path in (ROOT / "jobs").glob("*.py") if "def main(" in path.read_text()]
    assert sorted(runnable) == sorted(JOBS)


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_every_setting_and_an_example(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        job_of(name).main(["training.steps=1", flag])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"\n    python -m jobs.{name} " in shown
    for path in paths(getattr(job_of(name), JOBS[name])):
        assert f"  {path}=" in shown or f"  {path} " in shown, path


def test_help_shows_defaults_and_comments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        job_of("train").main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "run.use_gpu=true One for each worker." in shown
    assert "model.init=null A folder with the weights to begin with: a checkpoint, or" in shown
    assert "training.ema_decay=null Of an average of the weights," in shown
    assert "run: Where a run's files go, `<storage>/<name>/`, and what it runs on." in shown
    assert "image_size.short_side=640" in " ".join(job_help("generate", capsys).split())
    assert "images (required) A folder or `s3://bucket/prefix`" in " ".join(job_help("generate", capsys).split())


def job_help(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        job_of(name).main(["-h"])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", JOBS)
def test_every_comment_beside_a_setting_is_a_whole_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(job_help(name, capsys).split())
    kind = getattr(job_of(name), JOBS[name])
    for field in fields_of(kind):
        for line in inspect.getsource(kind).splitlines():
            if line.startswith(f"    {field}: ") and "  # " in line:
                assert " ".join(line.split("  # ")[1].split()) in shown


def test_a_config_file_may_have_an_equals_sign_in_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "lr=1" / "train.yaml"
    config.parent.mkdir()
    config.write_text("data: {plan: {stages: [{weights: {ade20k: 1}}]}}\ntraining: {steps: 7}\n")
    assert read(str(config), "run.name=a").training.steps == 7
    monkeypatch.chdir(tmp_path)
    assert read("lr=1/train.yaml").training.steps == 7
    with pytest.raises(ConfigError, match=r"lr=2/train.yaml: No such file"):
        read(f"{tmp_path}/lr=2/train.yaml")


def test_a_folder_to_verify_may_have_an_equals_sign_in_its_path() -> None:
    assert read_arguments(VerifyJob, ["/x/lr=1", "threads=2"], "", first=("folder",)) == VerifyJob("/x/lr=1", 2)
    assert read_arguments(VerifyJob, ["folder=/x/lr=1"], "", first=("folder",)) == VerifyJob("/x/lr=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PLAN, "train.yaml"], "'train.yaml': expected section.field=value; a config file is the first argument"),
        (["--run.name=x"], "'--run.name=x': settings have no dashes before them; write 'run.name=x'"),
        ([PLAN, "-v"], "'-v': settings have no dashes"),
        ([PLAN, "run.num_worker=2"], "run.num_worker: unknown setting; did you mean num_workers"),
        ([PLAN, "steps=2"], "steps: unknown setting; did you mean training.steps"),
        ([PLAN, "model.preset=swin_tny"], "no preset 'swin_tny', .*; did you mean swin_tiny"),
        ([PLAN, "model.overrides.backbone.widow=2"], "backbone.widow: unknown setting; did you mean window"),
        (
            ["data.plan.stages=[{weights: {coco_panoptc: 1}}]"],
            "data.plan.stages: .'coco_panoptc'. .* mean coco_panoptic",
        ),
        ([PLAN, "data.plan.fraction={ade20: 1}"], "fraction.ade20: no stage uses this dataset; did you mean ade20k"),
        ([PLAN, "data.sample.augmentation.scales={pacco: [1, 1]}"], "scales: .'pacco'. .* did you mean paco"),
        (["nowhere.yaml"], "nowhere.yaml: No such file"),
        ([str(ROOT)], f"{ROOT}: Is a directory"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(*arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("evaluate", ["datasets=[coco_panoptc]"], "datasets: .'coco_panoptc'. .* did you mean coco_panoptic"),
        ("evaluate", ["preset=debg", "untrained=true"], "no preset 'debg', .* did you mean debug"),
        ("evaluate", ["untrained=true", "checkpoint=/x"], "checkpoint and untrained=true"),
        ("prepare", ["datasets.coco.root=/x"], "datasets: .'coco'. not among .* did you mean coco_instances"),
        (
            "generate",
            ["images=/x", "vocabulary=coco_panoptc"],
            "vocabulary 'coco_panoptc' is not one of .* mean coco_panoptic",
        ),
        ("generate", ["images=/x", "preset=debg"], "no preset 'debg'"),
        ("quickstart", ["trian.training.steps=1"], "trian: unknown setting; did you mean train"),
        ("export", ["preset=debg", "text=/x", "out=/y"], "no preset 'debg'"),
        ("verify", ["folder=/x", "thread=1"], "thread: unknown setting; did you mean threads"),
    ],
)
def test_every_job_knows_what_was_meant(name: str, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job_of(name).main(arguments)
