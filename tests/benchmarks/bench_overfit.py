"""Does the small model learn ten real photos by heart?  Whoever cannot overfit has a bug, and not a lack of data.

    python tests/benchmarks/bench_overfit.py [--minutes 15] [--workers 2]

The photos are the samples of COCO, ADE20K and PASCAL-Part (SEMSAM_SAMPLES, by default ../shared/data).  A model of the
preset `debug` learns them from random weights in `--workers` processes of one thread each, and is asked through
`semsam.predictor` by the one click of each region that evaluation clicks (`semsam.evaluation`).

What counts is the oracle mIoU (of a region's levels the one that fits best) over the regions of at least 32 x 32
pixels: those whose mask has 1,024 pixels or more in the photo, of the regions that training uses.  It is held against
the ceiling of the same regions: what their true masks score when they are brought to the stride-4 grid of the photo as
the model sees it, and from there back to the photo in the predictor's way.  Training ends as soon as the ratio of the
two reaches 0.75; not to reach it in time (the bound is 30 minutes) is an error.  Time is that of the clock.

The model is asked about squares, as it is trained: places are relative to the padded photo, and what was learnt by
heart in one frame is not found in another.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from bench_reader import write_split
from jaxtyping import Bool, Float
from torch import Tensor

from pipelines.prepare.shard_writer import ShardOptions, SplitTask, make_record
from pipelines.sources import SOURCES
from semsam.config import parse_config
from semsam.data.reader import Reader
from semsam.data.schema import Record
from semsam.encoded_image import EncodedImage
from semsam.evaluation.asking import ask
from semsam.evaluation.items import Ask
from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.questions import AskedRegions, Questions
from semsam.model.pixel_decoder import ImageFeatures
from semsam.predictor import ImageSize, Predictor
from semsam.storage import existing_folder
from semsam.training.engine import Worker, make_engine
from semsam.training.optimizer import set_lr
from semsam.training.recipe import Recipe
from semsam.training.train import make_step
from semsam.training.training_data import TrainingData

SAMPLES = {
    "coco_panoptic": "coco",
    "ade20k": "ade20k/ADEChallengeData2016",
    "pascal_part": "pascal_part",
}
TARGET = 0.75  # Of the ceiling.
SMALLEST = 32 * 32  # Pixels in the photo.
SIDE = 128  # Of the square into which a photo is padded, in training and when asked.
MASK_STRIDE = 4
IMAGE_SIZE = ImageSize(SIDE, SIDE, square=True)
NUM_RATES = 10_000  # The learning rate follows the clock, in so many steps.
TIMES_ASKED = 15
LOSS_EVERY = 200
RECIPE = {
    "data": {
        "split": "val",
        # Two photos, two, and six.
        "plan": {"stages": [{"weights": {"coco_panoptic": 1, "ade20k": 1, "pascal_part": 3}}]},
        # Whole photos, always the same: they are to be learnt by heart.  All prompts are clicks.
        "sample": {
            "augmentation": {"crop_size": SIDE, "scale_min": 1.0, "scale_max": 1.0, "flip_probability": 0.0},
            "prompts": {"num_prompts": 24, "box_share": 0.0},
        },
        "reader": {"num_threads": 1},
    },
    "model": {"preset": "debug", "overrides": {"backbone": {"drop_path": 0.0}}},
    "criterion": {"num_points": 256, "weights": {"mask_dice": 8.0, "generic": 0.1}},
    "optimizer": {
        "lr": 1.5e-3,
        "backbone_factor": 1.0,
        "clip_norm": 5.0,
        "schedule": "cosine",
        "decay": 0.02,
        "warmup_steps": 50,
    },
    # The names' encoder stays as it is: every step would have to run it over 500 names.
    "training": {"steps": 10**6, "global_batch": 4, "zero_stage": None, "precision": "fp32", "text": "frozen"},
}


@dataclass(frozen=True)
class Photo:
    """A photo with the regions to ask for, whose atom map is that of the whole photo."""

    record: Record
    asked: AskedRegions
    clicked: list[int]  # Columns of the atom map.

    @staticmethod
    def of(record: Record) -> Photo:
        """The record's regions as evaluation has them."""
        asked = AskedRegions.of(record)
        return Photo(record, asked, list(asked.innermost_clicks()))

    def is_large(self) -> Bool[np.ndarray, " r"]:
        """Which of the clicked regions have 32 x 32 pixels or more."""
        return self.asked.atoms.areas()[self.clicked] >= SMALLEST


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=15, help="by the clock, at most")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    samples = Path(os.environ.get("SEMSAM_SAMPLES", "../shared/data"))
    if not samples.is_dir():
        print(f"not run: no real samples at {samples}; set SEMSAM_SAMPLES to the folder that holds coco/, ade20k/, ...")
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(samples, Path(name) / "shards")
        recipe = parse_config(Recipe, RECIPE | {"data": RECIPE["data"] | {"root": f"{name}/shards"}}, "RECIPE")
        try:
            torch.multiprocessing.spawn(
                work, (arguments.workers, f"file://{name}/meeting", recipe, arguments.minutes), arguments.workers
            )
        except torch.multiprocessing.ProcessExitedException:
            sys.exit(f"{TARGET} of the ceiling was not reached in {arguments.minutes:g} minutes")


