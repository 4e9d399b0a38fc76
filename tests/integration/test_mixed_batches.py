"""No worker ever waits for another: whatever samples each of them has, all enter the same collectives.

Run as a module this file is one worker of a torch.distributed group: `python -m tests.integration.test_mixed_batches
<shards> <folder>`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipelines.toy.layouts import LAYOUTS
from semsam.config import load_config, parse_config
from semsam.data.plan import Row
from semsam.data.reader import load_sample
from semsam.data.sample import Batch
from semsam.data.shards import Split
from semsam.data.training_sample import empty_sample
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint_writer import CheckpointWriter
from semsam.training.engine import Worker, make_engine
from semsam.training.loop import Loop
from semsam.training.recipe import Recipe
from semsam.training.train import make_step
from semsam.training.training_data import TrainingData
from tests.integration.workers import end_worker, run_workers

NUM_STEPS, WORLD_SIZE, PER_WORKER = 500, 2, 2
# What a worker's batch of a step may be made of; each worker draws for itself.
KINDS = ("one dataset", "any dataset", "empty samples", "some empty")

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jobs import prepare, quickstart
    from pipelines.toy import ToySettings, write_toy_world

    folder = tmp_path_factory.mktemp("toy")
    write_toy_world(folder / "toy", ToySettings(train_images=8, val_images=1, faults=False))
    job = load_config(quickstart.QuickstartJob, str(quickstart.DEFAULT_CONFIG), [f"output={folder}"])
    preparing = quickstart._steps(job, folder).prepare
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare.run(preparing)
    return folder / "shards"


@pytest.mark.filterwarnings("ignore")  # Ray's own.
def test_workers_with_unlike_batches_enter_the_same_collectives(
    toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch then compares every collective's name and shapes between the workers before it begins.
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    run_workers("tests.integration.test_mixed_batches", WORLD_SIZE, tmp_path, (str(toy_shards), str(tmp_path)))
    of_workers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]
    first, second = of_workers
    assert first["losses"] == second["losses"]
    assert len(first["losses"]) == NUM_STEPS
    assert all(math.isfinite(loss) for loss in first["losses"])
    pairs = set(zip(first["kinds"], second["kinds"], strict=True))
    assert pairs == {(one, other) for one in KINDS for other in KINDS}
    assert set(first["datasets"]) == set(second["datasets"]) == {*LAYOUTS, ""}
    # Steps in which nobody had anything to teach.
    assert 0.0 in first["losses"]


def recipe_for(root: str) -> Recipe:
    """A debug model, cut down to a layer of each kind, on all seven datasets, with every branch that there is."""
    values = {
        "data": {
            "root": root,
            "plan": {"stages": [{"weights": dict.fromkeys(LAYOUTS, 1)}]},
            "sample": {"augmentation": {"crop_size": 64}, "prompts": {"num_prompts": 4}},
        },
        "model": {
            "preset": "debug",
            "overrides": {"num_denoising_queries": 10, "encoder_layers": 1, "decoder_layers": 1},
        },
        "criterion": {"num_points": 64},
        "optimizer": {"lr": 1e-4, "clip_norm": 1.0},
        "training": {
            "steps": NUM_STEPS,
            "global_batch": WORLD_SIZE * PER_WORKER,
            "zero_stage": 2,
            "precision": "fp32",
            "click_rounds": 2,
        },
    }
    return parse_config(Recipe, values, "test")


class Draws:
    """A worker's batches, drawn without a look at the others'."""

    data_wait = 0.0

    def __init__(self, recipe: Recipe, training_data: TrainingData, rank: int) -> None:
        self.recipe = recipe
        self.splits: dict[str, Split] = dict(training_data.splits)
        self.rng = np.random.default_rng(rank)
        self.rank = rank
        self.kinds: list[str] = []
        self.datasets: set[str] = set()

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        step = len(self.kinds)
        kind = str(self.rng.choice(KINDS))
        names = self.rng.choice(list(LAYOUTS), PER_WORKER)
        if kind == "one dataset":
            names[:] = names[0]
        if kind == "empty samples":
            names[:] = ""
        if kind == "some empty":
            names[0] = ""
        self.kinds.append(kind)
        self.datasets.update(names.tolist())
        settings, samples = self.recipe.data.sample, []
        for place, name in enumerate(names.tolist()):
            index = (step * WORLD_SIZE + self.rank) * PER_WORKER + place
            if not name:
                samples.append(empty_sample(settings))
                continue
            row = Row(index, name, 0, int(self.rng.integers(len(self.splits[name]))))
            samples.append(load_sample(self.splits[name], row, 0, settings))
        return [Batch.of(samples, step)]


def main() -> None:
    """Train `NUM_STEPS` steps; write losses and what the batches were to `<folder>/<rank>.json`."""
    root, folder = sys.argv[1:]
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    # Whoever waits this long for another has been forgotten.
    dist.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=60))
    recipe = recipe_for(root)
    training_data, worker = TrainingData.of(recipe), Worker(rank, WORLD_SIZE, torch.device("cpu"))
    step = make_step(recipe, training_data.vocabulary)
    engine = make_engine(step, recipe.optimizer, worker, recipe.training.zero_stage, PER_WORKER, 1)
    writer = CheckpointWriter(RunFolder(folder), rank, WORLD_SIZE, 1, False, None)
    loop = Loop(recipe, training_data, worker, step, engine, writer, None)
    draws, losses = Draws(recipe, training_data, rank), []
    for _ in range(NUM_STEPS):
        batches, normalizers, _ = loop._next(draws)  # type: ignore[arg-type]
        terms, _ = loop._update(batches, normalizers)
        losses.append(terms["loss"])
    found = {"losses": losses, "kinds": draws.kinds, "datasets": sorted(draws.datasets)}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    writer.finish()
    end_worker()


if __name__ == "__main__":
    main()
