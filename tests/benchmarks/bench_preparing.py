"""What an image costs while its dataset is prepared: CPU-seconds and bytes of a row, and so a dataset in core-hours.

    python tests/benchmarks/bench_preparing.py

SA-1B's images are made here, 1500 x 2250 with 100 masks each, and brought down to 1024 pixels as `jobs.prepare` does;
the others are the real samples in SEMSAM_SAMPLES.  Waiting for files is not in it: that is the storage's.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import sys
import tempfile
import time
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelines.prepare.shard_writer import ShardOptions, SplitTask, write_shard
from pipelines.sources import SOURCES
from semsam.storage import existing_folder
from tests.benchmarks.bench_data import scene

# Where samples lie, their split, and how many images the train split of the dataset has.
REAL = {
    "coco_panoptic": ("coco128", "val", 118_287),
    "ade20k": ("ade20k/ADEChallengeData2016", "train", 20_210),
    "pascal_part": ("pascal_part", "val", 4_998),
}
SA1B = ("sa1b", "train", 11_185_362)
MADE = 6  # Images of SA-1B.


def write_sa1b(root: Path) -> None:
    """Images with masks in SA-1B's native layout."""
    (root / "train").mkdir(parents=True)
    for number in range(MADE):
        record = scene("sa1b", 1500, 2250, 100, seed=number)
        path = root / "train" / f"sa_{number}"
        path.with_suffix(".jpg").write_bytes(record.image)
        rows = [
            {
                "id": int(region.annotation_id),
                "segmentation": {"size": [record.height, record.width], "counts": (region.rle or b"").decode()},
                "bbox": [region.box_xyxy[0], region.box_xyxy[1], *_sides(region.box_xyxy)],
                "area": region.area,
                "predicted_iou": 0.95,
                "stability_score": 0.97,
                "point_coords": [[1.0, 1.0]],
                "crop_box": [0, 0, record.width, record.height],
            }
            for region in record.regions
        ]
        image = {"image_id": number, "width": record.width, "height": record.height, "file_name": f"sa_{number}.jpg"}
        path.with_suffix(".json").write_bytes(orjson.dumps({"image": image, "annotations": rows}))


def measure(dataset: str, root: Path, split: str, num_train: int, output: Path) -> str:
    """A line of the table."""
    source = SOURCES[dataset]
    long_side = 1024 if dataset == "sa1b" else 0
    files = existing_folder(str(root))
    task = SplitTask(source, files, split, str(output / dataset), ShardOptions(64, long_side, 92), "bench", 1.0)
    entries = source.index(files, split).entries
    write_shard(task, 0, entries[:1])  # Imports and caches.
    started = time.process_time()
    part, _ = write_shard(task, 1, entries)
    each = (time.process_time() - started) / len(entries)
    size = sum(file.size for file in part.files) / len(entries)
    hours = each * num_train / 3600
    total = size * num_train / 1e9
    return f"{dataset:<15}{len(entries):>7}{each * 1e3:>10.1f}{size / 1e3:>10.0f}{hours:>12.2f}{total:>10.1f}"


def _sides(box_xyxy: tuple[float, float, float, float]) -> tuple[float, float]:
    return box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]


def main() -> None:
    samples = Path(os.environ.get("SEMSAM_SAMPLES", "../shared/data"))
    print(f"{'dataset':<15}{'images':>7}{'ms each':>10}{'kB each':>10}{'core-hours':>12}{'GB train':>10}")
    with tempfile.TemporaryDirectory() as folder:
        write_sa1b(Path(folder) / "sa1b")
        dataset, split, num_train = SA1B
        print(measure(dataset, Path(folder) / dataset, split, num_train, Path(folder) / "shards"))
        for dataset, (place, split, num_train) in REAL.items():
            if (samples / place).is_dir():
                print(measure(dataset, samples / place, split, num_train, Path(folder) / "shards"))
            else:
                print(f"{dataset:<15} not run: no real samples at {samples / place}")


if __name__ == "__main__":
    main()
