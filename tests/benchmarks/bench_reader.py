"""How well the reader keeps up: threads against the same work inline, S3 against local disk, memory.

    python tests/benchmarks/bench_reader.py [--samples 20000]

Prints ratios of times taken in one run, in interleaved rounds.  Samples/s move with the machine and its load, and are
there for orientation.  Two processes that do the same work inline share nothing but the machine, so they say how much
of a second core there is to win.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

sys.path.insert(0, str(Path(__file__).parents[2]))

from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.manifest import MANIFEST_NAME, Manifest, Vocabulary
from semsam.data.plan import Plan, PlanSettings, Stage
from semsam.data.reader import Reader, ReaderSettings, load_sample
from semsam.data.sample import Batch
from semsam.data.schema import Kind, Record, Region, to_row
from semsam.data.shard_file import index_name, shard_name, write_shard_file
from semsam.data.shards import Split
from semsam.data.training_sample import SampleSettings
from semsam.storage import Folder
from tests.s3_server import s3_server

FULL = SampleSettings()
GLOBAL_BATCH = 4
ROUNDS = 8


def synthetic_record(number: int, height: int, width: int, num_masks: int) -> Record:
    """A textured photo with nested and overlapping ellipses, about as heavy as an image of SA-1B."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image += rng.normal(0, 8, image.shape).astype(np.int16)
    regions = []
    for j in range(num_masks):
        counts = rle.encode(_ellipse(rng, height, width))
        box = rle.box_xyxy(counts, height, width)
        regions.append(Region(f"{number}_{j}", counts, box, float(rle.area(counts)), Kind.CLASS_AGNOSTIC))
    jpeg = encode_jpeg(image.clip(0, 255).astype(np.uint8))
    return Record("sa1b", "train", f"{number:012d}", jpeg, height, width, height, width, tuple(regions))


