"""A smaller record is the same scene: image, masks and boxes move together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.prepare.resize import fitted_size, resize
from pipelines.sources.source import Read
from semsam.data import rle
from semsam.data.images import decode_jpeg, encode_jpeg
from semsam.data.schema import Kind, Record, Region


def record(image: np.ndarray, masks: list[np.ndarray]) -> Record:
    height, width = image.shape[:2]
    regions = tuple(
        Region(str(i), counts := rle.encode(m), rle.box_xyxy(counts, height, width), 99.0, Kind.CLASS_AGNOSTIC)
        for i, m in enumerate(masks)
    )
    return Record("sa1b", "train", "1", encode_jpeg(image, 98), height, width, height, width, regions)


def ellipse(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((y - 0.45 * height) / (0.3 * height)) ** 2 + ((x - 0.6 * width) / (0.2 * width)) ** 2 < 1


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((1500, 2250), 1024, (683, 1024)),
        ((2250, 1500), 1024, (1024, 683)),
        ((1024, 700), 1024, (1024, 700)),
        ((1025, 1025), 1024, (1024, 1024)),
        ((1, 3000), 1024, (1, 1024)),
        ((5, 5), 1, (1, 1)),
    ],
)
def test_the_long_side_fits_and_the_other_keeps_its_share(
    size: tuple[int, int], limit: int, expected: tuple[int, int]
) -> None:
    assert fitted_size(*size, limit) == expected


@pytest.mark.parametrize("limit", [100, 200])
def test_a_record_that_fits_keeps_every_byte(limit: int) -> None:
    read = Read(record(np.zeros((60, 100, 3), np.uint8), [ellipse(60, 100)]))
    assert resize(read, limit, 92) is read


@pytest.mark.parametrize(("height", "width", "limit"), [(151, 227, 100), (300, 200, 77), (257, 128, 256)])
def test_masks_lie_on_what_they_mark(height: int, width: int, limit: int) -> None:
    mask = ellipse(height, width)
    original = record(np.where(mask[..., None], np.uint8(230), np.uint8(20)).repeat(3, axis=2), [mask])
    small = resize(Read(original), limit, 98).record
    pixels = decode_jpeg(small.image)
    assert pixels.shape == (small.height, small.width, 3)
    assert max(small.height, small.width) == limit
    seen = pixels[..., 1] > 125
    marked = rle.decode(small.regions[0].rle or b"", small.height, small.width)
    wrong = np.count_nonzero(seen != marked)
    assert wrong < 0.02 * marked.sum()
    # The centres agree far below a pixel: nothing is shifted.
    for axis in (0, 1):
        assert abs(np.nonzero(seen)[axis].mean() - np.nonzero(marked)[axis].mean()) < 0.15


@pytest.mark.parametrize("box", [(0, 0, 300, 200), (299, 199, 300, 200), (17, 33, 170, 101)])
def test_boxes_scale_to_within_a_pixel(box: tuple[int, int, int, int]) -> None:
    x1, y1, x2, y2 = box
    mask = np.zeros((200, 300), bool)
    mask[y1:y2, x1:x2] = True
    original = record(np.zeros((200, 300, 3), np.uint8), [mask])
    boxed = original.regions[0]._replace(rle=None)
    result = resize(Read(replace(original, regions=(original.regions[0], boxed))), 270, 92)
    small = result.record
    expected = np.array([x1, y1, x2, y2]) * 0.9
    np.testing.assert_allclose(small.regions[-1].box_xyxy, expected, rtol=1e-6)
    if len(small.regions) == 2:
        np.testing.assert_allclose(small.regions[0].box_xyxy, expected, atol=1.0)
    else:
        assert x2 - x1 == 1


@pytest.mark.parametrize("kind", Kind)
def test_only_an_instance_keeps_a_box_that_is_not_its_mask_s(kind: Kind) -> None:
    region = record(np.zeros((60, 100, 3), np.uint8), [ellipse(60, 100)]).regions[0]
    x1, y1, x2, y2 = region.box_xyxy
    own = region._replace(kind=kind, box_xyxy=(x1 - 0.5, y1 + 0.25, x2 + 0.5, y2))
    original = record(np.zeros((60, 100, 3), np.uint8), [])
    tight, small = resize(Read(replace(original, regions=(region._replace(kind=kind), own))), 50, 92).record.regions
    assert tight.box_xyxy == rle.box_xyxy(tight.rle or b"", 30, 50)
    assert small.rle == tight.rle
    scaled = tuple(value / 2 for value in own.box_xyxy)
    assert small.box_xyxy == (scaled if kind is Kind.INSTANCE else tight.box_xyxy)


def test_original_size_and_native_area_stay() -> None:
    small = resize(Read(record(np.zeros((60, 100, 3), np.uint8), [ellipse(60, 100)])), 50, 92).record
    assert (small.original_height, small.original_width) == (60, 100)
    assert (small.height, small.width) == (30, 50)
    assert small.regions[0].area == 99.0


def test_a_mask_that_holds_no_pixel_centre_is_dropped_and_counted() -> None:
    columns = np.zeros((2, 60, 100), bool)
    columns[0, :, 0] = columns[1, :, 1] = True  # At half the size one centre falls between the two.
    read = Read(record(np.zeros((60, 100, 3), np.uint8), [*columns, ellipse(60, 100)]))
    result = resize(read, 50, 92)
    assert len(result.record.regions) == 2
    assert [one.reason for one in result.dropped] == ["mask vanished in the resize"]


def test_an_image_without_regions_and_one_of_a_single_row() -> None:
    assert resize(Read(record(np.zeros((60, 100, 3), np.uint8), [])), 50, 92).record.regions == ()
    line = resize(Read(record(np.zeros((1, 100, 3), np.uint8), [np.ones((1, 100), bool)])), 50, 92).record
    assert (line.height, line.width) == (1, 50)
    assert rle.decode(line.regions[0].rle or b"", 1, 50).all()
