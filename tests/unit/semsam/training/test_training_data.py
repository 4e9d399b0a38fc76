"""A plan that repeats images of rare classes is made from the names beside the shards, and says where they are not."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from semsam.config import config_values, parse_config
from semsam.data.manifest import MANIFEST_NAME, IndexFile
from semsam.data.row_categories import ROW_CATEGORIES_NAME, row_names, to_batch, to_bytes
from semsam.data.shards import Split
from semsam.training.recipe import Recipe, merged
from semsam.training.training_data import TrainingData
from tests.painted_shards import VOCABULARIES, painted_record, write_split

MakeRecipe = Callable[..., Recipe]


def add_names(folder: Path) -> None:
    """What jobs.prepare leaves beside the shards of a split."""
    split = Split(str(folder))
    data = to_bytes([to_batch(row_names(split.record(i)) for i in range(len(split)))])
    (folder / ROW_CATEGORIES_NAME).write_bytes(data)
    index = IndexFile(ROW_CATEGORIES_NAME, len(data), hashlib.sha256(data).hexdigest())
    (folder / MANIFEST_NAME).write_bytes(replace(split.manifest, row_categories=index).to_json())


def repeating(recipe: Recipe, threshold: float, dataset: str = "pascal_part") -> Recipe:
    plan = {"stages": [{"weights": {dataset: 1.0}}], "repeat": {dataset: threshold}}
    return parse_config(Recipe, merged(config_values(recipe), {"data": {"plan": plan}}), "test")


def test_a_plan_repeats_images_by_the_names_beside_the_shards(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = tmp_path / "pascal_part" / "train"
    named, *others = (painted_record("pascal_part", number) for number in (0, *range(2, 41)))
    write_split(folder, [[named, *(replace(one, regions=()) for one in others)]], VOCABULARIES["pascal_part"])
    add_names(folder)
    plan = TrainingData.of(repeating(make_recipe(tmp_path, steps=43, global_batch=1), 0.4)).plan
    assert plan.epoch_size("pascal_part") == 43  # Names that one image in forty shows: sqrt(0.4 * 40) times.
    assert Counter(row.row for step in range(43) for row in plan.rows(step))[0] == 4


def test_a_dataset_without_names_cannot_repeat_rare_ones(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match=r"^data.plan.repeat.sa1b: .*sa1b/train: this dataset has no names"):
        TrainingData.of(repeating(make_recipe(), 0.001, "sa1b"))
