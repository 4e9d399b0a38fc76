"""The order of training is a pure function of the step: shares, epochs, stages and restarts follow from it."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from semsam.config import ConfigError, config_values, parse_config
from semsam.data.plan import MAX_PERIOD, Plan, PlanSettings, Row, Stage, _Pattern, _whole_parts

SIZES = {"a": (5, 0, 7), "b": (30, 30, 1), "c": (4,)}


def all_rows(plan: Plan) -> list[Row]:
    return [row for step in range(plan.num_steps) for row in plan.rows(step)]


def one_dataset(num_rows: int, draws: int, seed: int = 0, **options: object) -> list[Row]:
    """The first draws of a plan of one dataset, with shards of 50 rows."""
    sizes = tuple(min(50, num_rows - start) for start in range(0, num_rows, 50))
    settings = PlanSettings(stages=(Stage({"a": 1.0}),), **options)  # type: ignore[arg-type]
    return all_rows(Plan(seed, {"a": sizes}, settings, global_batch=1, num_steps=draws))


def number(row: Row) -> int:
    return row.shard * 50 + row.row


@pytest.mark.parametrize("weights", [{"a": 0.5, "b": 0.3, "c": 0.2}, PlanSettings().stages[-1].weights])
def test_shares_are_within_one_percent_of_the_weights_over_ten_thousand_samples(weights: dict[str, float]) -> None:
    sizes = dict.fromkeys(weights, (100, 37))
    plan = Plan(3, sizes, PlanSettings(stages=(Stage(weights),)), global_batch=16, num_steps=625)
    seen = Counter(row.dataset for row in all_rows(plan))
    assert sum(seen.values()) == 10_000
    for name, weight in weights.items():
        assert seen[name] / 10_000 == pytest.approx(weight, rel=0.01)


@hypothesis_settings(max_examples=50)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=7), st.integers(0, 5))
def test_every_prefix_has_each_dataset_within_one_sample_of_its_share(parts: list[int], decimals: int) -> None:
    names = tuple("abcdefg"[: len(parts)])
    pattern = _Pattern.of({name: part / 10**decimals for name, part in zip(names, parts, strict=True)}, names)
    t = np.arange(2 * pattern.period + 2)
    drawn = pattern.drawn(t)
    assert (abs(drawn * sum(parts) - t[:, None] * np.array(parts)) < sum(parts)).all()
    assert (np.diff(drawn, axis=0).sum(axis=1) == 1).all()
    order = pattern.order[t[:-1] % pattern.period]
    assert (np.diff(drawn, axis=0)[np.arange(len(order)), order] == 1).all()


@hypothesis_settings(max_examples=50)
@given(st.lists(st.floats(1e-2, 1e3), min_size=1, max_size=7))
def test_awkward_weights_are_rounded_to_a_short_period(weights: list[float]) -> None:
    if min(weights) / sum(weights) < 1 / MAX_PERIOD:
        return
    parts = _whole_parts({str(i): weight for i, weight in enumerate(weights)})
    total = sum(parts.values())
    assert total <= MAX_PERIOD
    for i, weight in enumerate(weights):
        assert parts[str(i)] / total == pytest.approx(weight / sum(weights), abs=1 / MAX_PERIOD)


def test_the_order_in_which_weights_are_written_does_not_matter() -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    turned = dict(reversed(weights.items()))
    plans = [Plan(1, SIZES, PlanSettings(stages=(Stage(w),)), 4, 30) for w in (weights, turned)]
    assert all_rows(plans[0]) == all_rows(plans[1])


@hypothesis_settings(max_examples=40)
@given(
    num_rows=st.integers(1, 400),
    block_rows=st.integers(1, 70),
    window_blocks=st.integers(1, 6),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_every_epoch_is_a_permutation(
    num_rows: int, block_rows: int, window_blocks: int, epochs: int, seed: int
) -> None:
    rows = one_dataset(num_rows, epochs * num_rows, seed, block_rows=block_rows, window_blocks=window_blocks)
    for epoch in range(epochs):
        numbers = [number(row) for row in rows[epoch * num_rows : (epoch + 1) * num_rows]]
        assert sorted(numbers) == list(range(num_rows))


def test_epochs_and_seeds_differ() -> None:
    rows = [number(row) for row in one_dataset(200, 400)]
    other = [number(row) for row in one_dataset(200, 200, seed=1)]
    assert rows[:200] != rows[200:]
    assert rows[:200] != other


def test_datasets_of_equal_size_have_different_orders() -> None:
    plan = Plan(0, {"a": (100,), "b": (100,)}, PlanSettings(stages=(Stage({"a": 1, "b": 1}),)), 2, 100)
    rows = all_rows(plan)
    assert [r.row for r in rows if r.dataset == "a"] != [r.row for r in rows if r.dataset == "b"]


def test_a_window_reads_few_blocks_of_neighbouring_rows() -> None:
    numbers = np.array([number(row) for row in one_dataset(10_000, 10_000, block_rows=50, window_blocks=8)])
    windows = numbers.reshape(-1, 400)
    assert {len(np.unique(window // 50)) for window in windows} == {8}
    # Blocks come from all over the dataset, and rows from all over the window.
    assert all(np.ptp(window) > 2000 for window in windows)
    assert np.mean(np.diff(windows.ravel()) == 1) < 0.01
    assert np.mean([len(np.unique(window[:50] // 50)) for window in windows]) > 7


def test_the_index_counts_all_samples_of_the_run() -> None:
    plan = Plan(0, SIZES, PlanSettings(stages=(Stage({"a": 1, "b": 2}),)), global_batch=3, num_steps=20)
    assert [row.index for row in all_rows(plan)] == list(range(60))


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    settings = PlanSettings(stages=(Stage({"a": 1}, until=0.5), Stage({"a": 1, "b": 2.5})), block_rows=4)
    forward = Plan(7, SIZES, settings, global_batch=5, num_steps=50)
    steps = [forward.rows(step) for step in range(50)]
    backward = Plan(7, SIZES, settings, global_batch=5, num_steps=50)
    assert [backward.rows(step) for step in reversed(range(50))] == steps[::-1]


def test_a_stage_ends_at_its_step_and_a_dataset_goes_on_where_it_was() -> None:
    stages = (Stage({"a": 1}, until=0.3), Stage({"b": 1}, until=0.55), Stage({"a": 2, "b": 1}))
    plan = Plan(0, SIZES, PlanSettings(stages=stages), global_batch=6, num_steps=100)
    by_step = [{row.dataset for row in plan.rows(step)} for step in range(100)]
    assert by_step == [{"a"}] * 30 + [{"b"}] * 25 + [{"a", "b"}] * 45
    alone = Plan(0, SIZES, PlanSettings(stages=(Stage({"a": 1}),)), global_batch=1, num_steps=400)
    mixed = [(row.shard, row.row) for row in all_rows(plan) if row.dataset == "a"]
    assert mixed == [(row.shard, row.row) for row in all_rows(alone)][: len(mixed)]


def test_samples_seen_counts_what_the_steps_before_gave() -> None:
    stages = (Stage({"a": 3, "b": 1}, until=0.35), Stage({"a": 1, "b": 0.7, "c": 0.11}))
    plan = Plan(0, SIZES, PlanSettings(stages=stages), global_batch=7, num_steps=60)
    seen: Counter[str] = Counter()
    for step in range(60):
        assert plan.samples_seen(step) == {name: seen[name] for name in "abc"}
        seen.update(row.dataset for row in plan.rows(step))
    assert plan.samples_seen(60) == seen


def test_more_steps_leave_the_order_of_a_single_stage_as_it_was() -> None:
    settings = PlanSettings(stages=(Stage({"a": 1, "b": 2}),))
    assert Plan(0, SIZES, settings, 4, 10).rows(9) == Plan(0, SIZES, settings, 4, 1000).rows(9)


def test_a_fraction_uses_the_same_rows_in_every_epoch_and_for_every_seed() -> None:
    chosen = [number(row) for row in one_dataset(200, 60, fraction={"a": 0.1})]
    assert len(set(chosen)) == 20
    assert set(chosen[:20]) == set(chosen[20:40]) == set(chosen[40:])
    assert set(chosen) == {number(row) for row in one_dataset(200, 20, seed=5, fraction={"a": 0.1})}
    assert set(chosen) < {number(row) for row in one_dataset(200, 100, fraction={"a": 0.5})}
    assert one_dataset(200, 200, fraction={"a": 1.0}) == one_dataset(200, 200)
    assert max(Counter(row // 50 for row in set(chosen)).values()) < 12


def test_a_tiny_fraction_leaves_one_row() -> None:
    assert len({number(row) for row in one_dataset(30, 10, fraction={"a": 0.001})}) == 1


def test_step_three_hundred_thousand_of_the_full_mixture_is_there_at_once() -> None:
    rows = {"sa1b": 11_186, "coco_panoptic": 118, "objects365": 1742, "ade20k": 20}
    rows |= {"pascal_part": 5, "paco": 46, "partimagenet": 16}
    sizes = {name: (1000,) * shards for name, shards in rows.items()}
    seconds = []
    for seed in range(3):  # Other seeds, for orders are cached.
        started = time.perf_counter()
        plan = Plan(seed, sizes, PlanSettings(), global_batch=64, num_steps=368_750)
        assert len(plan.rows(300_000)) == 64
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.05


def test_an_unknown_dataset_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown dataset 'sa2b'; there are a, b, c"):
        Plan(0, SIZES, PlanSettings(stages=(Stage({"a": 1, "sa2b": 1}),)), 1, 1)


@pytest.mark.parametrize("sizes", [(), (0, 0)])
def test_a_dataset_without_rows_is_refused_by_name(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="dataset 'empty' has a weight but no rows"):
        Plan(0, SIZES | {"empty": sizes}, PlanSettings(stages=(Stage({"a": 1, "empty": 1}),)), 1, 1)


def test_a_weight_too_small_for_the_pattern_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the weight of 'b' is less than 1/10000"):
        Plan(0, SIZES, PlanSettings(stages=(Stage({"a": 1, "b": 1e-7}),)), 1, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": []}, "`until` must increase"),
        ({"stages": [{"weights": {"a": 1}, "until": 0.5}]}, "end at 1"),
        ({"stages": [{"weights": {"a": 1}}, {"weights": {"a": 1}}]}, "`until` must increase"),
        (
            {"stages": [{"weights": {"a": 1}, "until": 0.0}, {"weights": {"a": 1}}]},
            "stages.0.until: must be greater than 0",
        ),
        ({"stages": [{"weights": {}}]}, "at least one dataset"),
        ({"stages": [{"weights": {"a": 0}}]}, "weights.a: must be greater than 0, not 0"),
        ({"stages": [{"weights": {"a": "inf"}}]}, "weights.a: must be a finite number, not 'inf'"),
        ({"stages": [{"weights": {"a": 1}}], "fraction": {"a": 0}}, "fraction.a: must be greater than 0, not 0"),
        ({"stages": [{"weights": {"a": 1}}], "fraction": {"b": 0.5}}, "fraction.b: no stage uses this dataset"),
        ({"stages": [{"weights": {"a": 1}}], "repeat": {"a": 0}}, "repeat.a: must be greater than 0, not 0"),
        ({"stages": [{"weights": {"a": 1}}], "repeat": {"a": -0.1}}, "repeat.a: must be greater than 0, not -0.1"),
        ({"stages": [{"weights": {"a": 1}}], "repeat": {"a": "nan"}}, "repeat.a: must be a finite number, not 'nan'"),
        ({"stages": [{"weights": {"a": 1}}], "repeat": {"b": 0.001}}, "repeat.b: no stage uses this dataset"),
        ({"stages": [{"weight": {"a": 1}}]}, "stages.0.*unknown setting"),
        ({"block_rows": 0}, "block_rows: must be greater than or equal to 1, not 0"),
    ],
)
def test_contradictory_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(PlanSettings, values, "train.yaml")


def test_settings_survive_yaml() -> None:
    assert parse_config(PlanSettings, config_values(PlanSettings()), "train.yaml") == PlanSettings()


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_run_is_an_index_error(step: int) -> None:
    with pytest.raises(IndexError):
        Plan(0, SIZES, PlanSettings(stages=(Stage({"a": 1}),)), 1, 10).rows(step)
