"""A recipe small enough to train a few steps in a unit test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semsam.config import parse_config
from semsam.training.recipe import Recipe
from tests.painted_shards import write_painted_shards

MakeRecipe = Callable[..., Recipe]

# The smallest model there is: one layer of everything.
SMALL = {
    "backbone": {"dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window": 4},
    "hidden_dim": 32,
    "feedforward_dim": 32,
    "num_heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_generic_queries": 4,
    "text": {"dim": 16},
}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painted_shards(tmp_path_factory.mktemp("painted"))


@pytest.fixture(scope="session")
def make_recipe(shards: Path) -> MakeRecipe:
    def make(root: Path = shards, **training: Any) -> Recipe:
        values = {
            "data": {
                "root": str(root),
                "plan": {"stages": [{"weights": {"coco_panoptic": 1, "pascal_part": 1}}]},
                # Not from a tenth of the size on, where many a crop shows no region and the loss is next to nothing.
                "sample": {
                    "augmentation": {"crop_size": 64, "scale_min": 0.8, "scale_max": 1.25},
                    "prompts": {"num_prompts": 2},
                },
            },
            "model": {"preset": "debug", "overrides": SMALL},
            "criterion": {"num_points": 16},
            "optimizer": {"lr": 1e-3, "clip_norm": 1.0},
            "training": {
                "steps": 4,
                "global_batch": 2,
                "zero_stage": None,
                "precision": "fp32",
                "checkpoint_every": 2,
                **training,
            },
        }
        return parse_config(Recipe, values, "test")

    return make
