"""What training on 8, 64 and 512 GPUs asks of storage and of the first worker: unit costs measured here, multiplied.

    python tests/benchmarks/scaling_study.py [--write]

Prints the tables of `infra/SCALING.md`, and with `--write` puts them there.  No GPU is measured: images per second of a
GPU are a stated range, and so are the speed and the limits of an object store.
Ends with an error where a plan for 512 workers costs a worker more than its bound.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import datetime
import pickle
import platform
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from semsam.data.plan import Plan, PlanSettings
from semsam.data.reader import worker_slices
from semsam.model.presets import preset
from semsam.model.semantic_sam import SemanticSam
from semsam.model.weight_files import Fingerprint
from semsam.training.checkpoint import RunState
from semsam.training.partition_files import ITEM, Header, partition_file
from semsam.training.partition_index import PartitionIndex
from semsam.training.partitions import quantities
from tests.benchmarks.bench_reader import make_plan, read_inline, synthetic_record, write_split
from tests.benchmarks.goodput import Preemptions

REPORT = Path(__file__).parents[2] / "infra" / "SCALING.md"
GPUS = (8, 64, 512)
PLAN_BOUND = 0.050  # Seconds.
# Images per second of one GPU: the estimates of bench_training_cost.py are 4 to 8 on 64 H100 and less on A100.
RATES = (2, 5, 10)
ROWS = {
    "sa1b": 11_000_000,
    "coco_panoptic": 118_287,
    "objects365": 1_742_289,
    "ade20k": 20_210,
    "pascal_part": 4_998,
    "paco": 45_790,
    "partimagenet": 16_540,
}
ROWS_PER_SHARD = 512
OPEN_SHARDS = 64
MODEL = "swin_large"
PART = 16 * 2**20  # Bytes of one request of an upload.
# Of an object store, as its vendors state them or as is usual; nothing here was measured.
LATENCY = 0.05  # Seconds to an answer's first byte.
WORKER_RATE, FIRST_RATE = 100e6, 300e6  # Bytes per second of a worker that sends one object, of one that sends parts.
GETS, PUTS = 5_500, 3_500  # Requests per second and prefix.
AT_ONCE = 16  # Requests of one worker.
MEMORY_RATE = 5e9  # Bytes per second from a GPU to pinned memory, or in memory.
# Preemptions: one of a node of 8 GPUs in so many hours; seconds from one until steps are made again.
HOURS, RESTART = (6, 24, 96), 180.0


@dataclass(frozen=True)
class Unit:
    """What one thing costs here."""

    plan: dict[int, float]  # Seconds of a step's plan, by global batch: each worker makes all of it.
    plan_start: float  # Seconds to begin one.
    image_cpu: float  # CPU-seconds to read an image and make it a sample.
    image_bytes: float  # In a shard.
    openings: dict[int, float]  # Shards opened per image of a worker, by the number of workers.
    parameters: int
    trained: int
    tensors: int
    index: dict[int, tuple[float, float]]  # By workers: CPU-seconds to make one of all quantities, and its bytes.
    state_bytes: dict[int, int]  # Of state.json, by workers.


def measure() -> Unit:
    """All unit costs, in about two minutes of CPU."""
    sizes = {name: tuple(shard_sizes(rows)) for name, rows in ROWS.items()}
    started = time.process_time()
    plans = {batch: Plan(0, sizes, PlanSettings(), batch, 300_000) for batch in (512, 4096)}
    plan_start = (time.process_time() - started) / len(plans)
    plan = {batch: statistics.median(spent(lambda p=p, s=s: p.rows(s)) for s in steps()) for batch, p in plans.items()}
    image_cpu, image_bytes = measure_images()
    with torch.device("meta"):
        model = SemanticSam(preset(MODEL))
    model.text_encoder.requires_grad_(False)
    shapes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    indices = {gpus: measure_index(shapes, gpus) for gpus in GPUS}
    return Unit(
        plan=plan,
        plan_start=plan_start,
        image_cpu=image_cpu,
        image_bytes=image_bytes,
        openings={gpus: openings(sizes, gpus) for gpus in GPUS},
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(shapes.values()),
        tensors=len(shapes),
        index={gpus: one[:2] for gpus, one in indices.items()},
        state_bytes={gpus: one[2] for gpus, one in indices.items()},
    )


def shard_sizes(rows: int) -> list[int]:
    """The rows of each shard of a dataset."""
    return [min(ROWS_PER_SHARD, rows - first) for first in range(0, rows, ROWS_PER_SHARD)]


def steps() -> list[int]:
    """Some of a run, in both of its stages."""
    return [*range(0, 180_000, 9_000), *range(180_000, 300_000, 6_000)]


def spent(work: Callable[[], object]) -> float:
    """CPU-seconds of this process for one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure_images() -> tuple[float, float]:
    """CPU-seconds per image of SA-1B's kind, and its bytes in a shard."""
    with tempfile.TemporaryDirectory() as name:
        records = [synthetic_record(i, 768, 1024, 100) for i in range(12)]
        split = write_split(Path(name) / "sa1b" / "train", records, rows_per_shard=4)
        plan = make_plan(split, num_steps=12)
        read_inline(split, plan)
        cpu = min(spent(lambda: read_inline(split, plan)) for _ in range(5)) / (plan.num_steps * plan.global_batch)
        return cpu, sum(shard.bytes for shard in split.manifest.shards) / len(records)


