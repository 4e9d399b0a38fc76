"""A run that was interrupted ends as if it had not been."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from semsam.config import config_values, parse_config
from semsam.data.manifest import MANIFEST_NAME, Vocabulary
from semsam.data.sealed import seal
from semsam.data.vocabularies import TEMPLATES
from semsam.model.semantic_sam import SemanticSam
from semsam.model.weight_files import STATE_FILE, Fingerprint
from semsam.storage import Folder
from semsam.training import train as train_module
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import latest_checkpoint, load_state, load_weights
from semsam.training.engine import Worker
from semsam.training.faults import TrainingFault
from semsam.training.loop import Loop
from semsam.training.recipe import Recipe, merged
from semsam.training.step import TrainingStep
from semsam.training.train import make_step, train
from semsam.training.train_log import LOG_FILE, read_log
from semsam.training.training_data import TrainingData, find_checkpoint
from tests.painted_shards import VOCABULARIES, write_painted_shards

CPU = Worker(0, 1, torch.device("cpu"))
MakeRecipe = Callable[..., Recipe]


def run(recipe: Recipe, folder: Path) -> list[dict[str, float]]:
    train(recipe, {}, RunFolder(folder), CPU, "test", None)
    return list(read_log(Folder(str(folder))))


@pytest.fixture(scope="module")
def finished(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    run(make_recipe(steps=2), folder)
    return folder


def test_a_run_leaves_a_log_and_a_checkpoint_that_the_model_loads(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    log = run(make_recipe(), tmp_path)
    assert [entry["step"] for entry in log] == [0, 1, 2, 3]
    assert log[3]["samples_seen"] == {"coco_panoptic": 4, "pascal_part": 4}
    terms = [value for name, value in log[0].items() if "/" in name]
    assert sum(terms) == pytest.approx(log[0]["loss"], rel=1e-5)
    model = SemanticSam.load(tmp_path / "checkpoint-4")
    assert model.settings == make_recipe().model.resolve()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_losses_and_weights(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(make_recipe(), tmp_path / "whole")
    update = Loop._update

    def interrupted(self: Loop, batches: list, normalizers: torch.Tensor) -> tuple[dict[str, float], float]:
        if batches[0].step == 3:
            raise KeyboardInterrupt
        return update(self, batches, normalizers)

    monkeypatch.setattr(Loop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(make_recipe(), tmp_path / "parts")
    monkeypatch.undo()
    # Step 2 was taken after the checkpoint: it is taken again, and stands in the log once.
    resumed = run(make_recipe(), tmp_path / "parts")
    assert [entry["step"] for entry in resumed] == [0, 1, 2, 3]
    assert [entry["loss"] for entry in resumed] == [entry["loss"] for entry in whole]
    ends = [load_weights(Folder(str(tmp_path / name / "checkpoint-4"))) for name in ("whole", "parts")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.slow
def test_accumulation_changes_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    once, twice = (run(make_recipe(accumulation=n, steps=1), tmp_path / str(n)) for n in (1, 2))
    assert twice[0]["loss"] == pytest.approx(once[0]["loss"], rel=1e-6)
    assert twice[0]["grad_norm"] == pytest.approx(once[0]["grad_norm"], rel=1e-4)


def test_a_checkpoint_without_its_state_is_none(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(steps=2), tmp_path)
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    assert latest_checkpoint(Folder(str(tmp_path))) is None


def test_a_checkpoint_of_another_vocabulary_is_refused_by_name(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(steps=2), tmp_path / "run")
    others = VOCABULARIES | {"coco_panoptic": Vocabulary(("box", "lake"), (), (True, False))}
    shards = write_painted_shards(tmp_path / "shards", vocabularies=others)
    with pytest.raises(ValueError, match=r"checkpoint-2: .*another vocabulary"):
        run(make_recipe(shards, steps=2), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"training": {"seed": 1}}, "training.seed is 0 there and 1 here"),
        ({"training": {"steps": 3}}, "training.steps is 2 there and 3 here"),
        ({"training": {"global_batch": 4}}, "training.global_batch is 2 there and 4 here"),
        ({"optimizer": {"lr": 2e-3}}, "optimizer.lr is 0.001 there and 0.002 here"),
        ({"criterion": {"weights": {"iou": 2.0}}}, "criterion.weights.iou is 1.0 there and 2.0 here"),
        ({"model": {"overrides": {"num_generic_queries": 5}}}, "model.num_generic_queries is 4 there and 5 here"),
        ({"data": {"sample": {"augmentation": {"crop_size": 160}}}}, "crop_size is 64 there and 160 here"),
        (
            {"data": {"plan": {"stages": [{"weights": {"coco_panoptic": 1, "pascal_part": 2}}]}}},
            "data.plan.stages.0.weights.pascal_part is 1.0 there and 2.0 here",
        ),
    ],
)
def test_a_run_with_another_recipe_is_refused_naming_what_differs(
    make_recipe: MakeRecipe, tmp_path: Path, finished: Path, changes: dict[str, Any], difference: str
) -> None:
    recipe = parse_config(Recipe, merged(config_values(make_recipe(steps=2)), changes), "test")
    with pytest.raises(ValueError, match=rf"checkpoint-2: another training.*\n.*{re.escape(difference)}$"):
        find_checkpoint(Folder(str(finished)), recipe, TrainingData.of(recipe))


def test_what_decides_nothing_may_change(make_recipe: MakeRecipe, finished: Path) -> None:
    changes = {
        "training": {"zero_stage": 3, "accumulation": 2, "checkpoint_every": 7, "log_every": 3, "keep_last": 9},
        "data": {"reader": {"num_threads": 5, "prefetch": 9}},
        "model": {"overrides": {"activation_checkpointing": True}},
    }
    recipe = parse_config(Recipe, merged(config_values(make_recipe(steps=2)), changes), "test")
    assert find_checkpoint(Folder(str(finished)), recipe, TrainingData.of(recipe))[1] == 2


def note(path: Path) -> None:
    """Let a checkpoint's state say of a file what it is now."""
    state = load_state(Folder(path.parent))
    files = state.files | {path.name: Fingerprint.of(path.read_bytes())}
    (path.parent / STATE_FILE).write_bytes(seal(dataclasses.asdict(dataclasses.replace(state, files=files))))


