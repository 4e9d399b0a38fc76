"""Every file in jobs/configs is a job that would start, and the full trainings keep to the published recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import jobs.train
from jobs.finetune import FinetuneJob
from jobs.generate import GenerateJob
from jobs.prepare import PrepareJob
from jobs.quickstart import QuickstartJob
from jobs.serve import ServeJob
from jobs.train import TrainJob
from pipelines.toy.layouts import LAYOUTS
from semsam.config import load_config
from semsam.losses.criterion import CriterionSettings, LossWeights
from semsam.model.presets import preset
from semsam.model.released_weights import model_shapes
from semsam.training.optimizer import lr_factor
from semsam.training.recipe import is_below

CONFIGS = Path(jobs.train.__file__).parent / "configs"
LEVELS = {"sa1b_swin_tiny": 6, "seven_swin_tiny": 6, "seven_swin_large": 6, "reproduce_sam": 3}
KINDS: dict[str, Any] = dict.fromkeys(LEVELS, TrainJob) | {
    "finetune": FinetuneJob,
    "finetune_gpu": FinetuneJob,
    "generate": GenerateJob,
    "prepare_all": PrepareJob,
    "quickstart": QuickstartJob,
    "samples": QuickstartJob,
    "serve_quickstart": ServeJob,
}


def test_the_page_shows_what_the_quickstart_trains_as_large_as_it_does() -> None:
    serve = load_config(ServeJob, str(CONFIGS / "serve_quickstart.yaml"))
    quickstart = load_config(QuickstartJob, str(CONFIGS / "quickstart.yaml"))
    assert serve.image_size == quickstart.evaluate.image_size
    run = f"{quickstart.output}/runs/{quickstart.train.run.name}"
    assert serve.checkpoint == f"{run}/checkpoint-{quickstart.train.training.steps}"


@pytest.fixture(params=LEVELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def training(name: str) -> TrainJob:
    return load_config(TrainJob, str(CONFIGS / f"{name}.yaml"))


def test_every_file_has_its_job() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_every_file_is_read_by_its_job(name: str) -> None:
    overrides = ("data=/data", "checkpoint=/checkpoint") if KINDS[name] is FinetuneJob else ()
    job = load_config(KINDS[name], str(CONFIGS / f"{name}.yaml"), overrides)
    train = job if isinstance(job, TrainJob) else getattr(job, "train", None)
    if train is not None:
        assert set(train.data.datasets()) <= set(LAYOUTS)
    if isinstance(job, QuickstartJob):
        assert set(job.train.data.datasets()) <= set(job.prepare.datasets)
    if name == "prepare_all":
        assert set(job.datasets) == set(LAYOUTS)


def test_a_full_training_says_what_it_takes(name: str) -> None:
    comment = [line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert all(any(word in line for line in comment) for word in ("ESTIMATES", "8 GPUs of 80 GB", "8 H100", "A100"))


def test_a_full_training_keeps_to_the_recipe(name: str, training: TrainJob) -> None:
    optimizer, run, sample = training.optimizer, training.training, training.data.sample
    assert (optimizer.lr, optimizer.weight_decay, optimizer.clip_norm, optimizer.warmup_steps) == (1e-4, 0.05, 0.01, 10)
    assert (optimizer.backbone_factor, optimizer.text_factor, optimizer.decay) == (0.1, 0.1, 0.1)
    assert (run.steps, run.global_batch, run.precision) == (368_750, 64, "bf16")
    shape = sample.augmentation
    assert shape.crop_size == 1024
    assert (shape.scale_range("paco"), shape.scale_range("sa1b")) == ((0.1, 2.0), (0.99, 1.01))
    assert (sample.prompts.num_prompts, sample.prompts.num_levels) == (60, LEVELS[name])
    matching = "many_to_one" if name == "reproduce_sam" else "many_to_many"
    assert training.criterion == CriterionSettings(click_matching=matching)
    assert training.criterion.weights == LossWeights(5.0, 5.0, 1.0, 5.0, 2.0, 4.0, 4.0, 1.0)
    settings = training.model.own_settings()
    assert settings.num_levels == LEVELS[name]
    assert settings.backbone == preset("swin_tiny" if "tiny" in name else "swin_large").backbone
    assert settings.backbone.drop_path == 0.3


def test_rates_fall_at_the_published_steps(training: TrainJob) -> None:
    steps = training.training.steps
    for milestone, before in ((327_778, 1.0), (355_092, 0.1)):
        factors = [lr_factor(step, steps, training.optimizer) for step in (milestone - 1, milestone)]
        assert factors == pytest.approx([before, before / 10])


def test_sa1b_comes_first_and_then_all_seven(name: str, training: TrainJob) -> None:
    first, *rest = training.data.plan.stages
    assert set(first.weights) == {"sa1b"}
    assert [set(stage.weights) for stage in rest] == ([set(LAYOUTS)] if name.startswith("seven") else [])


def test_no_worker_goes_without_images_on_either_cluster(name: str) -> None:
    for overrides in ((), ("run.num_workers=64", "training.accumulation=1")):
        job = load_config(TrainJob, str(CONFIGS / f"{name}.yaml"), overrides)
        assert job.training.global_batch % (job.run.num_workers * job.training.accumulation) == 0


@pytest.mark.slow
def test_an_export_of_the_preset_is_what_a_training_can_begin_with(training: TrainJob) -> None:
    ours, theirs = model_shapes(training.model.own_settings()), model_shapes(preset(training.model.preset))
    differing = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    assert {name for name in differing if not is_below(name, training.model.anew)} == set()
    assert bool(differing) == bool(training.model.anew)
