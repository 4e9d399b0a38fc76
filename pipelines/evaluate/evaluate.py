"""Measuring a model on prepared splits with one pool of actors, and blind baselines in tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import orjson
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from pipelines.model_pool import ModelReference, Pool, load_predictor, use_vocabulary
from pipelines.parts import MAX_TRIES, first_line, old_parameters
from semsam.data.shards import Split
from semsam.evaluation.baselines import BaselineFit, Baselines
from semsam.evaluation.protocols import Protocols, fit_baselines, measure
from semsam.predictor import ImageSize


class _Measure:
    """An actor: measures some rows of a split at a time, and sends back sums."""

    def __init__(
        self, roots: Mapping[str, str], model: ModelReference, image_size: ImageSize, baselines: Mapping[str, Baselines]
    ) -> None:
        import torch

        torch.set_num_threads(1)
        self._splits = {dataset: Split(root) for dataset, root in roots.items()}
        self._baselines = baselines
        self._predictor = load_predictor(model, image_size)

    def __call__(self, block: pa.Table) -> pa.Table:
        [dataset], [rows] = block["dataset"].to_pylist(), block["rows"].to_pylist()
        split, protocols = self._splits[dataset], Protocols()
        use_vocabulary(self._predictor, split)
        for row in rows:
            measure(self._predictor, split.record(row), self._baselines[dataset], protocols)
        sums = orjson.dumps(protocols.sums())
        return pa.table({"dataset": [dataset], "first_row": rows[:1], "images": [len(rows)], "sums": [sums]})


class Measured(NamedTuple):
    """Some images of a dataset; sums of them are to be merged in the order of `first_row`, to the same last digit."""

    dataset: str
    first_row: int
    images: int
    protocols: Protocols


def measure_splits(
    roots: Mapping[str, str],
    rows: Mapping[str, Sequence[int]],
    model: ModelReference,
    image_size: ImageSize,
    baselines: Mapping[str, Baselines],
    pool: Pool,
) -> Iterator[Measured]:
    """Measure these records of every dataset's split with one pool of actors.

    Gives what was measured as tasks end, in no fixed order.  Raises `RuntimeError` for images
    that end their actor `MAX_TRIES` times.
    """
    blocks = _blocks(rows, pool)
    arguments = {"roots": dict(roots), "model": model, "image_size": image_size, "baselines": dict(baselines)}
    with old_parameters():
        results = ray.data.from_arrow(blocks).map_batches(
            _Measure,
            fn_constructor_kwargs=arguments,
            batch_format="pyarrow",
            batch_size=1,  # A block has one row; Ray Data wants it said where there are GPUs.
            compute=ActorPoolStrategy(size=max(min(pool.num_actors, len(blocks)), 1)),
            num_gpus=pool.num_gpus,
            max_task_retries=MAX_TRIES - 1,  # Ray Data's own number is without end.
        )
    try:
        for row in results.iter_rows():
            protocols = Protocols()
            protocols.merge_sums(orjson.loads(row["sums"]))
            yield Measured(row["dataset"], row["first_row"], row["images"], protocols)
    except RayError as error:
        raise RuntimeError(f"an actor died {MAX_TRIES} times, or would not start: {first_line(error)}") from error


def fit_baselines_on(
    roots: Mapping[str, str], rows: Mapping[str, Sequence[int]], levels: int, pool: Pool
) -> dict[str, Baselines]:
    """Tune the blind baselines on these records of every dataset's train split."""
    results = ray.data.from_arrow(_blocks(rows, pool)).map_batches(
        _fit_batch, fn_kwargs={"roots": dict(roots)}, batch_format="pyarrow", batch_size=None
    )
    fits = {dataset: BaselineFit() for dataset in roots}
    for row in sorted(results.iter_rows(), key=lambda row: int(row["first_row"])):
        fits[row["dataset"]].merge(BaselineFit.from_json(row["fit"]))
    return {dataset: fit.compute(levels) for dataset, fit in fits.items()}


def _fit_batch(block: pa.Table, roots: Mapping[str, str]) -> pa.Table:
    [dataset], [rows] = block["dataset"].to_pylist(), block["rows"].to_pylist()
    split, fit = Split(roots[dataset]), BaselineFit()
    for row in rows:
        fit_baselines(split.record(row), fit)
    return pa.table({"dataset": [dataset], "first_row": rows[:1], "fit": [fit.to_json()]})


def _blocks(rows: Mapping[str, Sequence[int]], pool: Pool) -> list[pa.Table]:
    """Row numbers, a table of one row per task, each of one dataset.

    Blocks made here need no task of their own, which might wait for the very processors that the actors hold.
    """
    step = pool.rows_per_task
    some = ((dataset, own[start : start + step]) for dataset, own in rows.items() for start in range(0, len(own), step))
    return [pa.table({"dataset": [dataset], "rows": [list(block)]}) for dataset, block in some]
