"""Three claims of the Semantic-SAM paper at toy scale: seven trainings by three seeds, the same budget for all.

1. Many-to-many matching of a click's levels to all masks under it, against many-to-one, with the same six levels.
2. Object and part names learned together, against each head alone (the other's loss weighs nothing).
3. COCO alone, with a tenth and with all of SA-1B: half of the samples are SA-1B's, and the number of steps is the same.

Every training is the recipe of claims.yaml in one single-threaded process.  Each leaves one JSON file, and one that is
there with the same settings is not computed again, so that a command that was killed goes on.

    python tests/benchmarks/claims.py [--out outputs/claims] [--seeds 3] [--steps 600] [--jobs 2]
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from jobs import prepare
from jobs.cluster import connect
from jobs.quickstart import QuickstartJob
from pipelines.evaluate.evaluate import fit_baselines
from pipelines.model_pool import ModelReference, load_predictor, use_vocabulary
from pipelines.toy import ToySettings, write_toy_world
from semsam.config import config_values, load_config
from semsam.data.shards import Split
from semsam.evaluation.asking import ask
from semsam.evaluation.baselines import Baselines, blind_item
from semsam.evaluation.protocols import BASELINE, PromptNumbers, means_of
from semsam.evaluation.questions import Questions

RECIPE = Path(__file__).parent / "claims.yaml"
TOY = ToySettings(train_images=120, val_images=480)
QUESTIONS = Questions(random_clicks=0)
BASELINE_IMAGES = 60  # Train images of each dataset.
# Held-out images of each dataset that has masks: at least 2,000 regions for every number of a table.
SEVEN = {"sa1b": 48, "coco_panoptic": 48, "ade20k": 48, "pascal_part": 100, "paco": 100, "partimagenet": 100}
COCO = {"coco_panoptic": 480}
_WITH_SA1B = "data.plan.stages=[{weights: {coco_panoptic: 1, sa1b: 1}}]"


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe, and the held-out images by dataset."""

    changes: tuple[str, ...]
    evaluated: Mapping[str, int]


VARIANTS = {
    "joint": Variant((), SEVEN),
    "many_to_one": Variant(("criterion.click_matching=many_to_one",), SEVEN),
    "objects_alone": Variant(("criterion.weights.part=0",), SEVEN),
    "parts_alone": Variant(("criterion.weights.object=0",), SEVEN),
    "coco": Variant(("data.plan.stages=[{weights: {coco_panoptic: 1}}]",), COCO),
    "coco_tenth": Variant((_WITH_SA1B, "data.plan.fraction={sa1b: 0.1}"), COCO),
    "coco_sa1b": Variant((_WITH_SA1B,), COCO),
}
NUMBERS = {
    "granularity/miou_all": "granularity mIoU",
    "one_click/miou_oracle": "one click, oracle mIoU",
    "one_click/miou_max": "one click, max mIoU",
    "classes/object_top1": "object top-1",
    "classes/part_top1": "part top-1",
}
_CLICK = ("one_click/miou_oracle", "one_click/miou_max")


@dataclass(frozen=True)
class Claim:
    """One table: the variant that each number of a row is from.  The first row is what the others are held against."""

    title: str
    rows: Mapping[str, Mapping[str, str]]


