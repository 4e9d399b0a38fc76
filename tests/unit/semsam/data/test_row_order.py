"""Images of rare classes come more often in an epoch, in the same numbers for every seed, and the order stays exact."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from semsam.data.plan import Plan, PlanSettings, Row, Stage
from semsam.data.reader import worker_slices
from semsam.data.row_categories import Names, from_bytes, repeat_factors, to_batch, to_bytes
from semsam.data.row_order import some_rows

NUM_ROWS = 600
SIZES = (250, 0, 350)


def table(rows: list[Names]) -> pa.Table:
    return from_bytes(to_bytes([to_batch(rows)]), "test")


@pytest.fixture(scope="module")
def categories() -> pa.Table:
    """Names as common as 1 / rank, so that most of them are rare; every twentieth row has none."""
    rng = np.random.default_rng(0)
    chances = 0.8 / np.arange(1, 61)
    rows: list[Names] = []
    for row in range(NUM_ROWS):
        shown = np.flatnonzero(rng.random(60) < chances) if row % 20 else np.zeros(0, np.int64)
        rows.append((shown[shown < 40].tolist(), (shown[shown >= 40] - 40).tolist()))
    return table(rows)


def plan_of(
    categories: pa.Table, seed: int = 0, num_draws: int = 3000, global_batch: int = 6, **options: object
) -> Plan:
    settings = PlanSettings(
        stages=(Stage({"paco": 1.0, "sa1b": 0.5}, until=0.5), Stage({"paco": 1.0})),
        **({"repeat": {"paco": 0.05}} | options),  # type: ignore[arg-type]
    )
    sizes = {"paco": SIZES, "sa1b": (100,)}
    return Plan(seed, sizes, settings, global_batch, num_draws // global_batch, {"paco": categories})


def numbers(plan: Plan) -> list[int]:
    """The rows of one dataset in the order in which they come."""
    rows = (row for step in range(plan.num_steps) for row in plan.rows(step))
    return [row.row + (SIZES[0] if row.shard else 0) for row in rows if row.dataset == "paco"]


def test_an_epoch_has_every_row_as_often_as_its_factor_rounded_up_or_down(categories: pa.Table) -> None:
    factors = repeat_factors(categories, 0.05)
    plan = plan_of(categories)
    epoch = plan.epoch_size("paco")
    assert epoch == pytest.approx(factors.sum(), rel=0.02)
    times = np.bincount(numbers(plan)[:epoch], minlength=NUM_ROWS)
    assert ((times == np.floor(factors)) | (times == np.ceil(factors))).all()
    is_broken = factors % 1 > 0
    assert is_broken.sum() > 200
    rounded_up = times[is_broken] - np.floor(factors[is_broken])
    assert rounded_up.mean() == pytest.approx((factors[is_broken] % 1).mean(), abs=0.05)


def test_a_rare_class_is_seen_about_as_much_more_often_as_the_formula_says(categories: pa.Table) -> None:
    plan = plan_of(categories)
    times = np.bincount(numbers(plan)[: plan.epoch_size("paco")], minlength=NUM_ROWS)
    parts = categories["parts"].to_pylist()
    for name in range(20):
        shows = np.array([name in row for row in parts])
        # Images that show a rarer name too come more often still.
        assert times[shows].sum() >= 0.8 * shows.sum() * np.sqrt(0.05 / shows.mean())


def test_all_epochs_and_seeds_draw_the_same_rows_in_other_orders(categories: pa.Table) -> None:
    plan, other = plan_of(categories), plan_of(categories, seed=1)
    epoch = plan.epoch_size("paco")
    assert other.epoch_size("paco") == epoch
    drawn = numbers(plan)
    first, second, elsewhere = drawn[:epoch], drawn[epoch : 2 * epoch], numbers(other)[:epoch]
    assert Counter(first) == Counter(second) == Counter(elsewhere)
    assert first != second
    assert first != elsewhere


def test_copies_of_an_image_lie_far_apart(categories: pa.Table) -> None:
    rows: list[Names] = [([0] if row % 100 else [0, 1 + row // 100], []) for row in range(NUM_ROWS)]
    plan = plan_of(table(rows), repeat={"paco": 0.015}, block_rows=4, window_blocks=4)
    epoch = plan.epoch_size("paco")
    assert epoch == NUM_ROWS + 2 * 6
    drawn = np.array(numbers(plan)[:epoch])
    gaps = [np.diff(np.flatnonzero(drawn == row)) for row in range(0, NUM_ROWS, 100)]
    # A window holds 16 draws; of a list in which copies are neighbours nearly all would fall into one.
    assert np.mean(np.concatenate(gaps) > 16) > 0.7


def test_a_threshold_below_the_rarest_share_changes_nothing(categories: pa.Table) -> None:
    assert numbers(plan_of(categories, repeat={"paco": 1 / NUM_ROWS})) == numbers(plan_of(categories, repeat={}))


def test_with_a_fraction_only_the_rows_in_use_count(categories: pa.Table) -> None:
    plain = plan_of(categories, repeat={}, fraction={"paco": 0.25})
    used = sorted(set(numbers(plain)))
    assert len(used) == 150
    plan = plan_of(categories, fraction={"paco": 0.25})
    epoch = plan.epoch_size("paco")
    times = np.bincount(numbers(plan)[:epoch], minlength=NUM_ROWS)
    assert np.flatnonzero(times).tolist() == used
    factors = repeat_factors(categories.take(used), 0.05)
    assert ((times[used] == np.floor(factors)) | (times[used] == np.ceil(factors))).all()
    assert epoch > 160


def test_a_row_without_any_name_comes_once(categories: pa.Table) -> None:
    plan = plan_of(categories)
    times = np.bincount(numbers(plan)[: plan.epoch_size("paco")], minlength=NUM_ROWS)
    assert times[::20].tolist() == [1] * (NUM_ROWS // 20)


def test_repeating_leaves_the_mixture_and_the_other_datasets_as_they_were(categories: pa.Table) -> None:
    with_repeat, without = plan_of(categories), plan_of(categories, repeat={})

    def others(plan: Plan) -> list[Row | None]:
        rows = (row for step in range(plan.num_steps) for row in plan.rows(step))
        return [row if row.dataset == "sa1b" else None for row in rows]

    assert others(with_repeat) == others(without)
    assert with_repeat.samples_seen(300) == without.samples_seen(300)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("stop", [0, 1, 99, 250, 251, 499])
def test_any_number_of_workers_goes_on_with_the_next_sample_wherever_others_stopped(
    categories: pa.Table, world_size: int, stop: int
) -> None:
    before, after = plan_of(categories), plan_of(categories)  # As two processes make them.
    whole = [row for step in range(500) for row in before.rows(step)]
    parts = [worker_slices(6, rank, world_size, 1)[0] for rank in range(world_size)]
    resumed = [after.rows(step)[i] for step in range(stop, 500) for part in parts for i in part]
    assert whole[: 6 * stop] + resumed == whole


def test_without_the_names_of_its_rows_a_dataset_is_refused(categories: pa.Table) -> None:
    for wrong in (categories.slice(1), table([])):
        with pytest.raises(ValueError, match="repeat.paco: the plan was not given the names of its 600 rows"):
            plan_of(wrong)
    settings = PlanSettings(stages=(Stage({"paco": 1.0}),), repeat={"paco": 0.1})
    with pytest.raises(ValueError, match="repeat.paco: the plan was not given"):
        Plan(0, {"paco": SIZES}, settings, 1, 1)


def test_some_rows_are_spread_and_nested() -> None:
    few, many = some_rows("paco", 10_000, 50), some_rows("paco", 10_000, 500)
    assert len(few) == 50
    assert set(few.tolist()) < set(many.tolist())
    assert few.max() > 9_000
    assert few.tolist() == sorted(few.tolist()) == some_rows("paco", 10_000, 50).tolist()
    assert few.tolist() != some_rows("ade20k", 10_000, 50).tolist()
    assert some_rows("paco", 3, 9).tolist() == [0, 1, 2]
    assert some_rows("paco", 3, 0).tolist() == []
