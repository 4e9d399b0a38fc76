"""What would end a run for ever can be left out of it, as the message says, and changes nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from semsam.config import ConfigError, config_values, dump_config, load_config, parse_config
from semsam.storage import Folder
from semsam.training import train as train_module
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import checkpoint_folder, load_state, load_weights
from semsam.training.engine import Worker
from semsam.training.faults import TrainingFault
from semsam.training.recipe import Recipe, merged
from semsam.training.train import train
from semsam.training.train_log import read_log
from semsam.training.training_data import TrainingData
from tests.painted_shards import write_painted_shards
from tests.poison import key_at, poisoned_by

CPU = Worker(0, 1, torch.device("cpu"))
MakeRecipe = Callable[..., Recipe]


def run(recipe: Recipe, folder: Path, on_step: Callable[[int], None] = lambda step: None) -> dict[int, float]:
    train(recipe, {}, RunFolder(folder), CPU, "test", None, on_step)
    return losses(folder)


def losses(folder: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in read_log(Folder(folder))}


def with_what_it_says(recipe: Recipe, fault: TrainingFault, setting: str, folder: Path) -> Recipe:
    """The recipe with an override that a message asks to be added to the command."""
    (words,) = [shlex.split(line) for line in str(fault).splitlines() if setting in line]
    (override,) = [word for word in words if word.startswith(setting)]
    path = folder / "recipe.yaml"
    path.write_text(dump_config(recipe))
    return load_config(Recipe, str(path), [override])


def test_a_poisoned_sample_ends_the_run_and_skipping_it_goes_on_with_the_same_sequence(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    key = key_at(recipe, 2)
    monkeypatch.setattr(train_module, "make_step", poisoned_by(recipe, 2))
    reason = re.escape(f"step 2: the loss is not finite; nothing was updated: loss of {key}\n")
    with pytest.raises(TrainingFault, match=f"^{reason}") as ended:
        run(recipe, tmp_path / "run")
    before = losses(tmp_path / "run")
    assert list(before) == [0, 1]
    without = with_what_it_says(recipe, ended.value, "training.skip_samples", tmp_path)
    assert without.training.skip_samples == (key,)
    after = run(without, tmp_path / "run")
    assert list(after) == [0, 1, 2, 3]
    assert after == run(without, tmp_path / "from the start")
    assert {step: after[step] for step in before} == before


def test_a_sample_that_cannot_be_read_is_skipped_by_its_row(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    root = write_painted_shards(tmp_path / "shards")
    recipe = make_recipe(root, steps=3)
    data = TrainingData.of(recipe)
    row = data.plan.rows(1)[0]
    jpeg = data.splits[row.dataset].record_at(row.shard, row.row).image
    shard = root / row.dataset / "train" / f"shard-{row.shard:05d}.arrow"
    shard.write_bytes(shard.read_bytes().replace(jpeg, bytes(len(jpeg))))
    with pytest.raises(TrainingFault, match=f"{shard}, row {row.row} ") as ended:
        run(recipe, tmp_path / "run")
    without = with_what_it_says(recipe, ended.value, "training.skip_samples", tmp_path)
    assert without.training.skip_samples == (f"{row.dataset}:{3 * row.shard + row.row}",)
    assert list(run(without, tmp_path / "run")) == [0, 1, 2]


def test_as_many_steps_are_skipped_as_asked_for_and_a_restart_changes_nothing(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    recipe = make_recipe(steps=3, checkpoint_every=1, max_skipped_steps=1)
    key = key_at(recipe, 1)
    monkeypatch.setattr(train_module, "make_step", poisoned_by(recipe, 1, torch.inf))
    whole = run(recipe, tmp_path / "whole")
    assert list(whole) == [0, 2]
    assert f"loss of {key}" in capsys.readouterr().out.replace(", ", " ")
    assert load_state(checkpoint_folder(Folder(tmp_path / "whole"), 3)).skipped_steps == (1,)

    def die(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "parts", die)
    assert run(recipe, tmp_path / "parts") == whole
    ends = [load_weights(checkpoint_folder(Folder(tmp_path / name), 3)) for name in ("whole", "parts")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_one_step_more_than_asked_for_ends_the_run_and_the_limit_may_be_raised(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(steps=2)
    monkeypatch.setattr(train_module, "make_step", poisoned_by(recipe, 1))
    with pytest.raises(TrainingFault) as ended:
        run(recipe, tmp_path / "run")
    raised = with_what_it_says(recipe, ended.value, "training.max_skipped_steps", tmp_path)
    assert raised.training.max_skipped_steps == 1
    assert list(run(raised, tmp_path / "run")) == [0]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("coco_panoptic", "'coco_panoptic' is neither <dataset>/<sample id> nor <dataset>:<row>"),
        ("coco_panoptic:x", "'coco_panoptic:x' is neither"),
        ("coco_panoptic/", "'coco_panoptic/' is neither"),
        ("sa1b/1", "sa1b/1: no stage of data.plan uses a dataset 'sa1b'"),
        ("coco_panoptic:6", "coco_panoptic:6: .*/coco_panoptic/train has 6 rows"),
    ],
)
def test_a_sample_that_cannot_be_meant_is_refused(make_recipe: MakeRecipe, key: str, reason: str) -> None:
    values: dict[str, Any] = merged(config_values(make_recipe()), {"training": {"skip_samples": [key]}})
    with pytest.raises((ConfigError, ValueError), match=f"training.skip_samples: {reason}"):
        TrainingData.of(parse_config(Recipe, values, "test"))