def prepare(samples: Path, shards: Path) -> None:
    """The samples as jobs.prepare leaves them, made without Ray."""
    for dataset, folder in SAMPLES.items():
        source = SOURCES[dataset]
        task = SplitTask(source, existing_folder(str(samples / folder)), "val", "", ShardOptions(8, 0, 92), "bench")
        names = source.vocabulary()
        records = [make_record(task, names, entry).record for entry in source.index(task.files, "val").entries]
        write_split(shards / dataset / "val", records, 8, dataset, names)


def work(rank: int, num_workers: int, meeting: str, recipe: Recipe, minutes: float) -> None:
    """One worker of the training; the first one prints, and all exit with 1 where the target is not reached."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_workers)
    training_data = TrainingData.of(recipe)
    photos = [Photo.of(split.record(row)) for split in training_data.splits.values() for row in range(len(split))]
    reached = Overfit(recipe, training_data, Worker(rank, num_workers, torch.device("cpu")), photos).run(60 * minutes)
    dist.destroy_process_group()
    if not reached:
        sys.exit(1)


class Overfit:
    """A training on all photos that is asked for them now and then."""

    def __init__(self, recipe: Recipe, training_data: TrainingData, worker: Worker, photos: list[Photo]) -> None:
        self.recipe, self.worker = recipe, worker
        self.own_photos = photos[worker.rank :: worker.world_size]
        self.step = make_step(recipe, training_data.vocabulary)
        self.step.embed_frozen_names()
        training = recipe.training
        micro_batch = -(-training.global_batch // worker.world_size)
        self.engine = make_engine(self.step, recipe.optimizer, worker, training.zero_stage, micro_batch, 1)
        self.reader = Reader(
            training_data.plan,
            training_data.splits,
            recipe.data.sample,
            training.seed,
            worker.rank,
            worker.world_size,
            settings=recipe.data.reader,
        )
        large = [photo.is_large() for photo in photos]
        found = [ceilings(photo)[is_large] for photo, is_large in zip(photos, large, strict=True)]
        self.ceiling = float(np.concatenate(found).mean())
        self.say(
            f"{len(photos)} photos, {sum(len(p.record.regions) for p in photos)} regions; "
            f"{sum(len(p.clicked) for p in photos)} to learn and ask for, {sum(int(one.sum()) for one in large)} of "
            f"them with {SMALLEST} pixels or more; their ceiling at {SIDE} pixels {self.ceiling:.3f}"
        )

    def run(self, seconds: float) -> bool:
        """Train for so long at most, all included; whether the target was reached."""
        started, steps, losses, asked = time.perf_counter(), 0, 0.0, 0
        self.step.train()
        with self.reader:
            while True:
                loss, share = self.update((time.perf_counter() - started) / seconds)
                steps, losses = steps + 1, losses + loss
                if steps % LOSS_EVERY == 0:
                    self.say(f"  step {steps}, {share * seconds:.0f} s: loss {losses / LOSS_EVERY:.2f}")
                    losses = 0.0
                if int(share * TIMES_ASKED) == asked:
                    continue
                asked = int(share * TIMES_ASKED)
                miou = self.ask()
                ratio = miou / self.ceiling
                self.say(
                    f"step {steps}, {share * seconds:.0f} s: oracle mIoU {miou:.3f}, ceiling {self.ceiling:.3f}, "
                    f"ratio {ratio:.3f}  (bound: {TARGET})"
                )
                if ratio >= TARGET or share >= 1:
                    return ratio >= TARGET

    def update(self, share: float) -> tuple[float, float]:
        """One step; the global batch's loss, and the mean of all workers' `share` of the time, at most 1."""
        [batch] = next(self.reader)
        counts = torch.from_numpy(self.step.count_targets(batch))
        own = torch.tensor([share / self.worker.world_size], dtype=torch.float64)
        summed = self.worker.sum(torch.cat([counts, own]))
        share = min(float(summed[-1]), 1.0)
        set_lr(self.engine.optimizer, int(share * (NUM_RATES - 1)), NUM_RATES, self.recipe.optimizer)
        inputs = self.step.to_device(batch, self.worker.device)
        loss, _ = self.engine.forward_backward(inputs, summed[:-1].float())
        self.engine.step()
        return float(self.worker.sum(loss[None].double())), share

    def ask(self) -> float:
        """The oracle mIoU over all large regions; each worker asks for its own photos.

        The predictor's model is the one in training, which goes on training afterwards.
        """
        predictor = Predictor(self.step.model, IMAGE_SIZE)
        found = np.concatenate([ious(predictor, photo)[photo.is_large()] for photo in self.own_photos])
        self.step.train()
        total, count = self.worker.sum(torch.tensor([found.sum(), len(found)], dtype=torch.float64)).tolist()
        return float(total / count)

    def say(self, text: str) -> None:
        """Print, on the first worker alone."""
        if self.worker.rank == 0:
            print(text, flush=True)


def ious(predictor: Predictor, photo: Photo) -> Float[np.ndarray, " r"]:
    """For each region the IoU of the level that fits best, after one click."""
    clicks = PromptTable.of([ask(predictor, photo.record, Questions(random_clicks=0))]).asked_by(Ask.INNERMOST)
    return clicks.prompted.ious.max(axis=1)


def ceilings(photo: Photo) -> Float[np.ndarray, " r"]:
    """For each region the IoU of its true mask after a visit to the stride-4 grid."""
    height, width = photo.asked.atoms.labels.shape
    size = IMAGE_SIZE.resized(height, width)
    found = []
    for column in photo.clicked:
        mask = photo.asked.atoms.mask(column)
        seen = torch.from_numpy(cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA))
        back = from_grid(seen, (height, width)).numpy() > 0
        found.append((back & mask).sum() / (back | mask).sum())
    return np.array(found)


def from_grid(seen: Float[Tensor, "y x"], size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """A soft mask of the network's input as the mask output has it, and back at the photo's size."""
    padded = F.pad(seen, (0, SIDE - seen.shape[1], 0, SIDE - seen.shape[0]))
    grid = F.avg_pool2d(padded[None, None], MASK_STRIDE) - 0.5
    # As if the model's pixel embedding were the mask itself.
    image = EncodedImage(ImageFeatures(grid, (), tuple(padded.shape)), size, tuple(seen.shape))
    return image.at_own_size(image.mask_logits(torch.ones(1, 1)))[0]


if __name__ == "__main__":
    main()
