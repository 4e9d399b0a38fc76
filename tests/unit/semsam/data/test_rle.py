"""RLE strings: agreement with pycocotools, inverses, and broken bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from pycocotools import mask as coco_mask

from semsam.data import rle

quick = hypothesis_settings(max_examples=80)
masks = st_numpy.arrays(bool, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=24))


def coco_encode(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


@quick
@given(masks)
def test_encoding_gives_the_bytes_of_pycocotools_and_decoding_gives_the_mask_back(mask: np.ndarray) -> None:
    counts = rle.encode(mask)
    assert counts == coco_encode(mask)
    np.testing.assert_array_equal(rle.decode(counts, *mask.shape), mask)
    assert rle.area(counts) == mask.sum()


@quick
@given(st.lists(st.integers(0, 2**40), max_size=30))
def test_any_runs_survive_the_string(runs: list[int]) -> None:
    np.testing.assert_array_equal(rle.decode_counts(rle.encode_counts(np.array(runs, np.int64))), runs)


@quick
@given(st.lists(masks, max_size=5))
def test_decoding_many_masks_is_decoding_each(many: list[np.ndarray]) -> None:
    counts = [rle.encode(mask) for mask in many]
    runs, num_runs = rle.decode_many(counts)
    assert len(num_runs) == len(many)
    pieces = np.split(runs, np.cumsum(num_runs)[:-1]) if many else []
    for piece, one in zip(pieces, counts, strict=True):
        np.testing.assert_array_equal(piece, rle.decode_counts(one))


@quick
@given(masks)
def test_boxes_agree_with_pycocotools(mask: np.ndarray) -> None:
    counts = rle.encode(mask)
    x, y, width, height = coco_mask.toBbox({"size": list(mask.shape), "counts": counts})
    assert rle.box_xyxy(counts, *mask.shape) == (x, y, x + width, y + height)


@quick
@given(masks, st.integers(1, 40), st.integers(1, 40))
def test_resizing_looks_up_the_source_pixel_under_each_centre(
    mask: np.ndarray, new_height: int, new_width: int
) -> None:
    height, width = mask.shape
    rows = np.floor((np.arange(new_height) + 0.5) * height / new_height).astype(int)
    cols = np.floor((np.arange(new_width) + 0.5) * width / new_width).astype(int)
    resized = rle.resize(rle.encode(mask), height, width, new_height, new_width)
    assert resized == rle.encode(mask[rows][:, cols])


def test_large_masks_agree_with_pycocotools() -> None:
    y, x = np.mgrid[:700, :900]
    mask = (np.hypot(y - 300, x - 500) < 250) ^ (np.hypot(y - 200, x - 450) < 60)
    assert rle.encode(mask) == coco_encode(mask)
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), 700, 900), mask)


@pytest.mark.parametrize("value", [False, True])
def test_one_pixel(value: bool) -> None:
    mask = np.array([[value]])
    assert rle.encode(mask) == coco_encode(mask)
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), 1, 1), mask)
    assert rle.box_xyxy(rle.encode(mask), 1, 1) == (0, 0, float(value), float(value))


def test_no_masks_decode_to_nothing() -> None:
    runs, num_runs = rle.decode_many([])
    assert runs.shape == num_runs.shape == (0,)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (rle.encode(np.eye(40, dtype=bool))[:-1], "add up to"),
        (b"T", "truncated"),
        (b"\x00\x01", "alphabet"),
        ("éa".encode(), "alphabet"),
        (rle.encode_counts(np.array([5, -3, 7])), "negative"),
        (b"o" * 20 + b"0", "characters"),
        (b"", "add up to 0"),
        (rle.encode(np.zeros((4, 4), bool)), "add up to 16"),
    ],
)
def test_broken_strings_are_refused(counts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.decode(counts, 40, 40)


def test_one_truncated_mask_among_many_is_refused() -> None:
    good = rle.encode(np.eye(40, dtype=bool))
    with pytest.raises(ValueError, match="truncated"):
        rle.decode_many([good, b"T", good])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
def test_real_segments_agree_with_pycocotools(samples_dir: Path) -> None:
    rows = json.loads((samples_dir / "coco/annotations/instances_val2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in rows["images"]}
    polygons = [row for row in rows["annotations"] if isinstance(row["segmentation"], list)]
    assert polygons
    for row in polygons:
        height, width = sizes[row["image_id"]]
        counts = coco_mask.merge(coco_mask.frPyObjects(row["segmentation"], height, width))["counts"]
        mask = rle.decode(counts, height, width)
        np.testing.assert_array_equal(mask, coco_mask.decode({"size": [height, width], "counts": counts}) > 0)
        assert rle.encode(mask) == counts
