"""Overlaps from runs are those counted pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semsam.data import rle
from semsam.evaluation.disjoint_segments import overlaps, with_pixels

LABELS = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.tuples(*[arrays(np.int64, shape, elements=st.integers(0, 3))] * 2)
)


@given(LABELS)
def test_overlaps_are_those_of_maps(maps: tuple[np.ndarray, np.ndarray]) -> None:
    masks = [[rle.encode(labels == number) for number in range(3)] for labels in maps]  # 3: is in no segment.
    expected = np.zeros((4, 4), np.int64)
    np.add.at(expected, maps, 1)
    np.testing.assert_array_equal(overlaps(*masks, *maps[0].shape), expected)
    for labels, encoded in zip(maps, masks, strict=True):
        shown = [(labels == number).any() for number in range(3)]
        np.testing.assert_array_equal(with_pixels(encoded, *labels.shape), shown)


def test_no_segments_share_all_pixels_with_none() -> None:
    np.testing.assert_array_equal(overlaps([], [], 3, 4), [[12]])
    assert with_pixels([], 3, 4).shape == (0,)


def test_a_shared_pixel_is_refused() -> None:
    one, other = (rle.encode(np.arange(12).reshape(3, 4) < limit) for limit in (5, 1))
    with pytest.raises(ValueError, match="segments overlap"):
        with_pixels([one, other], 3, 4)
    with pytest.raises(ValueError, match="segments overlap"):
        overlaps([], [one, other], 3, 4)
