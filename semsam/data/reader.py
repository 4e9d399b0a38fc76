"""Each training worker's share of the plan, read ahead by a few threads and delivered in order.

Threads are enough: reading, JPEG decoding and resampling free the interpreter's lock.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
from jaxtyping import UInt8

from semsam.config import Positive, settings
from semsam.data.plan import Plan, Row
from semsam.data.sample import Batch, Sample
from semsam.data.shards import Split
from semsam.data.training_sample import SampleSettings, empty_sample, training_sample


@settings
class ReaderSettings:
    """`num_threads` of one worker load samples, up to `prefetch` batches ahead (and at least a sample per thread)."""

    num_threads: Positive = 2
    prefetch: Positive = 4


class SampleError(ValueError):
    """Something is wrong with a sample; `key` is how to name it among those to be left out."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def sample_key(dataset: str, sample_id: str) -> str:
    """The name of a sample, by which it can be left out: `coco_panoptic/000000123456`."""
    return f"{dataset}/{sample_id}"


def row_key(dataset: str, position: int) -> str:
    """The name of a sample that cannot be read, by its position in the split: `coco_panoptic:7`."""
    return f"{dataset}:{position}"


def worker_slices(global_batch: int, rank: int, world_size: int, accumulation: int) -> list[range]:
    """Which positions of a global batch a worker takes, one range for each of its `accumulation` batches.

    Joined over accumulation steps and, within each, over ranks, the ranges are the global batch in order.  Their sizes
    differ by one at most; the reader pads the shorter ones, so that every worker's batches have the same shape.
    """
    if not 0 <= rank < world_size or accumulation < 1:
        raise ValueError(f"rank {rank} of {world_size} workers, accumulation {accumulation}")
    slots = world_size * accumulation
    places = [step * world_size + rank for step in range(accumulation)]
    return [range(place * global_batch // slots, (place + 1) * global_batch // slots) for place in places]


def load_sample(
    split: Split,
    row: Row,
    seed: int,
    sample_settings: SampleSettings,
    out: UInt8[np.ndarray, "3 s s"] | None = None,
    skip: Collection[str] = (),
) -> Sample:
    """The sample of one row of the plan, its image written to `out` if that is given.

    One that `skip` names, by `sample_key` or `row_key`, is an empty one.  Whatever is wrong with a sample raises
    `SampleError` naming shard and row, and storage that cannot be read an `OSError`.
    """
    where = f"{row.dataset}: {split.shard_path(row.shard)}, row {row.row} (sample {row.index} of the run)"
    place = row_key(row.dataset, split.position(row.shard, row.row))
    if place in skip:  # Without reading it.
        return empty_sample(sample_settings, out)
    try:
        record = split.record_at(row.shard, row.row)
    except OSError as error:
        raise OSError(f"{where}: {error}") from error
    except Exception as error:
        raise SampleError(f"{where}: {type(error).__name__}: {error}", place) from error
    name = sample_key(row.dataset, record.sample_id)
    if name in skip:
        return empty_sample(sample_settings, out)
    try:
        return training_sample(record, row.index, seed, sample_settings, out)
    except Exception as error:  # An OSError too: to Pillow a broken image is one.
        raise SampleError(f"{where}: {type(error).__name__}: {error}", name) from error


@dataclass(frozen=True)
class _BatchInWork:
    step: int
    images: UInt8[np.ndarray, "b 3 h w"]
    samples: list[Future[Sample]]


class _ImageMemory:
    """Arrays for stacked images, whose memory is used again once nobody refers to an array or to a part of it.

    Fresh memory costs a page fault for every 4 KiB (as much as resizing the image), and pinned memory far more.
    """

    def __init__(self, shape: tuple[int, ...], allocate: Callable[[tuple[int, ...], type], np.ndarray]) -> None:
        self._shape = shape
        self._allocate = allocate
        self._free: deque[np.ndarray] = deque()

    def take(self) -> UInt8[np.ndarray, "b 3 h w"]:
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._allocate(self._shape, np.uint8)
        # Through a memoryview, so that numpy makes this array, and not `memory`, the base of every view taken of it:
        # it lives as long as any of them.
        array = np.asarray(memory.data)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array


class Reader:
    """Iterates over the steps from `start_step`: for each the `accumulation` batches of this worker.

    A batch has ceil(global batch / (workers * accumulation)) samples, empty ones at its end where there are not that
    many.  `data_wait` is how many seconds the last step's batches kept the caller waiting.  An error in a thread is
    raised where its sample would have come.  Samples that `skip` names are empty ones, too (see `load_sample`).  Use it
    as a context manager, or `close` it: that ends its threads.

    `allocate(shape, dtype)` makes the memory that images are stacked in (pinned, say).  It is used again for a later
    batch as soon as nothing refers to the earlier one, not before.
    """

    def __init__(
        self,
        plan: Plan,
        splits: Mapping[str, Split],
        sample_settings: SampleSettings,
        seed: int,
        rank: int,
        world_size: int,
        accumulation: int = 1,
        start_step: int = 0,
        settings: ReaderSettings | None = None,
        allocate: Callable[[tuple[int, ...], type], np.ndarray] = np.empty,
        skip: Collection[str] = (),
    ) -> None:
        for dataset in plan.datasets:
            if dataset not in splits:
                raise ValueError(f"{dataset}: the plan draws from it, but no split of it is given")
            if splits[dataset].rows_of_shard != plan.sizes[dataset]:
                raise ValueError(f"{splits[dataset].root}: other shards than those the plan was made for")
        settings = settings or ReaderSettings()
        self.data_wait = 0.0
        self._plan = plan
        self._splits = splits
        self._sample_settings = sample_settings
        self._seed = seed
        self._skip = frozenset(skip)
        self._slices = worker_slices(plan.global_batch, rank, world_size, accumulation)
        self._batch_size = -(-plan.global_batch // (world_size * accumulation))
        self._padding = empty_sample(sample_settings)
        self._memory = _ImageMemory((self._batch_size, *self._padding.image.shape), allocate)
        self._step = start_step
        self._ahead = max(settings.prefetch, -(-settings.num_threads // self._batch_size))
        self._in_work: deque[_BatchInWork] = deque()
        self._pool = ThreadPoolExecutor(settings.num_threads, thread_name_prefix="reader")
        self._closed = False
        self._to_start = self._upcoming(start_step)

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if self._step >= self._plan.num_steps:
            self.close()
            raise StopIteration
        if self._closed:
            raise ValueError("the reader is closed")
        started = time.perf_counter()
        try:
            batches = [self._take() for _ in self._slices]
        except BaseException:  # An interrupt too: no thread must outlive it.
            self.close()
            raise
        self._step += 1
        self.data_wait = time.perf_counter() - started
        return batches

    def close(self) -> None:
        """End the threads; samples not yet begun are dropped."""
        self._closed = True
        self._in_work.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> Batch:
        self._start_ahead()
        work = self._in_work.popleft()
        wait(work.samples, return_when=FIRST_EXCEPTION)  # Woken once, not for each sample.
        samples = [future.result() for future in work.samples]
        self._start_ahead()
        for image in work.images[len(samples) :]:
            np.copyto(image, self._padding.image)
            samples.append(replace(self._padding, image=image))
        return Batch.of(samples, work.step, work.images)

    def _start_ahead(self) -> None:
        while len(self._in_work) < self._ahead:
            upcoming = next(self._to_start, None)
            if upcoming is None:
                return
            step, rows = upcoming
            images = self._memory.take()
            samples = [self._pool.submit(self._load, row, image) for row, image in zip(rows, images, strict=False)]
            self._in_work.append(_BatchInWork(step, images, samples))

    def _upcoming(self, start_step: int) -> Iterator[tuple[int, list[Row]]]:
        for step in range(start_step, self._plan.num_steps):
            rows = self._plan.rows(step)
            for part in self._slices:
                yield step, rows[part.start : part.stop]

    def _load(self, row: Row, image: UInt8[np.ndarray, "3 h w"]) -> Sample:
        split = self._splits[row.dataset]
        return load_sample(split, row, self._seed, self._sample_settings, image, self._skip)