def test_settings_that_a_checkpoint_does_not_know_count_as_their_defaults(
    make_recipe: MakeRecipe, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoint-2" / "config.yaml"
    sections = yaml.safe_load(path.read_text())
    del sections["job"]["criterion"]["oversample"]
    path.write_text(yaml.safe_dump(sections))
    note(path)
    recipe = make_recipe(steps=2)
    assert find_checkpoint(Folder(str(folder)), recipe, TrainingData.of(recipe))[1] == 2
    path.write_text("model: {}")
    note(path)
    with pytest.raises(ValueError, match=r"checkpoint-2/config.yaml: not the settings"):
        find_checkpoint(Folder(str(folder)), recipe, TrainingData.of(recipe))


def test_only_the_last_checkpoints_are_kept(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(steps=3, checkpoint_every=1, keep_last=2), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_a_loss_that_is_not_finite_ends_the_run_naming_the_samples(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*arguments: object) -> TrainingStep:
        step = make_step(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            step.model.mask_decoder.heads.objects.bias.fill_(float("nan"))
        return step

    monkeypatch.setattr(train_module, "make_step", poisoned)
    with pytest.raises(TrainingFault, match=r"step 0: .*object.* of .*(coco_panoptic|pascal_part)/00000\d") as ended:
        run(make_recipe(), tmp_path)
    assert "skip_samples" not in str(ended.value)  # All of the step are so: it is the model.


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_ends_the_run_naming_the_samples_and_updates_nothing(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    steps: list[TrainingStep] = []

    def poisoned(*arguments: object) -> TrainingStep:
        steps.append(make_step(*arguments))  # type: ignore[arg-type]
        steps[0].model.mask_decoder.heads.objects.bias.register_hook(lambda gradient: gradient * factor)
        return steps[0]

    monkeypatch.setattr(train_module, "make_step", poisoned)
    reason = (
        r"step 0: the gradient's norm .*: worker 0: (coco_panoptic|pascal_part)/0.*\n.*add training.max_skipped_steps=1"
    )
    with pytest.raises(TrainingFault, match=reason):
        run(make_recipe(), tmp_path)
    monkeypatch.undo()
    untouched = make_step(make_recipe(), steps[0].vocabulary)
    assert all(torch.equal(*pair) for pair in zip(steps[0].parameters(), untouched.parameters(), strict=True))


def test_bf16_rounds_what_is_computed_and_not_the_weights(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    logs = [run(make_recipe(steps=1, precision=name), tmp_path / name) for name in ("fp32", "bf16")]
    # Rounding changes which level is matched to what: of so small a model that is much of the loss.
    assert logs[1][0]["loss"] == pytest.approx(logs[0][0]["loss"], rel=0.2)
    assert logs[1][0]["loss"] != logs[0][0]["loss"]
    weights = load_weights(Folder(str(tmp_path / "bf16" / "checkpoint-1")))
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())


def test_a_log_says_what_a_step_took(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (entry,) = run(make_recipe(steps=1), tmp_path)
    assert entry["images_per_second"] == pytest.approx(2 / entry["seconds"])
    assert 0 <= entry["data_wait"] < entry["seconds"]
    assert 0.05 < entry["memory_gb"] < 20
    assert entry["grad_norm"] > 0
    assert entry["lr"] == pytest.approx(1e-3 / 11)


def changed_weights(before: TrainingStep, folder: Path) -> set[str]:
    """The parts of the model that a run has changed."""
    after = load_weights(Folder(str(folder)))
    own = before.model.state_dict()
    return {name.split(".")[0] for name in own if not torch.equal(own[name], after[name])}


def test_masks_left_out_of_samples_stand_in_the_log(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(steps=3)
    run(recipe, tmp_path / "all")
    # A table has a byte for each label and mask, and an image that has masks has four.
    sample = dataclasses.replace(recipe.data.sample, max_table_bytes=4)
    run(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sample=sample)), tmp_path / "few")
    left_out = [sum(one["masks_left_out"] for one in read_log(Folder(tmp_path / name))) for name in ("all", "few")]
    assert left_out[0] == 0
    assert left_out[1] > 0


@pytest.mark.parametrize(("text", "learns"), [(None, True), ("trained", True), ("frozen", False)])
def test_a_frozen_text_encoder_keeps_its_weights(
    make_recipe: MakeRecipe, tmp_path: Path, text: str | None, learns: bool
) -> None:
    recipe = make_recipe(steps=2, checkpoint_every=1, text=text)
    run(recipe, tmp_path)
    start = make_step(recipe, TrainingData.of(recipe).vocabulary)
    changed = changed_weights(start, tmp_path / "checkpoint-2")
    assert {"backbone", "pixel_decoder", "mask_decoder"} <= changed
    assert ("text_encoder" in changed) == learns
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    assert len(run(recipe, tmp_path)) == 2  # And resumes.


def test_frozen_names_give_the_same_loss_as_encoding_them(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    losses = [run(make_recipe(steps=1, text=text), tmp_path / text)[0]["loss"] for text in ("frozen", "trained")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_frozen_names_are_embedded_in_every_template(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(text="frozen")
    clip = {"kind": "clip", "dim": 16, "num_layers": 1, "num_heads": 2, "context": 16, "pretrained": True}
    values = merged(config_values(recipe), {"model": {"overrides": {"text": clip}}})
    recipe = parse_config(Recipe, values, "test")
    step = make_step(recipe, TrainingData.of(recipe).vocabulary)
    step.embed_frozen_names()
    names = (*step.vocabulary.objects, *step.vocabulary.parts)
    assert step.name_bank is not None
    assert step.name_bank.shape == (len(TEMPLATES), len(names), 16)
    for template in (0, 7):
        assert torch.equal(step.name_bank[template], step.model.encode_names(names, template))
    assert not torch.allclose(step.name_bank[0], step.name_bank[7])
    assert not Recipe().text_is_trained()


def test_without_any_names_the_text_encoder_is_left_alone(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    plan = {"data": {"plan": {"stages": [{"weights": {"sa1b": 1}}]}}}
    values = config_values(make_recipe(steps=2))
    values["data"]["plan"] = plan["data"]["plan"]
    recipe = parse_config(Recipe, values, "test")
    run(recipe, tmp_path)
    changed = changed_weights(make_step(recipe, TrainingData.of(recipe).vocabulary), tmp_path / "checkpoint-2")
    assert changed == {"backbone", "pixel_decoder", "prompt_encoder", "mask_decoder"}


@pytest.mark.parametrize("dataset", ["sa1b", "pascal_part"])
def test_denoising_queries_learn_where_there_are_names(make_recipe: MakeRecipe, tmp_path: Path, dataset: str) -> None:
    values = config_values(make_recipe(steps=2))
    values["data"]["plan"]["stages"][0]["weights"] = {dataset: 1}
    values["model"]["overrides"]["num_denoising_queries"] = 5
    recipe = parse_config(Recipe, values, "test")
    log = run(recipe, tmp_path)
    terms = {name: value for name, value in log[0].items() if "/" in name}
    assert sum(terms.values()) == pytest.approx(log[0]["loss"], rel=1e-5)
    assert (terms["denoising/mask_bce"] > 0) == (terms["denoising/part"] > 0) == (dataset == "pascal_part")
    name = "mask_decoder.noised_content.projection.bias"
    start = make_step(recipe, TrainingData.of(recipe).vocabulary).model.state_dict()[name]
    after = load_weights(Folder(str(tmp_path / "checkpoint-2")))[name]
    assert torch.equal(start, after) == (dataset == "sa1b")


def test_a_shard_that_was_cut_short_ends_the_run_naming_it(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    root = write_painted_shards(tmp_path / "shards")
    for shard in (root / "coco_panoptic" / "train").glob("*.arrow"):
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(TrainingFault, match=r"coco_panoptic/train/shard-0000\d.arrow.*cut short"):
        run(make_recipe(root), tmp_path / "run")


def test_a_dataset_that_is_not_prepared_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=MANIFEST_NAME):
        run(make_recipe(tmp_path), tmp_path / "run")


def test_levels_of_model_and_prompts_must_agree(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match=r"data\.sample\.prompts\.num_levels is 6, but the model .* has 3"):
        parse_config(Recipe, {"model": {"preset": "debug", "overrides": {"num_levels": 3}}}, "test")


@pytest.mark.parametrize("lines", [b"", b'{"step":0}\n{"step":1}\n{"st'])
def test_an_unfinished_line_of_the_log_does_not_count(tmp_path: Path, lines: bytes) -> None:
    (tmp_path / LOG_FILE).write_bytes(lines)
    assert len(list(read_log(Folder(str(tmp_path))))) == lines.count(b"\n")


@pytest.mark.slow
def test_training_imports_neither_ray_nor_deepspeed() -> None:
    code = "import sys, semsam.training.train; sys.exit(bool({'ray', 'deepspeed'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