def openings(sizes: dict[str, tuple[int, ...]], workers: int) -> float:
    """Shards that a worker opens per image, when it keeps the last ones open, in the stage of SA-1B alone."""
    batch = max(64, workers)
    plan = Plan(0, sizes, PlanSettings(), batch, 10**7)
    own = worker_slices(batch, 0, workers, 1)[0]
    opened: OrderedDict[int, None] = OrderedDict()
    count = images = 0
    for step in range(60 * max(1, 512 // batch)):
        rows = plan.rows(step)
        for row in (rows[i] for i in own):
            count += row.shard not in opened
            opened[row.shard] = None
            opened.move_to_end(row.shard)
            if len(opened) > OPEN_SHARDS:
                opened.popitem(last=False)
            images += 1
    return count / images


def measure_index(sizes: dict[str, int], workers: int) -> tuple[float, float, int]:
    """CPU-seconds of an index of pieces as ZeRO 3 cuts them, its bytes, and those of a checkpoint's state."""
    pieces: dict[str, dict[str, Header]] = {}
    for quantity in quantities(False):
        names = [partition_file(quantity, worker) for worker in range(workers)]
        pieces[quantity] = {name: header_of(sizes, worker, workers) for worker, name in enumerate(names)}
    started = time.process_time()
    index = PartitionIndex.of("study", pieces, sizes)
    taken = time.process_time() - started
    files = {name: header.fingerprint for headers in pieces.values() for name, header in headers.items()}
    state = RunState(1, 0, workers, 0, 0, 0, "", {}, 0, {}, files)
    return taken, len(pickle.dumps(index)), len(orjson.dumps(state, option=orjson.OPT_INDENT_2))


def header_of(sizes: dict[str, int], worker: int, workers: int) -> Header:
    """That of the piece that a worker would write."""
    entries: dict[str, object] = {}
    sums, end = {}, 0
    for name, size in sizes.items():
        share = -(-size // workers)
        own = min(share, size - worker * share)
        if own > 0:
            key = f"{name}:{worker * share}"
            sums[key] = 2**31
            entries[key] = {"dtype": "F32", "shape": [own], "data_offsets": [end, end + own * ITEM]}
            end += own * ITEM
    raw = orjson.dumps({"__metadata__": {"crc32": orjson.dumps(sums).decode()}, **entries})
    raw = len(raw).to_bytes(8, "little") + raw
    return Header("study", Fingerprint(len(raw) + end, 0), raw)


def tables(unit: Unit) -> str:
    """What follows from the unit costs, in Markdown."""
    parts = [
        f"Measured {datetime.date.today()} on {machine()}.",
        table(["unit cost", "figure"], unit_rows(unit)),
        "### Images and the object store\n\nSA-1B alone, the longest stage. Requests are one for a row and one for a "
        f"shard that is opened; a prefix of S3 answers {GETS:,} GET/s.",
        table(
            [
                "GPUs",
                "images/s a GPU",
                "images/s",
                "cores for reading",
                "GB/s",
                "GET/s",
                "of a prefix",
                "epoch of SA-1B",
            ],
            [image_row(unit, gpus, rate) for gpus in GPUS for rate in RATES],
        ),
        "### Checkpoints\n\nSwin-L with a frozen text encoder under ZeRO, without an average of the weights.",
        table(
            ["GPUs", "GB", "of them a worker's", "held up", "requests", "PUT/s at most", "complete after", "GB/s"],
            [checkpoint_row(unit, gpus) for gpus in GPUS],
        ),
        "### Going on from one",
        table(
            ["GPUs", "requests before", "now", "GB read before", "now", "index: CPU s", "MB", "state.json MB"],
            [resume_row(unit, gpus) for gpus in GPUS],
        ),
        "### Plan and control plane",
        table(
            ["GPUs", "plan, ms a step", "of a step at 5 images/s", "agreement, bytes a step", "Ray's polls/s"],
            [control_row(unit, gpus) for gpus in GPUS],
        ),
        "### Goodput\n\nOne preemption of a node of 8 GPUs in so many hours, each ending the group, which makes steps "
        f"again after {RESTART:.0f} s. Best interval: seconds between checkpoints, at which the goodput is taken "
        "(without notice, and with 9 of 10 preemptions noticed in time); then that at an interval of 600 s.",
        table(
            [
                "GPUs",
                "hours",
                "between preemptions",
                "best interval",
                "goodput",
                "noticed",
                "every 600 s",
                "steps lost",
            ],
            [goodput_row(unit, gpus, hours) for gpus in GPUS for hours in HOURS],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def unit_rows(unit: Unit) -> list[list[str]]:
    """The measured figures, in words."""
    trained, whole = unit.trained / 1e6, unit.parameters / 1e6
    return [
        *([f"plan of one step, global batch {n:,}, CPU", f"{s * 1e3:.1f} ms (bound 50)"] for n, s in unit.plan.items()),
        ["beginning a plan of 13 million rows, once", f"{unit.plan_start:.2f} s"],
        ["an image of 768 x 1024 with 100 masks to a sample of 1024 x 1024, CPU", f"{unit.image_cpu * 1e3:.1f} ms"],
        ["its bytes in a shard (a synthetic photo, noisier than most)", f"{unit.image_bytes / 1e3:.0f} kB"],
        [f"parameters of {MODEL}, of them trained, tensors", f"{whole:.0f} M, {trained:.0f} M, {unit.tensors}"],
    ]


def image_row(unit: Unit, gpus: int, rate: int) -> list[str]:
    """Reading at one scale and speed."""
    images = gpus * rate
    gets = images * (1 + unit.openings[gpus])
    return [
        f"{gpus}",
        f"{rate}",
        f"{images:,}",
        f"{images * unit.image_cpu:.1f}",
        f"{images * unit.image_bytes / 1e9:.2f}",
        f"{gets:,.0f}",
        f"{gets / GETS:.0%}",
        f"{ROWS['sa1b'] / images / 3600:.1f} h",
    ]


@dataclass(frozen=True)
class Saving:
    """One checkpoint at one scale."""

    bytes: int
    own: int
    held_up: float
    requests: int
    puts: float
    complete: float

    @staticmethod
    def of(unit: Unit, gpus: int) -> Saving:
        pieces, whole = unit.trained * ITEM * len(quantities(False)), unit.parameters * ITEM
        own = pieces // gpus
        file = own // len(quantities(False))
        # A request for each file or part of one, and one for the owner of the run before each file.
        of_worker = len(quantities(False)) * (1 + upload_requests(file))
        headers, listings = len(quantities(False)) * gpus, -(-len(quantities(False)) * gpus // 1000)
        of_first = headers + (gpus - 1) + listings + upload_requests(whole) + 12
        sending = own / WORKER_RATE + of_worker * LATENCY
        reading = headers / AT_ONCE * LATENCY + (gpus - 1) / AT_ONCE * (LATENCY + file / WORKER_RATE)
        rest = reading + whole / FIRST_RATE + 12 * LATENCY
        puts = gpus / (LATENCY + min(file, PART) / WORKER_RATE)
        requests = gpus * of_worker + of_first
        return Saving(pieces + whole, own, own / MEMORY_RATE, requests, puts, sending + rest)


def upload_requests(size: int) -> int:
    """The requests that put one object."""
    return 1 if size <= PART else 2 + -(-size // PART)


def checkpoint_row(unit: Unit, gpus: int) -> list[str]:
    """Saving at one scale."""
    one = Saving.of(unit, gpus)
    return [
        f"{gpus}",
        f"{one.bytes / 1e9:.1f}",
        f"{one.own / 1e6:.0f} MB",
        f"{one.held_up * 1e3:.0f} ms",
        f"{one.requests:,}",
        f"{one.puts:,.0f} ({one.puts / PUTS:.0%})",
        f"{one.complete:.0f} s",
        f"{one.bytes / one.complete / 1e9:.2f}",
    ]


def resume_row(unit: Unit, gpus: int) -> list[str]:
    """Going on at one scale."""
    count = len(quantities(False))
    pieces, whole = unit.trained * ITEM * count, unit.parameters * ITEM
    # Each worker: all headers, in three requests each, all pieces of the weights, the weights, its own of the rest.
    before = gpus * (3 * count * gpus + gpus + 2 + 2)
    before_bytes = gpus * (whole + pieces // count) + pieces * (count - 1) // count
    now = count * gpus + gpus + (count - 1) * gpus + 12
    cpu, size = unit.index[gpus]
    return [
        f"{gpus}",
        f"{before:,}",
        f"{now:,}",
        f"{before_bytes / 1e9:.0f}",
        f"{(pieces + whole) / 1e9:.1f}",
        f"{cpu:.2f}",
        f"{size / 1e6:.1f}",
        f"{unit.state_bytes[gpus] / 1e6:.2f}",
    ]


def control_row(unit: Unit, gpus: int) -> list[str]:
    """What beside the work itself grows with the number of workers."""
    batch = max(64, gpus)
    plan = unit.plan[512] * batch / 512
    step = batch / gpus / 5
    # Two sums of some twenty doubles each; Ray Train's controller asks each worker every two seconds.
    return [f"{gpus}", f"{plan * 1e3:.1f}", f"{plan / step:.1%}", "2 x 160", f"{gpus / 2:.0f}"]


def goodput_row(unit: Unit, gpus: int, hours: int) -> list[str]:
    """How much of the time makes progress."""
    saving = Saving.of(unit, gpus)
    between = hours * 3600 / (gpus // 8)
    case = Preemptions(between, RESTART, saving.held_up, saving.complete)
    noticed = Preemptions(between, RESTART, saving.held_up, saving.complete, noticed=0.9)
    best = case.best_interval()
    lost = best / 2 + saving.complete
    return [
        f"{gpus}",
        f"{hours}",
        f"{between / 60:,.0f} min",
        f"{best:.0f} s",
        f"{case.goodput(best):.1%}",
        f"{noticed.goodput(best):.1%}",
        f"{case.goodput(600):.1%}",
        f"{lost:.0f} s of them",
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """What this ran on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].partition(": ")[2] if names else platform.machine()
    return f"{len(names)} cores of {model}, Python {platform.python_version()}, torch {torch.__version__}, one thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace the tables of {REPORT.name}")
    torch.set_num_threads(1)
    write = parser.parse_args().write
    unit = measure()
    found = tables(unit)
    print(found)
    if write:
        begin, end = "<!-- tables -->\n", "<!-- end of tables -->\n"
        before, _, rest = REPORT.read_text().partition(begin)
        REPORT.write_text(before + begin + "\n" + found + "\n" + end + rest.partition(end)[2])
    worst = max(unit.plan.values())
    if worst > PLAN_BOUND:
        sys.exit(f"a plan costs {worst * 1e3:.0f} ms a step, more than {PLAN_BOUND * 1e3:.0f}")


if __name__ == "__main__":
    main()
