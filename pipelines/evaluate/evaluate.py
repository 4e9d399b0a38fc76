"""Asking a model about prepared splits with one pool of actors, and guessing blindly in tasks.

A split's rows are cut into parts; one task answers one part.  A job that was killed finds the parts that are finished
by their sidecars and makes the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray.data

from pipelines.evaluate.item_files import (
    MANIFEST_NAME,
    ItemManifest,
    ItemReport,
    ItemTask,
    part_name,
    write_items,
    write_manifest,
)
from pipelines.model_pool import ModelReference, Pool, load_predictor, use_vocabulary
from pipelines.parts import RAY_RETRIES, OnActors, Part, answer, check_is_ours, find_part, parts_of, remove_strangers
from pipelines.progress import Progress
from semsam.data.shards import Split
from semsam.evaluation.asking import ask
from semsam.evaluation.baselines import BaselineFit, Baselines, blind_item
from semsam.evaluation.questions import Questions
from semsam.predictor import ImageSize

_OUR_FILE = re.compile(r"items-\d{5,}\.(arrow|json|attempt)")
_VOUCHING = re.compile(rf"items-\d{{5,}}\.(json|attempt)|{MANIFEST_NAME}")

Manifests = dict[str, ItemManifest]  # By dataset.


def ask_model(
    tasks: Mapping[str, ItemTask],
    model: ModelReference,
    image_size: ImageSize,
    questions: Questions,
    pool: Pool,
    progress_interval: float,
) -> Manifests:
    """The items of every dataset, by its name: what the model answers.  Raises `RuntimeError` as `parts_of` does."""
    constructor = {"tasks": dict(tasks), "model": model, "image_size": image_size, "questions": questions}
    progress = Progress("evaluate", _num_rows(tasks), interval=progress_interval)

    def make(blocks: Sequence[pa.Table]) -> Iterator[tuple[str, int, Part[ItemReport]]]:
        options = {"fn_constructor_kwargs": constructor, "max_task_retries": RAY_RETRIES, **pool.options(len(blocks))}
        return _parts(blocks, _Ask, progress.note_actors, **options)

    return _make_parts(tasks, make, progress)


def guess_blindly(
    tasks: Mapping[str, ItemTask], baselines: Mapping[str, Baselines], questions: Questions, levels: int
) -> Manifests:
    """The items of every dataset, by its name: what is guessed without seeing an image."""
    arguments = {"tasks": dict(tasks), "baselines": dict(baselines), "questions": questions, "levels": levels}

    def make(blocks: Sequence[pa.Table]) -> Iterator[tuple[str, int, Part[ItemReport]]]:
        return _parts(blocks, _guess, fn_kwargs=arguments)

    return _make_parts(tasks, make, None)


def fit_baselines(
    splits: Mapping[str, tuple[str, Sequence[int]]], levels: int, rows_per_task: int
) -> dict[str, Baselines]:
    """Tune the blind baselines of every dataset on these rows of a split, given as its root and the rows."""
    blocks = [
        pa.table({"dataset": [dataset], "root": [root], "rows": [list(rows[start : start + rows_per_task])]})
        for dataset, (root, rows) in splits.items()
        for start in range(0, len(rows), rows_per_task)
    ]
    results = ray.data.from_arrow(blocks).map_batches(_fit, batch_format="pyarrow", batch_size=None)
    fits = {dataset: BaselineFit() for dataset in splits}
    for row in sorted(results.iter_rows(), key=lambda row: int(row["first_row"])):
        fits[row["dataset"]].merge(BaselineFit.from_json(row["fit"]))
    return {dataset: fit.compute(levels) for dataset, fit in fits.items()}


class _Ask:
    """An actor: answers one part at a time."""

    def __init__(
        self, tasks: Mapping[str, ItemTask], model: ModelReference, image_size: ImageSize, questions: Questions
    ) -> None:
        import torch

        torch.set_num_threads(1)
        self._tasks, self._questions = tasks, questions
        self._splits: dict[str, Split] = {}
        self._predictor = load_predictor(model, image_size)

    def __call__(self, rows: pa.Table) -> pa.Table:
        [dataset], [position] = rows["dataset"].to_pylist(), rows["position"].to_pylist()
        task = self._tasks[dataset]

        def make() -> tuple[Part[ItemReport], bool]:
            if dataset not in self._splits:
                self._splits[dataset] = Split(task.root)
            split = self._splits[dataset]
            use_vocabulary(self._predictor, split)
            vocabulary = split.manifest.vocabulary
            return write_items(
                task, split, position, lambda record: ask(self._predictor, record, self._questions, vocabulary)
            )

        return answer(f"{dataset} {part_name(position)}", {"dataset": dataset, "position": position}, make)


def _guess(
    rows: pa.Table,
    tasks: Mapping[str, ItemTask],
    baselines: Mapping[str, Baselines],
    questions: Questions,
    levels: int,
) -> pa.Table:
    [dataset], [position] = rows["dataset"].to_pylist(), rows["position"].to_pylist()
    task = tasks[dataset]

    def make() -> tuple[Part[ItemReport], bool]:
        split = Split(task.root)
        vocabulary, guesses = split.manifest.vocabulary, baselines[dataset]
        return write_items(
            task, split, position, lambda record: blind_item(record, guesses, questions, vocabulary, levels)
        )

    return answer(f"{dataset} {part_name(position)}", {"dataset": dataset, "position": position}, make)


def _fit(block: pa.Table) -> pa.Table:
    [dataset], [root], [rows] = (block[name].to_pylist() for name in ("dataset", "root", "rows"))
    split, fit = Split(root), BaselineFit()
    for row in rows:
        fit.merge(BaselineFit.of(split.record(row)))
    return pa.table({"dataset": [dataset], "first_row": rows[:1], "fit": [fit.to_json()]})


def _make_parts(
    tasks: Mapping[str, ItemTask],
    make: Callable[[Sequence[pa.Table]], Iterator[tuple[str, int, Part[ItemReport]]]],
    progress: Progress | None,
) -> Manifests:
    """The parts that are found finished, and those that `make` makes of the blocks of the others."""
    for task in tasks.values():
        check_is_ours(task.folder(), _OUR_FILE, _VOUCHING)
        task.folder().remove(MANIFEST_NAME)  # It would vouch for files that are about to change.
    done = {dataset: _find_finished(task) for dataset, task in tasks.items()}
    if progress is not None:
        progress.add(sum(len(tasks[dataset].rows[one]) for dataset, parts in done.items() for one in parts), found=True)
    # Blocks made here need no task of their own, which might wait for the very processors that the actors hold.
    blocks = [
        pa.table({"dataset": [dataset], "position": [position]})
        for dataset, task in tasks.items()
        for position in range(len(task.rows))
        if position not in done[dataset]
    ]
    for dataset, position, part in make(blocks) if blocks else ():
        done[dataset][position] = part
        if progress is not None:
            progress.add(len(tasks[dataset].rows[position]))
    if progress is not None:
        progress.close()
    manifests = {}
    for dataset, task in tasks.items():
        parts = [done[dataset][position] for position in range(len(task.rows))]
        remove_strangers(task.folder(), _OUR_FILE, parts)
        manifests[dataset] = write_manifest(task, Split(task.root), parts)
    return manifests


def _parts(
    blocks: Sequence[pa.Table], work: Any, on_actors: OnActors = lambda count: None, **options: Any
) -> Iterator[tuple[str, int, Part[ItemReport]]]:
    for keys, part, _ in parts_of(ray.data.from_arrow(list(blocks)), work, ItemReport, on_actors, **options):
        yield str(keys["dataset"]), keys["position"], part


def _find_finished(task: ItemTask) -> dict[int, Part[ItemReport]]:
    folder = task.folder()

    def look(position: int) -> Part[ItemReport] | None:
        return find_part(folder, part_name(position), task.fingerprint(position), ItemReport)

    with ThreadPoolExecutor(16) as threads:
        found = threads.map(look, range(len(task.rows)))
        return {position: part for position, part in enumerate(found) if part is not None}


def _num_rows(tasks: Mapping[str, ItemTask]) -> int:
    return sum(len(rows) for task in tasks.values() for rows in task.rows)
