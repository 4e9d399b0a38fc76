"""One process of a torch.distributed group that trains on painted shards in several modes, one after the other.

`python -m tests.integration.training_worker <shards> <output> <mode> ...` with RANK, WORLD_SIZE and their like set.  A
mode is `plain`, `zero0` ... `zero3`, with `x2` behind it for two accumulation steps, and then `-sa1b` (masks without
any name) or `-frozen` (text encoder).  The first worker writes `<output>/<mode>.json` (losses) and, with the first
step's gradients, `<output>/<mode>.npz`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from semsam.config import parse_config
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint_writer import CheckpointWriter
from semsam.training.engine import Engine, Worker, make_engine
from semsam.training.loop import Loop
from semsam.training.partitions import Partition
from semsam.training.recipe import Recipe
from semsam.training.recorder import Recorder
from semsam.training.train import make_step
from semsam.training.training_data import TrainingData
from tests.integration.workers import end_worker

NUM_STEPS = 20
DATASETS = ("sa1b", "coco_panoptic", "objects365", "pascal_part")


def recipe_for(root: str, datasets: tuple[str, ...] = DATASETS, **training: Any) -> Recipe:
    """A debug model in fp32 on painted datasets, at learning rate 1e-4."""
    values = {
        "data": {
            "root": root,
            "plan": {"stages": [{"weights": dict.fromkeys(datasets, 1)}]},
            # Not smaller: a group norm over the one pixel of a map at 1/64 would have no gradient but rounding errors.
            "sample": {
                "augmentation": {"crop_size": 128, "scale_min": 0.8, "scale_max": 1.25},
                "prompts": {"num_prompts": 4},
            },
        },
        "model": {"preset": "debug", "overrides": {"num_denoising_queries": 10}},
        "criterion": {"num_points": 112},
        "optimizer": {"lr": 1e-4, "clip_norm": 1.0},
        "training": {"steps": NUM_STEPS, "global_batch": 6, "precision": "fp32", "seed": 3, **training},
    }
    return parse_config(Recipe, values, "test")


class FirstGradients:
    """An engine that also keeps the first step's gradients."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.optimizer = engine.optimizer
        self.first: dict[str, np.ndarray] = {}

    def forward_backward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.engine.forward_backward(*inputs)

    def step(self) -> float:
        if not self.first:
            self.first = {name: gradient.float().numpy().copy() for name, gradient in self.engine.gradients()}
        return self.engine.step()

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        return self.engine.gradients()

    def partitions(self) -> list[Partition]:
        return self.engine.partitions()

    def set_num_updates(self, num_updates: int) -> None:
        self.engine.set_num_updates(num_updates)


class Losses(Recorder):
    """Keeps the losses in memory."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def add(self, step: int, values: dict[str, float]) -> None:
        self.steps.append(values)


class NoCheckpoints(Loop):
    """A loop that only trains."""

    def save(self, step: int) -> None:
        pass


def run_mode(mode: str, root: str, output: Path, worker: Worker) -> None:
    """Train `NUM_STEPS` steps in a mode and write what came out."""
    engine_mode, _, variant = mode.partition("-")
    kind, _, accumulation = engine_mode.partition("x")
    recipe = recipe_for(
        root,
        DATASETS[:1] if variant == "sa1b" else DATASETS,
        text="frozen" if variant == "frozen" else "trained",
        zero_stage=None if kind == "plain" else int(kind.removeprefix("zero")),
        accumulation=int(accumulation or 1),
    )
    training_data = TrainingData.of(recipe)
    step = make_step(recipe, training_data.vocabulary)
    step.embed_frozen_names()
    training = recipe.training
    micro = -(-training.global_batch // (worker.world_size * training.accumulation))
    engine = FirstGradients(
        make_engine(step, recipe.optimizer, worker, training.zero_stage, micro, training.accumulation)
    )
    losses = Losses()
    writer = CheckpointWriter(RunFolder(output), worker.rank, worker.world_size, 1, False, None)
    NoCheckpoints(recipe, training_data, worker, step, engine, writer, losses).run(0)
    writer.finish()
    if worker.rank == 0:
        np.savez(output / f"{mode}.npz", **engine.first)
        (output / f"{mode}.json").write_text(json.dumps(losses.steps))


def main() -> None:
    root, output, *modes = sys.argv[1:]
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    for mode in modes:
        run_mode(mode, root, Path(output), Worker(rank, world_size, torch.device("cpu")))
    end_worker()


if __name__ == "__main__":
    main()
