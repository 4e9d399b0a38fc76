"""A worker's batches come in the plan's order, the same for any number of threads, workers and restarts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semsam.data import rle
from semsam.data.augmentation import AugmentationSettings
from semsam.data.images import encode_jpeg
from semsam.data.plan import Plan, PlanSettings, Stage
from semsam.data.prompts import PromptSettings
from semsam.data.reader import Reader, ReaderSettings, load_sample, worker_slices
from semsam.data.sample import Batch, Sample
from semsam.data.schema import Kind, Record, Region
from semsam.data.shards import Split
from semsam.data.training_sample import SampleSettings, empty_sample

SEED = 11
SAMPLES = SampleSettings(augmentation=AugmentationSettings(crop_size=32), prompts=PromptSettings(num_prompts=4))


def record(dataset: str, number: int, broken: bool = False) -> Record:
    rng = np.random.default_rng(number)
    regions = []
    for j in range(number % 4):  # Some images have no regions.
        mask = np.zeros((24, 30), bool)
        top, left = rng.integers(0, 12, 2)
        mask[top : top + 12, left : left + 12] = True
        box = rle.box_xyxy(rle.encode(mask), 24, 30)
        regions.append(Region(str(j), rle.encode(mask), box, float(mask.sum()), Kind.CLASS_AGNOSTIC))
    image = encode_jpeg(rng.integers(0, 256, (24, 30, 3), np.uint8))
    return Record(dataset, "train", f"{number:012d}", image[:20] if broken else image, 24, 30, 24, 30, tuple(regions))


@pytest.fixture(scope="module")
def records() -> dict[str, list[list[Record]]]:
    return {
        "sa1b": [[record("sa1b", 3 * s + i) for i in range(3)] for s in range(3)],
        "ade20k": [[record("ade20k", 100 + i) for i in range(4)]],
    }


@pytest.fixture
def splits(
    tmp_path: Path, write_split: Callable[..., Path], records: dict[str, list[list[Record]]]
) -> dict[str, Split]:
    return {name: Split(str(write_split(tmp_path / name / "train", shards))) for name, shards in records.items()}


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_reader() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")] == []


def plan_for(splits: dict[str, Split], global_batch: int = 6, num_steps: int = 5) -> Plan:
    sizes = {name: split.rows_of_shard for name, split in splits.items()}
    stages = (Stage({name: 1.0 + i for i, name in enumerate(splits)}),)
    return Plan(SEED, sizes, PlanSettings(stages=stages, block_rows=2, window_blocks=2), global_batch, num_steps)


def read(
    plan: Plan, splits: dict[str, Split], rank: int = 0, world_size: int = 1, **options: object
) -> list[list[Batch]]:
    with Reader(plan, splits, SAMPLES, SEED, rank, world_size, **options) as reader:  # type: ignore[arg-type]
        return list(reader)


def assert_same_sample(one: Sample, other: Sample) -> None:
    assert (one.index, one.dataset, one.sample_id) == (other.index, other.dataset, other.sample_id)
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.atoms.labels, other.atoms.labels)
    np.testing.assert_array_equal(one.atoms.table, other.atoms.table)
    np.testing.assert_array_equal(one.regions.boxes_cxcywh, other.regions.boxes_cxcywh)
    np.testing.assert_array_equal(one.prompts.boxes_cxcywh, other.prompts.boxes_cxcywh)
    np.testing.assert_array_equal(one.prompts.targets, other.prompts.targets)


def global_batches(
    plan: Plan, splits: dict[str, Split], world_size: int, accumulation: int, start: int = 0
) -> list[list[Sample]]:
    """The real samples of every step, put together from all workers."""
    workers = [
        read(plan, splits, rank, world_size, accumulation=accumulation, start_step=start) for rank in range(world_size)
    ]
    return [
        [s for micro in zip(*step, strict=True) for batch in micro for s in batch.samples if s.index >= 0]
        for step in zip(*workers, strict=True)
    ]


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 5))
def test_the_slices_of_all_workers_are_the_global_batch_in_order(
    global_batch: int, world: int, accumulation: int
) -> None:
    slices = [worker_slices(global_batch, rank, world, accumulation) for rank in range(world)]
    joined = [i for micro in zip(*slices, strict=True) for part in micro for i in part]
    assert joined == list(range(global_batch))
    sizes = {len(part) for parts in slices for part in parts}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == -(-global_batch // (world * accumulation))


@pytest.mark.parametrize(("rank", "world", "accumulation"), [(2, 2, 1), (-1, 2, 1), (0, 0, 1), (0, 1, 0)])
def test_impossible_workers_are_refused(rank: int, world: int, accumulation: int) -> None:
    with pytest.raises(ValueError, match=rf"rank {rank} of {world} workers"):
        worker_slices(4, rank, world, accumulation)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_equal_the_same_work_done_inline(splits: dict[str, Split], num_threads: int, prefetch: int) -> None:
    plan = plan_for(splits)
    steps = read(plan, splits, settings=ReaderSettings(num_threads, prefetch))
    assert len(steps) == plan.num_steps
    for step, (batch,) in enumerate(steps):
        inline = Batch.of([load_sample(splits[r.dataset], r, SEED, SAMPLES) for r in plan.rows(step)], step)
        assert batch.step == step
        for field in ("indices", "images", "prompt_boxes_cxcywh", "prompt_is_box", "prompt_valid", "prompt_targets"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(inline, field))
        for place, (one, other) in enumerate(zip(batch.samples, inline.samples, strict=True)):
            assert_same_sample(one, other)
            assert np.shares_memory(one.image, batch.images[place])


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (3, 1), (4, 1), (1, 3), (2, 2), (7, 1)])
def test_any_number_of_workers_reads_the_same_global_batches(
    splits: dict[str, Split], world_size: int, accumulation: int
) -> None:
    plan = plan_for(splits, num_steps=3)
    alone = global_batches(plan, splits, 1, 1)
    together = global_batches(plan, splits, world_size, accumulation)
    assert [s.index for step in together for s in step] == list(range(3 * plan.global_batch))
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert_same_sample(a, b)


@pytest.mark.parametrize("stop", range(6))
def test_a_run_goes_on_with_another_number_of_workers_where_it_stopped(splits: dict[str, Split], stop: int) -> None:
    plan = plan_for(splits)
    whole = [[s.sample_id for s in step] for step in global_batches(plan, splits, 1, 1)]
    before = [[s.sample_id for s in step] for step in global_batches(plan, splits, 2, 1)][:stop]
    after = [[s.sample_id for s in step] for step in global_batches(plan, splits, 3, 1, start=stop)]
    assert before + after == whole


def test_short_batches_are_padded_with_empty_samples(splits: dict[str, Split]) -> None:
    plan = plan_for(splits, global_batch=3, num_steps=2)
    empty = empty_sample(SAMPLES)
    shapes, padding = set(), 0
    for rank in range(5):
        for step in read(plan, splits, rank, 5):
            (batch,) = step
            shapes.add((batch.images.shape, batch.prompt_targets.shape, len(batch.samples)))
            for place in np.flatnonzero(batch.indices == -1):
                padding += 1
                assert not batch.prompt_valid[place].any()
                assert_same_sample(batch.samples[place], empty)
                np.testing.assert_array_equal(batch.images[place], empty.image)
    assert shapes == {((1, *empty.image.shape), (1, *empty.prompts.targets.shape), 1)}
    assert padding == 2 * 2


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (3, 1), (2, 2)])
def test_a_skipped_sample_is_an_empty_one_in_its_place_for_any_number_of_workers(
    splits: dict[str, Split], world_size: int, accumulation: int
) -> None:
    plan = plan_for(splits, num_steps=3)
    whole = [sample for step in global_batches(plan, splits, 1, 1) for sample in step]
    row = plan.rows(1)[2]
    by_row = f"{row.dataset}:{splits[row.dataset].position(row.shard, row.row)}"
    names = [f"{sample.dataset}/{sample.sample_id}" for sample in whole]
    for key in (names[plan.global_batch + 2], by_row):
        found = []
        for rank in range(world_size):
            batches = read(plan, splits, rank, world_size, accumulation=accumulation, skip=(key,))
            found += [sample for step in batches for batch in step for sample in batch.samples if sample.index >= 0]
        left = [one.index for one, name in zip(whole, names, strict=True) if name != names[plan.global_batch + 2]]
        assert sorted(sample.index for sample in found) == left
        for sample in found:
            assert_same_sample(sample, whole[sample.index])


def test_a_broken_row_is_raised_at_its_place_and_named(
    tmp_path: Path, write_split: Callable[..., Path], records: dict[str, list[list[Record]]]
) -> None:
    shards = [records["sa1b"][0], [record("sa1b", 7), record("sa1b", 8, broken=True)]]
    splits = {"sa1b": Split(str(write_split(tmp_path / "sa1b" / "train", shards)))}
    plan = plan_for(splits, global_batch=1, num_steps=5)
    at = next(step for step in range(5) if (plan.rows(step)[0].shard, plan.rows(step)[0].row) == (1, 1))
    reader = Reader(plan, splits, SAMPLES, SEED, 0, 1)
    assert [next(reader)[0].step for _ in range(at)] == list(range(at))
    with pytest.raises(ValueError, match=rf"sa1b: .*shard-00001.arrow, row 1 \(sample {at} of the run\).*broken JPEG"):
        next(reader)
    with pytest.raises(ValueError, match="the reader is closed"):
        next(reader)


def test_work_ahead_is_bounded(splits: dict[str, Split]) -> None:
    begun = []

    def allocate(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        begun.append(shape)
        return np.empty(shape, dtype)

    plan = plan_for(splits, num_steps=20)
    settings = ReaderSettings(num_threads=2, prefetch=3)
    with Reader(plan, splits, SAMPLES, SEED, 0, 1, 2, settings=settings, allocate=allocate) as reader:
        assert len(begun) == 0
        held = []  # So that no memory is used twice, and every batch begun shows.
        for step in range(1, 4):
            held.append(next(reader))
            assert len(begun) == 2 * step + 3


def test_memory_of_images_is_used_again_but_never_while_somebody_holds_a_part_of_it(splits: dict[str, Split]) -> None:
    owners: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        owners.append(np.empty(shape, dtype))
        return owners[-1]

    plan = plan_for(splits, num_steps=30)
    settings = ReaderSettings(num_threads=2, prefetch=2)
    held, copies = [], []
    with Reader(plan, splits, SAMPLES, SEED, 0, 1, settings=settings, allocate=allocate) as reader:
        for step, (batch,) in enumerate(reader):
            if step in (3, 8):
                held.append(batch.samples[1].image[0, 2:5])
                copies.append(held[-1].copy())
            del batch
    for image, copy in zip(held, copies, strict=True):
        np.testing.assert_array_equal(image, copy)
    assert len(owners) <= 2 + len(held) + 2


def test_a_closed_reader_says_so_and_closes_twice(splits: dict[str, Split]) -> None:
    reader = Reader(plan_for(splits), splits, SAMPLES, SEED, 0, 1)
    next(reader)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="the reader is closed"):
        next(reader)


def test_a_reader_that_came_to_its_end_stays_there(splits: dict[str, Split]) -> None:
    reader = Reader(plan_for(splits, num_steps=1), splits, SAMPLES, SEED, 0, 1)
    assert len(list(reader)) == 1
    assert list(reader) == []


class SlowSplit(Split):
    """A storage that answers only once `answer` is set."""

    answer = threading.Event()

    def record_at(self, shard: int, row: int) -> Record:
        self.answer.wait(5)
        return super().record_at(shard, row)


@pytest.fixture
def slow(splits: dict[str, Split]) -> dict[str, Split]:
    SlowSplit.answer.clear()
    return {name: SlowSplit(split.root) for name, split in splits.items()}


def test_an_interrupt_while_waiting_ends_the_threads(slow: dict[str, Split]) -> None:
    reader = Reader(plan_for(slow), slow, SAMPLES, SEED, 0, 1)
    interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    answer = threading.Timer(0.2, SlowSplit.answer.set)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs ignore it.
    try:
        interrupt.start()
        answer.start()
        with pytest.raises(KeyboardInterrupt):
            next(reader)
    finally:
        answer.join()
        signal.signal(signal.SIGINT, before)


class UnreachableSplit(Split):
    """A split whose storage has gone."""

    def record_at(self, shard: int, row: int) -> Record:
        raise OSError("AWS Error SLOW_DOWN")


def test_storage_that_fails_is_an_os_error_that_names_the_row(splits: dict[str, Split]) -> None:
    gone = {name: UnreachableSplit(split.root) for name, split in splits.items()}
    with (
        Reader(plan_for(gone), gone, SAMPLES, SEED, 0, 1) as reader,
        pytest.raises(OSError, match=r"shard-0000\d.arrow, row \d .*SLOW_DOWN"),
    ):
        next(reader)


def test_data_wait_is_the_time_spent_waiting(slow: dict[str, Split]) -> None:
    with Reader(plan_for(slow), slow, SAMPLES, SEED, 0, 1) as reader:
        answer = threading.Timer(0.15, SlowSplit.answer.set)
        answer.start()
        next(reader)
        assert 0.1 < reader.data_wait < 2
        answer.join()


def test_a_plan_for_other_shards_is_refused(splits: dict[str, Split]) -> None:
    plan = Plan(0, {"sa1b": (3, 3)}, PlanSettings(stages=(Stage({"sa1b": 1.0}),)), 1, 1)
    with pytest.raises(ValueError, match="other shards than those the plan was made for"):
        Reader(plan, splits, SAMPLES, SEED, 0, 1)
    with pytest.raises(ValueError, match="sa1b: the plan draws from it, but no split of it is given"):
        Reader(plan, {}, SAMPLES, SEED, 0, 1)


@pytest.mark.parametrize("values", [(0, 4), (2, 0)])
def test_settings_without_threads_or_prefetch_are_refused(values: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ReaderSettings(*values)