CLAIMS = (
    Claim(
        "Many-to-many against many-to-one matching, six levels each",
        {
            "many-to-one": dict.fromkeys(("granularity/miou_all", *_CLICK), "many_to_one"),
            "many-to-many": dict.fromkeys(("granularity/miou_all", *_CLICK), "joint"),
        },
    ),
    Claim(
        "Object and part heads",
        {
            "each alone": {"classes/object_top1": "objects_alone", "classes/part_top1": "parts_alone"},
            "jointly": dict.fromkeys(("classes/object_top1", "classes/part_top1"), "joint"),
        },
    ),
    Claim(
        "SA-1B added to COCO, measured on COCO",
        {
            "COCO": dict.fromkeys(_CLICK, "coco"),
            "COCO and 1/10 of SA-1B": dict.fromkeys(_CLICK, "coco_tenth"),
            "COCO and SA-1B": dict.fromkeys(_CLICK, "coco_sa1b"),
        },
    ),
)


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    variant: str
    seed: int
    steps: int
    out: str

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.seed}"

    @property
    def result(self) -> Path:
        return Path(self.out, "results", f"{self.name}.json")

    def job(self) -> QuickstartJob:
        """The recipe with this run's changes, in one process without Ray and DeepSpeed."""
        changes = [
            *VARIANTS[self.variant].changes,
            f"data.root={self.out}/world/shards",
            "data.reader.num_threads=1",
            f"training.seed={self.seed}",
            f"training.steps={self.steps}",
            f"training.checkpoint_every={self.steps}",
            "training.zero_stage=null",
        ]
        return load_config(QuickstartJob, str(RECIPE), [f"train.{change}" for change in changes])

    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, the code excepted."""
        job = self.job()
        return {
            "recipe": config_values(job.train.in_parts()),
            "image_size": config_values(job.evaluate.image_size),
            "questions": config_values(QUESTIONS),
            "evaluated": dict(VARIANTS[self.variant].evaluated),
            "world": config_values(TOY),
        }

    def is_done(self) -> bool:
        """Whether there is a result of the same settings."""
        return self.result.exists() and orjson.loads(self.result.read_bytes())["settings"] == self.settings()


# By (variant, seed): each number's mean and how many values it is the mean of.
Found = Mapping[tuple[str, int], Mapping[str, tuple[float, int]]]


def all_runs(out: str, seeds: int, steps: int) -> list[Run]:
    """Seed by seed, so that what has come so far is a fair comparison."""
    return [Run(variant, seed, steps, out) for seed in range(seeds) for variant in VARIANTS]


def make_world(folder: Path) -> None:
    """Shards of the toy world and blind baselines in `folder`, unless they are there already.  Needs Ray."""
    marker, wanted = folder / "world.json", orjson.dumps(config_values(TOY))
    if marker.exists() and marker.read_bytes() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_toy_world(folder / "toy", TOY)
    job = load_config(QuickstartJob, str(RECIPE))
    datasets = {name: replace(one, root=str(folder / "toy" / name)) for name, one in job.prepare.datasets.items()}
    with connect():
        prepare.run(replace(job.prepare, datasets=datasets, output=str(folder / "shards")))
        roots = {dataset: f"{folder}/shards/{dataset}/train" for dataset in SEVEN}
        levels = job.train.model.resolve().num_levels
        baselines = fit_baselines({one: (root, range(BASELINE_IMAGES)) for one, root in roots.items()}, levels, 16)
    (folder / "baselines.json").write_bytes(orjson.dumps(baselines))
    marker.write_bytes(wanted)


def compute(run: Run) -> dict[str, float]:
    """Train, evaluate and write the result; CPU seconds of both.  For a process of its own."""
    import cv2
    import torch

    from semsam.training.attempt import RunFolder
    from semsam.training.checkpoint import checkpoint_folder
    from semsam.training.engine import Worker
    from semsam.training.train import train

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = Path(run.out, "runs", run.name)
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    job, folder = run.job(), RunFolder(files)
    recipe, started = job.train.in_parts(), time.process_time()
    with (files / "log.txt").open("w", buffering=1) as log, contextlib.redirect_stdout(log):
        train(recipe, {}, folder, Worker(0, 1, torch.device("cpu")), run.name, None)
    trained = time.process_time()
    model = ModelReference(checkpoint_folder(folder, run.steps).path, recipe.model.preset, run.seed)
    predictor = load_predictor(model, job.evaluate.image_size)
    baselines = read_baselines(Path(run.out, "world", "baselines.json"))
    sums = {}
    for dataset, num_images in VARIANTS[run.variant].evaluated.items():
        split = Split(f"{recipe.data.root}/{dataset}/val")
        vocabulary, levels = split.manifest.vocabulary, recipe.model.resolve().num_levels
        found, guessed = PromptNumbers(vocabulary), PromptNumbers(vocabulary, is_blind=True)
        use_vocabulary(predictor, split)
        for row in range(min(num_images, len(split))):
            record = split.record(row)
            found.add([ask(predictor, record, QUESTIONS)])
            guessed.add([blind_item(record, baselines[dataset], QUESTIONS, vocabulary, levels)])
        blind = {f"{BASELINE}/{name}": sums for name, sums in guessed.sums().items()}
        sums[dataset] = found.sums() | blind
    seconds = {"train": trained - started, "evaluate": time.process_time() - trained}
    run.result.parent.mkdir(parents=True, exist_ok=True)
    draft = run.result.with_suffix(".part")
    draft.write_bytes(orjson.dumps({"settings": run.settings(), "sums": sums, "cpu_seconds": seconds}))
    draft.rename(run.result)
    return seconds


def read_baselines(path: Path) -> dict[str, Baselines]:
    """What `make_world` stored, by dataset."""
    return TypeAdapter(dict[str, Baselines]).validate_json(path.read_bytes())


def read_found(runs: Sequence[Run]) -> Found:
    """The numbers over all datasets of those runs that are done."""
    found = {}
    for run in runs:
        if run.is_done():
            found[run.variant, run.seed] = means_of(orjson.loads(run.result.read_bytes())["sums"].values())
    return found


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and sample standard deviation; the mean alone of one value, and a dash of none."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):{sign}.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def claim_tables(claim: Claim, found: Found) -> str:
    """Markdown: mean and deviation over seeds, differences from the first row seed by seed, then the seeds."""
    seeds = sorted({seed for _, seed in found})
    (first, reference), *others = claim.rows.items()
    numbers = list(reference)

    def value(row: Mapping[str, str], number: str, seed: int) -> float | None:
        return found.get((row[number], seed), {}).get(number, (None, 0))[0]

    def values(row: Mapping[str, str], number: str) -> list[float]:
        return [v for seed in seeds if (v := value(row, number, seed)) is not None]

    def gains(row: Mapping[str, str], number: str) -> list[float]:
        pairs = [(value(row, number, seed), value(reference, number, seed)) for seed in seeds]
        return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]

    some = {n: m for (variant, _), means in found.items() for n, m in means.items() if variant in reference.values()}
    blind = [some.get(f"{BASELINE}/{number}") for number in numbers]
    lines = [[label, *(spread(values(row, number)) for number in numbers)] for label, row in claim.rows.items()]
    for label, row in others:
        lines.append([f"{label}, minus {first}", *(spread(gains(row, number), "+") for number in numbers)])
    lines.append(["blind guess", *("-" if one is None else f"{one[0]:.3f}" for one in blind)])
    lines.append(["held-out regions", *(f"{some[number][1]:,}" if number in some else "-" for number in numbers)])
    by_seed = [
        [f"{label}, seed {seed}", *("-" if v is None else f"{v:.3f}" for v in (value(row, n, seed) for n in numbers))]
        for label, row in claim.rows.items()
        for seed in seeds
    ]
    header = ["", *(NUMBERS[number] for number in numbers)]
    return f"### {claim.title}\n\n{markdown([header, *lines])}\n\n{markdown([header, *by_seed])}\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its header; all columns but the first are numbers."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, f"|---|{'---:|' * (len(rows[0]) - 1)}", *body])


def report(found: Found, steps: int, command: str) -> str:
    """All tables, and how they were made."""
    seeds = sorted({seed for _, seed in found})
    missing = [f"{variant}, seed {seed}" for seed in seeds for variant in VARIANTS if (variant, seed) not in found]
    how = (
        f"Measured {time.strftime('%Y-%m-%d')} on {machine()}: {steps} steps in one thread for each of {len(found)} "
        f"trainings, seeds {', '.join(map(str, seeds))}; mean ± standard deviation over seeds.  `{command}`"
    )
    parts = [how, f"Not there: {'; '.join(missing)}."] if missing else [how]
    return "\n\n".join([*parts, *(claim_tables(claim, found) for claim in CLAIMS)])


def machine() -> str:
    """The processor's name and number of cores."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0].split(':')[1].strip() if names else platform.machine()}, {os.cpu_count()} cores"


def compute_all(runs: Sequence[Run], jobs: int) -> None:
    """Compute what is not there, `jobs` at a time, each in a process of its own; a line for each that ends."""
    todo = [run for run in runs if not run.is_done()]
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are there", flush=True)
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(compute, run): run for run in todo}
        for done, future in enumerate(as_completed(futures), start=1):
            seconds, left = future.result(), (time.monotonic() - started) / done * (len(todo) - done)
            print(
                f"{done}/{len(todo)} {futures[future].name}: training {seconds['train']:.0f} s, evaluation "
                f"{seconds['evaluate']:.0f} s of CPU; {left / 60:.0f} min left",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="outputs/claims")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # For the processes to come.
    make_world(Path(args.out, "world"))
    runs = all_runs(args.out, args.seeds, args.steps)
    compute_all(runs, args.jobs)
    text = report(read_found(runs), args.steps, f"python {' '.join(sys.argv)}")
    Path(args.out, "tables.md").write_text(text)
    print(f"\n{text}\n\nwritten to {args.out}/tables.md")


if __name__ == "__main__":
    main()
