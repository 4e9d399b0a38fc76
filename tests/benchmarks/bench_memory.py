"""Memory of each stage with a little data and with twenty times as much of it: flat, for all of it streams.

    python tests/benchmarks/bench_memory.py [stage ...]

Each stage runs in a process of its own; with a cluster, the driver is that process, and of its workers the largest
counts.  Images are small, so that it is their number that would show.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

BOUND = 1.2
FEW, TIMES = 48, 20
ANSWERED = 12  # Of the stages with a model, which take longer for each image.
SMALL = {"image_size": {"short_side": 32, "max_long_side": 48}, "num_actors": 1, "progress_interval": 60.0}


def write_sa1b(root: Path, count: int) -> Path:
    """So many annotated images in the layout of SA-1B."""
    from semsam.data import rle
    from semsam.data.images import encode_jpeg

    mask = np.zeros((48, 64), bool)
    mask[5:30, 10:50] = True
    counts = rle.encode(mask).decode()
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    root.mkdir(parents=True)
    for number in range(1, count + 1):
        rows = [{"id": i, "area": 1000, "segmentation": {"size": [48, 64], "counts": counts}} for i in range(1, 20)]
        document = {"image": {"height": 48, "width": 64}, "annotations": rows}
        (root / f"sa_{number}.jpg").write_bytes(encode_jpeg(image))
        (root / f"sa_{number}.json").write_bytes(orjson.dumps(document))
    return root


def prepare(folder: Path, count: int) -> None:
    from jobs import prepare
    from semsam.config import parse_config

    datasets = {"sa1b": {"root": str(write_sa1b(folder / "native", count)), "splits": ["train"]}}
    values = {"datasets": datasets, "output": str(folder / "shards"), "rows_per_shard": 16, "progress_interval": 60.0}
    prepare.run(parse_config(prepare.PrepareJob, values, "bench"))


def read(folder: Path, count: int) -> None:
    from semsam.data.plan import Plan, PlanSettings, Stage
    from semsam.data.reader import Reader
    from semsam.data.shards import Split
    from semsam.data.training_sample import SampleSettings
    from tests.painted_shards import VOCABULARIES, write_painted_shards

    root = write_painted_shards(folder, count, {"pascal_part": VOCABULARIES["pascal_part"]})
    split = Split(f"{root}/pascal_part/train")
    settings = PlanSettings((Stage({"pascal_part": 1}),))
    plan = Plan(0, {"pascal_part": split.rows_of_shard}, settings, 4, count // 4)
    with Reader(plan, {"pascal_part": split}, SampleSettings(), 0, 0, 1) as reader:
        for _ in reader:
            pass


def evaluate(folder: Path, count: int) -> None:
    from jobs import evaluate
    from semsam.config import parse_config
    from tests.painted_shards import VOCABULARIES, write_painted_shards

    root = write_painted_shards(folder / "shards", count, {"objects365": VOCABULARIES["objects365"]})
    values = {"data": str(root), "split": "train", "output": str(folder / "out"), "untrained": True, "pictures": 0}
    values |= {"tracking": {"enabled": False}, "rows_per_task": 4, "resamples": 10}
    evaluate.run(parse_config(evaluate.EvaluateJob, values | SMALL, "bench"))


def generate(folder: Path, count: int) -> None:
    from jobs import generate
    from semsam.config import parse_config

    masks = {"points_per_side": 2, "min_iou": -10, "min_stability": 0, "max_overlap": 1}
    values = {"images": str(write_sa1b(folder / "native", count)), "output": str(folder / "out"), "masks": masks}
    generate.run(parse_config(generate.GenerateJob, values | SMALL | {"images_per_file": 4}, "bench"))


STAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "prepare": (prepare, FEW),
    "read": (read, FEW),
    "evaluate": (evaluate, ANSWERED),
    "generate": (generate, ANSWERED),
}


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The most memory, in MiB, of this process and of any one of Ray's workers below it, by what it does."""
    most: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        this = psutil.Process()
        while not ended.wait(0.2):
            for process in (this, *this.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    name = process.name() if process != this else "driver"
                    if name == "driver" or name.startswith("ray::"):
                        info = process.memory_info()
                        # Of the object store's pages all workers count what they have touched.
                        most[name] = max(most.get(name, 0.0), (info.rss - info.shared) / 2**20)

    watching = threading.Thread(target=watch)
    watching.start()
    yield most
    ended.set()
    watching.join()


def measure(stage: str, count: int) -> dict[str, float]:
    """The driver's memory and that of the largest worker, measured in a new process."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, __file__, "--in-this-process", stage, str(count)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_here(stage: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, watched() as most:
        STAGES[stage][0](Path(folder), count)
    driver = most.pop("driver")
    return {"driver": driver} | ({"largest worker": max(most.values())} if most else {})


def main() -> None:
    chosen = sys.argv[1:] or list(STAGES)
    too_much = []
    for stage in chosen:
        few = STAGES[stage][1]
        little, much = measure(stage, few), measure(stage, few * TIMES)
        for name in little:
            ratio = much[name] / little[name]
            sizes = f"{few:>4} images {little[name]:6.0f} MiB, {few * TIMES:>4} {much[name]:6.0f} MiB"
            print(f"  {stage:<9}{name:<15}{sizes}: {ratio:.2f}  (bound: {BOUND})", flush=True)
            too_much += [f"{stage}, {name}"] if ratio > BOUND else []
    if too_much:
        sys.exit(f"memory grows with the data: {'; '.join(too_much)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-this-process"]:
        print(json.dumps(run_here(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