def _ellipse(rng: np.random.Generator, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    canvas = np.zeros((height, width), np.uint8)
    radius = min(height, width) * 0.4 * rng.random() ** 2 + 2
    centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
    axes = (int(radius), int(radius * rng.uniform(0.4, 1) + 1))
    cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    canvas[centre[1], centre[0]] = 1
    return canvas.astype(bool)


def write_split(
    folder: Path, records: list[Record], rows_per_shard: int, dataset: str = "sa1b", names: Vocabulary | None = None
) -> Split:
    """The records as a prepared split."""
    folder.mkdir(parents=True)
    shards = []
    for first in range(0, len(records), rows_per_shard):
        part = records[first : first + rows_per_shard]
        path = folder / shard_name(len(shards))
        shard, index = write_shard_file(path, map(to_row, part), len(shards), first, len(part))
        (folder / index_name(shard.path)).write_bytes(index)
        shards.append(shard)
    names = names or Vocabulary(())
    regions = sum(len(record.regions) for record in records)
    manifest = Manifest(
        dataset, "train", "", tuple(shards), len(records), regions, {}, {}, {}, names, names.digest(), "bench", {}
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return Split(str(folder))


def make_plan(split: Split, num_steps: int) -> Plan:
    """A plan of this split alone."""
    settings = PlanSettings(stages=(Stage({"sa1b": 1.0}),))
    return Plan(0, {"sa1b": split.rows_of_shard}, settings, GLOBAL_BATCH, num_steps)


def read_inline(split: Split, plan: Plan) -> None:
    """The reader's work without threads."""
    for step in range(plan.num_steps):
        Batch.of([load_sample(split, row, 0, FULL) for row in plan.rows(step)], step)


def read_inline_at(root: str, num_steps: int) -> None:
    """The same in another process."""
    split = Split(root)
    read_inline(split, make_plan(split, num_steps))


def open_reader(split: Split, plan: Plan, num_threads: int) -> Reader:
    return Reader(plan, {"sa1b": split}, FULL, 0, 0, 1, settings=ReaderSettings(num_threads))


def read_with(split: Split, plan: Plan, num_threads: int) -> None:
    """The reader's work, its batches thrown away."""
    with open_reader(split, plan, num_threads) as reader:
        for _ in reader:
            pass


def take(reader: Reader, num_steps: int) -> None:
    """The next batches, thrown away one by one."""
    for _ in range(num_steps):
        next(reader)


def seconds(work: Callable[[], None]) -> float:
    """Wall clock of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(works: dict[str, Callable[[], None]], num_samples: int) -> dict[str, float]:
    """Seconds of each in the best of interleaved rounds (other load only ever adds to it); prints samples/s."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name].append(seconds(work))
    best = {name: min(taken) for name, taken in times.items()}
    for name, taken in best.items():
        print(f"  {name:<24}{num_samples / taken:8.1f} samples/s")
    return best


def bench_threads(split: Split, num_samples: int) -> None:
    """Two threads over `num_samples` samples in slices, between which the other ways do a tenth as much each.

    Memory is read after every slice.
    """
    steps = max(2, num_samples // GLOBAL_BATCH // ROUNDS)  # Of a slice.
    few = max(2, steps // 10)
    ahead = ReaderSettings().prefetch
    plan, short = make_plan(split, ROUNDS * (steps + ahead)), make_plan(split, few)
    rates: dict[str, list[float]] = {}
    memory = []

    def measure(name: str, work: Callable[[], None], num_steps: int) -> None:
        rates.setdefault(name, []).append(num_steps * GLOBAL_BATCH / seconds(work))

    with open_reader(split, plan, 2) as reader, multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(read_inline_at, [(split.root, 1)] * 2, chunksize=1)  # Their start is not measured.
        for _ in range(ROUNDS):
            measure("inline", lambda: read_inline(split, short), few)
            measure("one thread", lambda: read_with(split, short, 1), few)
            both = [(split.root, few)] * 2
            measure("two processes inline", lambda both=both: pool.starmap(read_inline_at, both, chunksize=1), 2 * few)
            for _ in range(ahead):  # Made while the others were measured.
                next(reader)
            measure("two threads", lambda: take(reader, steps), steps)
            memory.append(resident_mib())
    print(f"{ROUNDS * steps * GLOBAL_BATCH} samples with two threads, {ROUNDS * few * GLOBAL_BATCH} in other ways")
    # The harmonic mean is that of all samples; other load only ever slows a round down.
    shown = {name: (statistics.harmonic_mean(taken), max(taken)) for name, taken in rates.items()}
    for name, (mean, best) in shown.items():
        print(f"  {name:<24}{mean:8.1f} samples/s, {best:.1f} in the best round")
    for one, other, bound in (
        ("two threads", "one thread", "  (bound: 1.7)"),
        ("one thread", "inline", "  (bound: 0.9)"),
        ("two threads", "two processes inline", "  (bound: 0.9)"),
        ("two processes inline", "inline", ""),
    ):
        ratios = [shown[one][i] / shown[other][i] for i in range(2)]
        print(f"  {one + ' / ' + other:<38}{ratios[0]:.2f}, best rounds {ratios[1]:.2f}{bound}")
    print(f"  memory after each slice, MiB: {', '.join(f'{mib:.0f}' for mib in memory)}  (bound: flat)")


def bench_s3(local: Split) -> None:
    """Local disk against an S3 server on the same cores, two threads each."""
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as server:
        for path in Path(local.root).iterdir():
            Folder(f"{server.uri}/train").write(path.name, path.read_bytes())
        remote = Split(f"{server.uri}/train")
        plan = make_plan(local, num_steps=10)
        works = {"local": lambda: read_with(local, plan, 2), "s3": lambda: read_with(remote, plan, 2)}
        took = compare(works, plan.num_steps * plan.global_batch)
        print(f"  s3 / local                  {took['local'] / took['s3']:.2f}  (bound: 0.7)")


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=20_000, help="how many samples two threads load")
    num_samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as name:
        records = [synthetic_record(i, 768, 1024, 100) for i in range(12)]
        size = statistics.mean(len(record.image) for record in records) / 1024
        split = write_split(Path(name) / "sa1b" / "train", records, rows_per_shard=4)
        print(f"SA-1B-like samples: 768x1024, 100 masks, JPEG of {size:.0f} KiB")
        bench_threads(split, num_samples)
        print("From S3")
        bench_s3(split)


if __name__ == "__main__":
    main()
