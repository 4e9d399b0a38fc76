"""The seven toy datasets: samples per second of one core for each, and how long a debug training waits for its data.

    python tests/benchmarks/bench_toy.py [--steps 60]

The training is the quickstart's recipe in one process, with the reader's threads on the same cores.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import tempfile
import time
from pathlib import Path

import torch
from bench_reader import write_split

from jobs.quickstart import DEFAULT_CONFIG, QuickstartJob
from pipelines.prepare.shard_writer import ShardOptions, SplitTask, make_record
from pipelines.sources import SOURCES
from pipelines.sources.source import BadSample
from pipelines.toy import ToySettings, write_toy_world
from pipelines.toy.layouts import LAYOUTS
from semsam.config import load_config
from semsam.data.plan import Plan, PlanSettings, Stage
from semsam.data.reader import load_sample
from semsam.data.schema import Record
from semsam.data.shards import Split
from semsam.data.training_sample import SampleSettings
from semsam.storage import Folder, existing_folder
from semsam.training.attempt import RunFolder
from semsam.training.engine import Worker
from semsam.training.recipe import Recipe
from semsam.training.train import train
from semsam.training.train_log import read_log

TOY = ToySettings(train_images=24, val_images=1)
ROUNDS = 5


def prepare(toy: Path, shards: Path) -> dict[str, Split]:
    """The train splits of the toy world as jobs.prepare leaves them, made without Ray."""
    write_toy_world(toy, TOY)
    splits = {}
    for dataset in LAYOUTS:
        source = SOURCES[dataset]
        task = SplitTask(source, existing_folder(str(toy / dataset)), "train", "", ShardOptions(8, 0, 92), "bench")
        names = source.vocabulary()
        records: list[Record] = []
        for entry in source.index(task.files, "train").entries:
            try:
                records.append(make_record(task, names, entry).record)
            except BadSample:  # The toy world has a few.
                continue
        splits[dataset] = write_split(shards / dataset / "train", records, 8, dataset, names)
    return splits


def bench_datasets(splits: dict[str, Split], toy: SampleSettings) -> None:
    """From the shard to the sample, at the crop that the quickstart trains on and at full size."""
    full = SampleSettings()
    crops = [one.augmentation.crop_size for one in (toy, full)]
    print(f"samples per second of one core, crop {crops[0]} and crop {crops[1]}")
    for dataset, split in splits.items():
        plan = Plan(
            0, {dataset: split.rows_of_shard}, PlanSettings(stages=(Stage({dataset: 1.0}),)), len(split), ROUNDS
        )
        rates = [max(samples_per_second(split, plan, step, one) for step in range(ROUNDS)) for one in (toy, full)]
        record = split.record(0)
        regions = split.manifest.num_regions / len(split)
        size = f"{record.height} x {record.width}, {regions:.0f} regions"
        print(f"  {dataset:<14} {size:<24} {rates[0]:6.0f} {rates[1]:6.0f}")


def samples_per_second(split: Split, plan: Plan, step: int, settings: SampleSettings) -> float:
    """One step's samples by the CPU time of this thread."""
    rows = plan.rows(step)
    started = time.thread_time()
    for row in rows:
        load_sample(split, row, 0, settings)
    return len(rows) / (time.thread_time() - started)


def bench_training(recipe: Recipe, folder: Path) -> None:
    """The share of a training's steps that it spends waiting for data, the first step (nothing read ahead) left out."""
    train(recipe, {}, RunFolder(folder), Worker(0, 1, torch.device("cpu")), "bench", None)
    log = list(read_log(Folder(str(folder))))[1:]
    waited, took = sum(entry["data_wait"] for entry in log), sum(entry["seconds"] for entry in log)
    print(f"debug training, batches of {recipe.training.global_batch}: {1e3 * took / len(log):.0f} ms a step")
    print(f"  of that waiting for data {100 * waited / took:.2f}%  (bound: 3%)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="of the training")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        changes = [
            f"data.root={folder}/shards",
            f"training.steps={steps}",
            f"training.checkpoint_every={steps}",
            "training.zero_stage=null",
        ]
        job = load_config(QuickstartJob, str(DEFAULT_CONFIG), [f"train.{change}" for change in changes])
        recipe = job.train.in_parts()
        splits = prepare(folder / "toy", folder / "shards")
        bench_datasets(splits, recipe.data.sample)
        bench_training(recipe, folder / "run")


if __name__ == "__main__":
    main()
