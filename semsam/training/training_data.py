"""What a recipe trains on, and the identity of a run on it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa

from semsam.data.plan import Plan, PlanSettings
from semsam.data.schema import SCHEMA_VERSION
from semsam.data.shards import Split
from semsam.data.vocabularies import JointVocabulary
from semsam.storage import Folder
from semsam.training.checkpoint import RunState, check_files, damaged, latest_checkpoint, load_state
from semsam.training.partition_files import Header
from semsam.training.recipe import Recipe
from semsam.training.resume import check_same_run, resumed


@dataclass(frozen=True)
class TrainingData:
    """What a recipe trains on."""

    splits: dict[str, Split]
    plan: Plan
    vocabulary: JointVocabulary

    @staticmethod
    def of(recipe: Recipe) -> TrainingData:
        """Open every dataset of the recipe's plan; `ValueError` for one that is not prepared."""
        data, training = recipe.data, recipe.training
        splits = {name: Split(f"{data.root}/{name}/{data.split}") for name in data.datasets()}
        sizes = {name: split.rows_of_shard for name, split in splits.items()}
        for key in training.skip_samples:
            name, _, row = key.partition(":")
            if name in splits and int(row) >= len(splits[name]):
                raise ValueError(f"training.skip_samples: {key}: {splits[name].root} has {len(splits[name])} rows")
        plan = Plan(
            training.seed, sizes, data.plan, training.global_batch, training.steps, _categories(splits, data.plan)
        )
        vocabularies = {name: split.manifest.vocabulary for name, split in splits.items()}
        return TrainingData(splits, plan, JointVocabulary.of(vocabularies, data.withheld))

    def names(self) -> dict[str, list[Any]]:
        """The names that are taught, as the text encoder reads them: `objects`, `parts`, and `pairs` of both."""
        joint = self.vocabulary
        objects = {name for i, name in enumerate(joint.objects) if i not in joint.withheld_objects}
        parts = {name for i, name in enumerate(joint.parts) if i not in joint.withheld_parts}
        pairs = set()
        for dataset, split in self.splits.items():
            for one, part in split.manifest.vocabulary.object_parts:
                places = joint.object_offset[dataset] + one, joint.part_offset[dataset] + part
                if places not in joint.withheld_pairs:
                    pairs.add((joint.objects[places[0]], joint.parts[places[1]]))
        taught = [pair for pair in sorted(pairs) if pair[0] in objects and pair[1] in parts]
        return {"objects": sorted(objects), "parts": sorted(parts), "pairs": [list(pair) for pair in taught]}

    def run_state(self, recipe: Recipe, step: int, num_workers: int, skipped_steps: tuple[int, ...] = ()) -> RunState:
        """What a checkpoint after `step` steps says of its run."""
        return RunState(
            step=step,
            cursor=step * recipe.training.global_batch,
            num_writers=num_workers,
            seed=recipe.training.seed,
            global_batch=recipe.training.global_batch,
            num_steps=recipe.training.steps,
            vocabulary_digest=self.vocabulary.digest(),
            manifest_digests={name: split.manifest.digest() for name, split in self.splits.items()},
            schema_version=SCHEMA_VERSION,
            skipped_steps=skipped_steps,
            versions={name: _version(name) for name in ("semsam", "torch", "numpy", "deepspeed")},
        )


@dataclass(frozen=True)
class Saved:
    """A checkpoint that a training goes on from, as whoever has looked at it hands it to others."""

    folder: Folder
    state: RunState
    recipe: Recipe  # What it goes on with.


def find_checkpoint(run: Folder, recipe: Recipe, training_data: TrainingData) -> tuple[Folder | None, int]:
    """The checkpoint to go on from and its step; `ValueError` if it is damaged or belongs to another training."""
    saved, _ = look_at_checkpoint(run, recipe, training_data)
    return (None, 0) if saved is None else (saved.folder, saved.state.step)


def look_at_checkpoint(
    run: Folder, recipe: Recipe, training_data: TrainingData
) -> tuple[Saved | None, dict[str, Header]]:
    """The same, and the headers of its pieces by name, which it takes a request each to read."""
    folder = latest_checkpoint(run)
    if folder is None:
        return None, {}
    with damaged(folder):
        state = load_state(folder)
        headers = check_files(folder, state)
    check_same_run(folder, state, training_data.run_state(recipe, state.step, state.num_writers), recipe)
    return Saved(folder, state, resumed(recipe, folder)), headers


def _categories(splits: dict[str, Split], plan: PlanSettings) -> dict[str, pa.Table]:
    """The names of every row of the datasets that the plan repeats images of."""
    categories = {}
    for dataset in plan.repeat:
        try:
            categories[dataset] = splits[dataset].row_categories()
        except ValueError as error:
            raise ValueError(f"data.plan.repeat.{dataset}: {error}") from None
    return categories


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
