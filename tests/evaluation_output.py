"""A training's folder and the outputs of evaluations of its checkpoints, as jobs leave them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image

from semsam.storage import Folder
from semsam.tracking.tracked_run import TrackedRun
from semsam.tracking.tracker import TrackingSettings
from semsam.training.train_log import LOG_FILE

METRICS = {
    "one_click/coco_panoptic/miou_max": 0.25,
    "panoptic/coco_panoptic/pq": 0.125,
    "panoptic/coco_panoptic/pq_things": 0.0625,  # No headline.
    "baseline/one_click/coco_panoptic/miou_max": 0.5,
}
DATASETS = [{"name": "coco_panoptic/val", "digest": "c" * 32, "root": "/data/coco"}]
FILES = {"pictures": ["coco_panoptic.png"], "figures": ["pr_coco_panoptic.png"], "tables": ["classes.json"]}


def png(level: int) -> bytes:
    """A grey picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 12, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_training(path: Path, tracking: TrackingSettings, name: str = "seven", **params: Any) -> TrackedRun:
    """What a training that is tracked leaves in its folder first."""
    settings = {
        "model": {"preset": "swin_tiny", "init": None, "overrides": {"num_levels": 4}},
        "training": {"steps": 20, "global_batch": 8, "precision": "bf16", "seed": 3, "zero_stage": 2},
        "optimizer": {"lr": 1e-4, "weight_decay": 0.05},
        "run": {"num_workers": 2},
    }
    tracked = TrackedRun(tracking, name, settings | params, DATASETS, "training")
    tracked.store(Folder(path))
    return tracked


def write_log(folder: Path, steps: int = 20) -> None:
    """What a training of so many steps has noted."""
    lines = [
        {"step": step, "loss": 2.0 / (step + 1), "click/iou": 0.5, "lr": 1e-4, "time": 1.8e9 + step}
        | {"samples_seen": {"coco_panoptic": 8 * (step + 1)}, "mean_of": 1}
        for step in range(steps)
    ]
    (folder / LOG_FILE).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))


def write_evaluation(
    path: Path, tracking: TrackingSettings, training: Path | None, step: int = 10, **values: Any
) -> TrackedRun:
    """What an evaluation of a training's checkpoint leaves in its output."""
    folder = Folder(path)
    checkpoint = None
    if training is not None:
        where = f"{training}/checkpoint-{step}"
        checkpoint = {"run": str(training), "step": step, "path": where, "digest": f"{step:064x}"}
    numbers = {
        "time": 1_700_000_000.5 + step,
        "metrics": METRICS,
        "intervals": {"one_click/coco_panoptic/miou_max": [0.2, 0.3]},
        "checkpoint": checkpoint,
        "description": "What *ran*.",
    }
    folder.write("metrics.json", orjson.dumps(numbers | FILES | values))
    for name in FILES["pictures"] + FILES["figures"]:
        folder.write(name, png(step))
    folder.write("classes.json", b"{}")
    settings = {
        "checkpoint": checkpoint and checkpoint["path"],
        "split": "val",
        "image_size": {"short_side": 800, "max_long_side": 1333},
        "max_images": None,
        "seed": 0,
        "num_actors": 2,
        "rows_per_task": 16,
    }
    tracked = TrackedRun(tracking, "evaluation", settings, DATASETS, "evaluation")
    tracked.store(folder)
    return tracked
