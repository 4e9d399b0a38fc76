"""Pools of model actors over prepared splits: how evaluation (and mask generation) uses a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from semsam.data.shards import Split
from semsam.data.vocabularies import clean_name
from semsam.evaluation.baselines import BaselineFit, Baselines
from semsam.evaluation.protocols import Protocols, fit_baselines, measure
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor


@dataclass(frozen=True)
class Pool:
    """How much of the cluster to use; `num_gpus` may be a fraction."""

    num_actors: int = 2
    num_gpus: float = 0.0
    rows_per_task: int = 16


@dataclass(frozen=True)
class ModelReference:
    """Which model an actor loads: a checkpoint folder, or random weights of a preset (a baseline, and a test)."""

    checkpoint: str | None
    preset: str
    seed: int

    def load(self, device: str) -> SemanticSam:
        if self.checkpoint is not None:
            return SemanticSam.load(self.checkpoint).to(device)
        return SemanticSam.untrained(self.preset, self.seed).to(device)


def load_predictor(model: ModelReference, split: Split, image_size: ImageSize) -> Predictor:
    """A predictor with the vocabulary of a split set, on this process's GPU if it was given one."""
    import torch

    predictor = Predictor(model.load("cuda" if torch.cuda.is_available() else "cpu"), image_size)
    vocabulary = split.manifest.vocabulary
    predictor.set_vocabulary([clean_name(n) for n in vocabulary.objects], [clean_name(n) for n in vocabulary.parts])
    return predictor


class _Measure:
    """An actor: measures batches of rows of one split and sends back sums."""

    def __init__(
        self, root: str, model: ModelReference, image_size: ImageSize, baselines: Baselines, threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._split = Split(root)
        self._baselines = baselines
        self._predictor = load_predictor(model, self._split, image_size)

    def __call__(self, rows: pa.Table) -> pa.Table:
        protocols = Protocols()
        for row in rows["row"].to_pylist():
            measure(self._predictor, self._split.record(row), self._baselines, protocols)
        return pa.table({"images": [len(rows)], "sums": [orjson.dumps(protocols.sums())]})


def measure_split(
    root: str, num_rows: int, model: ModelReference, image_size: ImageSize, baselines: Baselines, pool: Pool
) -> Iterator[tuple[int, Protocols]]:
    """Measure the first `num_rows` records of a split; gives (images, sums of those images) as tasks end."""
    results = _rows(num_rows, pool).map_batches(
        _Measure,
        fn_constructor_kwargs={
            "root": root,
            "model": model,
            "image_size": image_size,
            "baselines": baselines,
            "threads": 1,
        },
        batch_format="pyarrow",
        batch_size=pool.rows_per_task,
        compute=ActorPoolStrategy(size=min(pool.num_actors, -(-num_rows // pool.rows_per_task))),
        num_gpus=pool.num_gpus,
    )
    for row in results.iter_rows():
        protocols = Protocols()
        protocols.merge_sums(orjson.loads(row["sums"]))
        yield row["images"], protocols


def fit_baselines_on(root: str, num_rows: int, levels: int, pool: Pool) -> Baselines:
    """Tune the blind baselines on the first `num_rows` records of a train split."""
    results = _rows(num_rows, pool).map_batches(
        _fit_batch, fn_kwargs={"root": root}, batch_format="pyarrow", batch_size=pool.rows_per_task
    )
    fit = BaselineFit()
    for row in results.iter_rows():
        fit.merge(BaselineFit.from_json(row["fit"]))
    return fit.compute(levels)


def _fit_batch(rows: pa.Table, root: str) -> pa.Table:
    split, fit = Split(root), BaselineFit()
    for row in rows["row"].to_pylist():
        fit_baselines(split.record(row), fit)
    return pa.table({"fit": [fit.to_json()]})


def _rows(num_rows: int, pool: Pool) -> Any:
    """Row numbers as one block per task: blocks made here need no task of their own, which might wait for the very
    processors that the actors hold."""
    starts = range(0, num_rows, pool.rows_per_task)
    return ray.data.from_arrow(
        [pa.table({"row": list(range(i, min(i + pool.rows_per_task, num_rows)))}) for i in starts]
    )
