"""A sample that makes the loss of every step with it not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from semsam.data.randomness import random_key
from semsam.data.reader import sample_key
from semsam.training.recipe import Recipe
from semsam.training.step import TrainingStep
from semsam.training.train import make_step
from semsam.training.training_data import TrainingData


def key_at(recipe: Recipe, step: int) -> str:
    """The name of the first sample of a step."""
    data = TrainingData.of(recipe)
    row = data.plan.rows(step)[0]
    return sample_key(row.dataset, data.splits[row.dataset].record_at(row.shard, row.row).sample_id)


def poisoned_by(recipe: Recipe, step: int, value: float = torch.nan) -> Callable[..., TrainingStep]:
    """A `make_step` whose loss is multiplied by `value` wherever the first sample of a step takes part."""
    plan = TrainingData.of(recipe).plan
    first = plan.rows(step)[0]
    rows = [row for step in range(plan.num_steps) for row in plan.rows(step)]
    same = [row for row in rows if (row.dataset, row.shard, row.row) == (first.dataset, first.shard, first.row)]
    keys = torch.tensor([random_key(recipe.training.seed, row.index, "drop_path") for row in same])

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        is_there = torch.isin(inputs[0].sample_keys, keys).any()
        return (output[0] * value, output[1]) if is_there else output

    def make(*arguments: Any) -> TrainingStep:
        made = make_step(*arguments)
        made.register_forward_hook(spoil)
        return made

    return make
