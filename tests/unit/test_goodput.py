"""The closed form of the goodput of a preempted training, against a simulation of it."""

from __future__ import annotations

import math

import pytest

from tests.benchmarks.goodput import Preemptions, simulated_goodput

CASES = [
    Preemptions(between=3600, restart=60, held_up=2, upload=30),
    Preemptions(between=900, restart=120, held_up=5, upload=60),
    Preemptions(between=900, restart=0, held_up=0.1, upload=0),
    Preemptions(between=300, restart=90, held_up=10, upload=20),
    Preemptions(between=900, restart=120, held_up=5, upload=60, noticed=0.7),
    Preemptions(between=900, restart=120, held_up=5, upload=60, noticed=1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("interval", [60, 300, 1200])
def test_the_closed_form_is_what_a_simulation_attains(case: Preemptions, interval: float) -> None:
    found, error = simulated_goodput(case, interval, interruptions=20_000, seed=int(interval))
    assert error < 0.02
    assert abs(found - case.goodput(interval)) < 4 * error


@pytest.mark.parametrize("case", [case for case in CASES if not case.noticed])
def test_no_other_interval_is_better(case: Preemptions) -> None:
    best = case.best_interval()
    others = [best * factor for factor in (0.5, 0.9, 1.1, 2) if best * factor + case.held_up >= case.upload]
    assert all(case.goodput(one) <= case.goodput(best) for one in others)


def test_for_rare_preemptions_it_is_youngs() -> None:
    case = Preemptions(between=1e6, restart=0, held_up=1, upload=0)
    assert case.best_interval() == pytest.approx(math.sqrt(2 * 1 * 1e6), rel=0.01)


def test_without_preemptions_only_the_copies_are_lost() -> None:
    case = Preemptions(between=1e9, restart=60, held_up=1, upload=10)
    assert case.goodput(99) == pytest.approx(0.99, abs=1e-5)
