"""The pure parts of `tests/benchmarks/claims.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.benchmarks import claims
from tests.benchmarks.claims import CLAIMS, NUMBERS, TOY, VARIANTS, Claim, Run, all_runs, claim_tables, report, spread

CLAIM = Claim("Title", {"old": {"classes/part_top1": "coco"}, "new": {"classes/part_top1": "joint"}})


def leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        yield name, values
        return
    for key, value in values.items():
        yield from leaves(value, f"{name}.{key}" if name else key)


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("many_to_one", {"recipe.criterion.click_matching"}),
        ("objects_alone", {"recipe.criterion.weights.part"}),
        ("parts_alone", {"recipe.criterion.weights.object"}),
    ],
)
def test_a_variant_changes_what_it_is_about_and_nothing_else(variant: str, names: set[str]) -> None:
    ours, joint = (dict(leaves(Run(name, 1, 400, "out").settings())) for name in (variant, "joint"))
    assert ours.keys() == joint.keys()
    assert {name for name in ours if ours[name] != joint[name]} == names


def test_the_shares_of_sa1b_differ_in_data_alone() -> None:
    found = {name: dict(leaves(Run(name, 0, 400, "out").settings())) for name in ("coco_tenth", "coco_sa1b")}
    tenth, whole = found["coco_tenth"], found["coco_sa1b"]
    assert tenth.pop("recipe.data.plan.fraction.sa1b") == 0.1
    assert {name for name in tenth if tenth[name] != whole[name]} == set()


def test_runs_are_in_one_process_and_come_seed_by_seed() -> None:
    runs = all_runs("out", seeds=3, steps=400)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len({run.result for run in runs}) == 3 * len(VARIANTS)
    assert all(run.job().train.training.zero_stage is None for run in runs)
    assert {run.job().train.training.steps for run in runs} == {400}


def test_claims_speak_of_what_is_measured() -> None:
    for claim in CLAIMS:
        for row in claim.rows.values():
            assert set(row) <= set(NUMBERS)
            assert set(row.values()) <= set(VARIANTS)
    assert max(count for variant in VARIANTS.values() for count in variant.evaluated.values()) <= TOY.val_images


@pytest.mark.parametrize(
    ("values", "text"), [([], "-"), ([0.5], "0.500"), ([0.1, 0.2, 0.3], "0.200 ± 0.100"), ([0.2, 0.4], "0.300 ± 0.141")]
)
def test_spread_is_mean_and_sample_deviation(values: list[float], text: str) -> None:
    assert spread(values) == text


def test_differences_are_taken_seed_by_seed_where_both_are_there() -> None:
    number = "classes/part_top1"
    found = {
        ("coco", 0): {number: (0.1, 50), f"baseline/{number}": (0.05, 50)},
        ("coco", 1): {number: (0.5, 50)},
        ("joint", 0): {number: (0.2, 50)},
        ("joint", 1): {number: (0.7, 50)},
        ("joint", 2): {number: (0.9, 50)},
    }
    lines = claim_tables(CLAIM, found).splitlines()
    assert "| old | 0.300 ± 0.283 |" in lines
    assert "| new | 0.600 ± 0.361 |" in lines
    assert "| new, minus old | +0.150 ± 0.071 |" in lines
    assert "| blind guess | 0.050 |" in lines
    assert "| held-out regions | 50 |" in lines
    assert "| old, seed 2 | - |" in lines
    assert "| new, seed 2 | 0.900 |" in lines


def test_a_report_of_nothing_and_of_a_part_say_so() -> None:
    assert "0 trainings" in report({}, 400, "command")
    part = report({("joint", 0): {"classes/part_top1": (0.2, 50)}}, 400, "command")
    assert "Not there: many_to_one, seed 0;" in part
    assert "| jointly | - | 0.200 |" in part


def test_a_result_of_other_settings_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("joint", 0, 400, str(tmp_path))
    assert not run.is_done()
    run.result.parent.mkdir()
    run.result.write_bytes(orjson.dumps({"settings": run.settings(), "sums": {}}))
    assert run.is_done()
    assert claims.read_found([run]) == {("joint", 0): {}}
    assert not Run("joint", 0, 401, str(tmp_path)).is_done()
    monkeypatch.setattr(claims, "TOY", claims.ToySettings(train_images=7))
    assert not run.is_done()


def test_the_recipe_is_that_of_the_measured_tables() -> None:
    recipe = Run("joint", 0, 600, "out").job().train
    assert (recipe.optimizer.lr, recipe.optimizer.decay, recipe.training.global_batch) == (1e-3, 0.02, 8)
