"""All masks of an image at once give what one at a time gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.prepare.many_masks import boxes_xyxy, resize
from semsam.data import rle

MASKS = st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays.arrays(bool, shape)
)


@given(masks=MASKS)
@settings(max_examples=100)
def test_boxes_are_those_of_each_mask(masks: np.ndarray) -> None:
    height, width = masks.shape[1:]
    counts = [rle.encode(mask) for mask in masks]
    expected = [rle.box_xyxy(one, height, width) for one in counts]
    np.testing.assert_array_equal(boxes_xyxy(counts, height, width), np.array(expected).reshape(-1, 4))


@given(masks=MASKS, data=st.data())
@settings(max_examples=100)
def test_smaller_masks_are_those_of_each_mask(masks: np.ndarray, data: st.DataObject) -> None:
    height, width = masks.shape[1:]
    smaller = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    counts, boxes = resize([rle.encode(mask) for mask in masks], height, width, *smaller)
    expected = [mask[np.ix_(rle.nearest(height, smaller[0]), rle.nearest(width, smaller[1]))] for mask in masks]
    assert counts == [rle.encode(mask) for mask in expected]
    np.testing.assert_array_equal(boxes, boxes_xyxy(counts, *smaller))


def test_one_mask_of_another_size_among_many_is_an_error() -> None:
    good, bad = rle.encode(np.ones((3, 4), bool)), rle.encode(np.ones((3, 5), bool))
    with pytest.raises(ValueError, match="add up to 15 pixels"):
        boxes_xyxy([good, bad, good], 3, 4)
