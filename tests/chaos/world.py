"""What jobs are run on, how they are called there, and what must be alike after any number of kills."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import orjson

from semsam.storage import Folder
from semsam.training.checkpoint import checkpoint_steps
from semsam.training.train_log import read_log
from tests.chaos.running import finish

Place: TypeAlias = Literal["disk", "s3"]

JOBS = ("prepare", "train", "evaluate", "generate")
SHARDS = "shards"  # What the world's native files are prepared to.
STEPS, CHECKPOINT_EVERY = 20, 5
# Deaths of workers that each setting allows; what is killed is one worker, or a machine with one of them.
MAX_FAILURES = 1
TRAIN = """
data:
  plan: {{stages: [{{weights: {{coco_panoptic: 1, pascal_part: 1}}}}]}}
  sample: {{augmentation: {{crop_size: 96}}, prompts: {{num_prompts: 2}}}}
model: {{preset: debug}}
criterion: {{num_points: 112}}
optimizer: {{lr: 1.0e-3, clip_norm: 1.0}}
training: {{steps: {steps}, global_batch: 4, zero_stage: 2, precision: fp32, checkpoint_every: {every}, keep_last: 9,
           log_every: 1}}
run: {{name: run, num_workers: 2, use_gpu: false, cpus_per_worker: 1, max_failures: {failures}}}
tracking: {{enabled: false}}
"""
UPLOAD = ".rclone_temp_put_"  # So begin files of the S3 server's that are no objects yet.
# What a step says of the time it took, not of what it computed.
TIMES = ("time", "data_wait", "seconds", "images_per_second", "memory_gb")


@dataclass(frozen=True)
class World:
    """Native files, shards and a recipe in a folder, which may also be seen as `uri` by way of an S3 server."""

    folder: Path
    uri: str = ""

    def write(self) -> World:
        """Draw the toy world and prepare two datasets of it."""
        from pipelines.toy import ToySettings, write_toy_world

        write_toy_world(self.folder / "toy", ToySettings(train_images=24, val_images=12, faults=False))
        recipe = TRAIN.format(steps=STEPS, every=CHECKPOINT_EVERY, failures=MAX_FAILURES)
        (self.folder / "train.yaml").write_text(recipe)
        finish(self.command("prepare", SHARDS))
        return self

    def root(self, place: Place) -> str:
        """The folder, as a job reads and writes it."""
        return self.uri if place == "s3" else str(self.folder)

    def command(self, job: str, output: str, place: Place = "disk") -> list[str]:
        """The command line of a job that reads the world and writes to `output`, a name in its folder."""
        root = self.root(place)
        arguments = {
            "prepare": [
                *(f"datasets.{name}.root={root}/toy/{name}" for name in ("coco_panoptic", "pascal_part")),
                f"output={root}/{output}",
                "rows_per_shard=2",
            ],
            "train": [str(self.folder / "train.yaml"), f"data.root={root}/{SHARDS}", f"run.storage={root}/{output}"],
            "evaluate": [
                f"data={root}/{SHARDS}",
                "untrained=true",
                f"output={root}/{output}",
                "image_size={short_side: 192, max_long_side: 192}",
                "pictures=0",
                "rows_per_task=1",
                "tracking.enabled=false",
            ],
            "generate": [
                f"images={root}/toy/coco_panoptic/val2017",
                f"output={root}/{output}",
                "image_size={short_side: 128, max_long_side: 128}",
                "masks={points_per_side: 2, min_iou: -10, min_stability: 0, max_overlap: 1}",
                "images_per_file=1",
            ],
        }[job]
        return [sys.executable, "-m", f"jobs.{job}", *arguments]

    def result(self, job: str, output: str, place: Place = "disk") -> dict[str, Any]:
        """What must be alike, by what it is called."""
        if job == "train":
            return _of_training(Folder(f"{self.root(place)}/{output}/run"))
        top = self.folder / output
        files = {str(path.relative_to(top)): path for path in sorted(top.rglob("*")) if path.is_file()}
        files = {name: path for name, path in files.items() if not path.name.startswith(UPLOAD)}
        result: dict[str, Any] = {}
        if job == "evaluate":
            result["numbers"] = orjson.loads(files.pop("metrics.json").read_bytes()) | {"time": None}
            del files["evaluation.yaml"]  # Names its own output.
        return result | {f"bytes of {name}": _digest(path.read_bytes()) for name, path in files.items()}


def _of_training(run: Folder) -> dict[str, Any]:
    """Each step's entry, and the weights.

    Which samples a step trains on, how they are cut and where they are clicked on follow from the seed and the step
    alone, and its loss from all of these and the weights: that all losses are the same floats, each step there once,
    says that each sample was trained on once.
    """
    log = list(read_log(run))
    steps = checkpoint_steps(run)
    weights = run.read(f"checkpoint-{steps[-1]}/model.safetensors") if steps else b""
    entries = {f"step {entry['step']}": {k: v for k, v in entry.items() if k not in TIMES} for entry in log}
    numbers = [entry["step"] for entry in log]
    return {"step numbers": numbers, "last checkpoint": steps[-1:], "weights": _digest(weights)} | entries


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
