"""Which images are held out where the data says nothing of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.held_out import of_split, place_of

KEYS = st.lists(st.text(max_size=8), unique=True, max_size=40)


@given(KEYS, st.floats(0, 1), st.randoms(use_true_random=False))
def test_each_image_is_in_one_split_whatever_their_order(keys: list[str], share: float, random: object) -> None:
    val = {key for key, is_val in zip(keys, of_split(keys, "val", share), strict=True) if is_val}
    train = {key for key, is_train in zip(keys, of_split(keys, "train", share), strict=True) if is_train}
    assert train | val == set(keys)
    assert not train & val
    if len(keys) > 1 and 0 < share < 1:
        assert train
        assert val
    turned = keys[::-1]
    assert {key for key, is_val in zip(turned, of_split(turned, "val", share), strict=True) if is_val} == val


def test_a_share_of_many_is_about_that_share() -> None:
    keys = [f"{i}.jpg" for i in range(5000)]
    assert sum(of_split(keys, "val", 0.2)) == pytest.approx(1000, abs=100)


def test_places_are_the_same_for_ever() -> None:
    assert place_of("000000000003") == 13483945052856372864
