"""The augmented image and the augmented labels show the same things at the same places."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from semsam.data import rle
from semsam.data.atoms import AtomMap
from semsam.data.augmentation import PADDING_GREY, AugmentationSettings, Geometry, random_geometry

quick = hypothesis_settings(max_examples=100)


def geometry(height: int, width: int, scale: float, crop_size: int, flip: float = 0.5, seed: int = 0) -> Geometry:
    settings = AugmentationSettings(crop_size=crop_size, flip_probability=flip)
    return random_geometry(height, width, (scale, scale), settings, np.random.default_rng(seed))


@quick
@given(
    st.integers(1, 250), st.integers(1, 250), st.floats(0.02, 3), st.integers(1, 250), st.booleans(), st.integers(0, 99)
)
def test_image_and_labels_agree_to_half_a_source_pixel(
    height: int, width: int, scale: float, crop_size: int, flip: bool, seed: int
) -> None:
    view = geometry(height, width, scale, crop_size, float(flip), seed)
    # An image whose colours are its own coordinates: what is seen tells where it was looked up.
    y, x = np.mgrid[:height, :width]
    levels = np.array([255 // width, 255 // height])
    image = np.stack([x * levels[0], y * levels[1], 0 * x], axis=2).astype(np.uint8)
    if view.eighths < 8:  # What the decoder does: means of blocks.  Its last, broken pixel is never used.
        image = image.repeat(view.eighths, 0).repeat(view.eighths, 1)
        image = image[: height * view.eighths // 8 * 8, : width * view.eighths // 8 * 8]
        image = cv2.resize(image, (width * view.eighths // 8, height * view.eighths // 8), interpolation=cv2.INTER_AREA)
    seen = view.view(image).astype(float)[:, : view.visible_height, : view.visible_width]
    rows, cols = view.rows()[: view.visible_height], view.cols()[: view.visible_width]
    # Colours are rounded twice, and means of blocks end half a source pixel from where nearest look-up does.
    assert np.abs(seen[0] / levels[0] - cols).max() <= 0.5 + 1.1 / levels[0]
    assert np.abs(seen[1] / levels[1] - rows[:, None]).max() <= 0.5 + 1.1 / levels[1]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("height", "width"), [(97, 160), (160, 97)])
@pytest.mark.parametrize("scale", [0.2, 0.45, 0.99, 1.0, 1.7])
def test_a_drawn_disc_and_its_mask_stay_together(scale: float, height: int, width: int, flip: float) -> None:
    y, x = np.mgrid[:height, :width]
    disc = np.hypot(y - height * 0.5, x - width * 0.55) < 30
    image = np.repeat((disc * np.uint8(255))[..., None], 3, axis=2)
    view = geometry(height, width, scale, 128, flip, seed=3)
    seen = view.view_jpeg(simplejpeg.encode_jpeg(image, 100, colorsubsampling="444"))[0] / 255.0
    seen[view.visible_height :], seen[:, view.visible_width :] = 0, 0
    mask = AtomMap.from_rles([rle.encode(disc)], height, width, view.rows(), view.cols()).mask(0)
    assert mask.any()
    both_y, both_x = np.mgrid[:128, :128]
    for position in (both_y, both_x):
        seen_centre = (seen * position).sum() / seen.sum()
        assert abs(seen_centre - position[mask].mean()) < 0.3
    assert abs(seen.sum() - mask.sum()) < 0.08 * mask.sum()


@quick
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.1, 2.5), st.integers(0, 99))
def test_boxes_go_where_the_labels_go(height: int, width: int, scale: float, seed: int) -> None:
    view = geometry(height, width, scale, 64, seed=seed)
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(0, width), rng.integers(0, height)
    x2, y2 = rng.integers(x1, width) + 1, rng.integers(y1, height) + 1
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = True
    box = view.boxes_xyxy(np.array([[x1, y1, x2, y2]], np.float32))[0]
    seen = AtomMap.from_rles([rle.encode(mask)], height, width, view.rows(), view.cols()).boxes_xyxy()[0]
    if seen.any():
        np.testing.assert_allclose(seen, box, atol=0.51)
    else:  # Nothing of it under any pixel's centre.
        assert min(box[2] - box[0], box[3] - box[1]) <= 1.01
    assert box[0] >= 0
    assert box[2] <= view.visible_width


@quick
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.02, 3), st.integers(1, 200), st.integers(0, 99))
def test_tables_name_source_pixels_then_padding(
    height: int, width: int, scale: float, crop_size: int, seed: int
) -> None:
    view = geometry(height, width, scale, crop_size, seed=seed)
    for table, visible, size in (
        (view.rows(), view.visible_height, height),
        (view.cols(), view.visible_width, width),
    ):
        assert len(table) == crop_size
        assert 1 <= visible <= crop_size
        assert (table[visible:] == -1).all()
        assert table[:visible].min() >= 0
        assert table.max() < size
    assert (np.diff(view.rows()[: view.visible_height]) >= 0).all()


def test_padding_is_grey_and_at_the_bottom_and_right() -> None:
    view = geometry(40, 80, 0.5, 64, flip=1.0)
    crop = view.view(np.zeros((-(-40 * view.eighths // 8), -(-80 * view.eighths // 8), 3), np.uint8))
    assert crop.shape == (3, 64, 64)
    assert (view.visible_height, view.visible_width) == (16, 32)
    assert (crop[:, :16, :32] == 0).all()
    assert (crop[:, 16:] == PADDING_GREY).all()
    assert (crop[:, :, 32:] == PADDING_GREY).all()


def test_a_mirrored_view_is_the_view_mirrored() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 64, 3), dtype=np.uint8)
    plain, mirrored = (geometry(50, 64, 1.0, 64, flip) for flip in (0.0, 1.0))
    np.testing.assert_array_equal(plain.view(image)[:, :50, ::-1], mirrored.view(image)[:, :50])
    np.testing.assert_array_equal(plain.cols()[::-1], mirrored.cols())
    np.testing.assert_array_equal(plain.view(image)[:, :50], image.transpose(2, 0, 1))


def test_scales_and_places_are_drawn_over_their_whole_range() -> None:
    settings = AugmentationSettings(crop_size=100)
    rng = np.random.default_rng(0)
    views = [random_geometry(200, 100, settings.scale_range("coco_panoptic"), settings, rng) for _ in range(400)]
    heights = np.array([view.visible_height for view in views])
    assert heights.min() < 15
    assert (heights == 100).mean() == pytest.approx(1 / 1.9, abs=0.08)
    assert np.mean([view.flip for view in views]) == pytest.approx(0.5, abs=0.08)
    cut = [view for view in views if view.window_height < view.height * view.eighths // 8 - 2]
    tops = np.array([view.top / (view.height * view.eighths // 8 - view.window_height) for view in cut])
    assert tops.min() < 0.1
    assert tops.max() > 0.9


def test_sa1b_keeps_its_size() -> None:
    settings = AugmentationSettings()
    assert settings.scale_range("sa1b") == (0.99, 1.01)
    assert settings.scale_range("ade20k") == (0.1, 2.0)


def test_an_image_of_another_size_is_refused() -> None:
    data = simplejpeg.encode_jpeg(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ValueError, match="20 x 30 pixels, its record says 30 x 20"):
        geometry(30, 20, 1.0, 32).view_jpeg(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_size": 0},
        {"scale_min": 0.0},
        {"scale_min": 3.0},
        {"scales": {"sa1b": (1.0, 0.5)}},
        {"flip_probability": 2.0},
    ],
)
def test_settings_that_contradict_themselves_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        AugmentationSettings(**wrong)
