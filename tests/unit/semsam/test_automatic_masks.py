"""Masks of everything: the released rules on masks made by hand, and the whole way on a small model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam.automatic_masks import (
    AutomaticMasks,
    AutomaticMaskSettings,
    ImageMasks,
    clean,
    grid_points,
    stability_scores,
    suppress,
    without_small_regions,
)
from semsam.data import rle
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import RELEASED, ImageSize, Predictor

HEIGHT, WIDTH = 48, 64
MODEL = SemanticSam.untrained("debug", seed=0)
# An untrained model is sure of nothing.
EVERYTHING = AutomaticMaskSettings(points_per_side=4, points_per_batch=5, min_iou=-10, min_stability=0, max_overlap=1)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def new_predictor(size: int = 64, **options) -> Predictor:
    predictor = Predictor(MODEL, ImageSize(size, 2 * size), **options)
    predictor.set_vocabulary(["car", "dog"], ["wheel"])
    return predictor


def found_masks(masks: list[np.ndarray], ious: list[float], names: list[str] | None = None) -> ImageMasks:
    count = len(masks)
    rles = tuple(rle.encode(mask) for mask in masks)
    return ImageMasks(
        HEIGHT,
        WIDTH,
        rles,
        np.array([rle.box_xyxy(counts, HEIGHT, WIDTH) for counts in rles]).reshape(-1, 4),
        np.array([mask.sum() for mask in masks], np.int64),
        np.array(ious),
        np.ones(count),
        np.zeros((count, 2)),
        np.arange(count),
        tuple(names or [None] * count),
        np.ones(count),
        ("wheel",) * count,
        np.full(count, 0.4),
    )


def rectangle(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_the_grid_has_the_centres_of_its_cells() -> None:
    assert grid_points(2, 100, 60).tolist() == [[15, 25], [45, 25], [15, 75], [45, 75]]
    assert grid_points(1, 1, 1).tolist() == [[0.5, 0.5]]
    assert len(grid_points(32, 640, 960)) == 1024


def test_stability_is_the_share_that_stays_when_the_threshold_moves() -> None:
    logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[2.0, 2.0, -2.0, -2.0]], [[-3.0] * 4], [[-0.5] * 4]])
    torch.testing.assert_close(stability_scores(logits, 1.0), torch.tensor([1 / 3, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(stability_scores(logits, 0.0), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert stability_scores(logits[:0], 1.0).shape == (0,)


def test_a_better_mask_suppresses_those_with_its_box() -> None:
    nearly = rectangle(10, 10, 30, 29)
    masks = [rectangle(10, 10, 30, 30), nearly, rectangle(40, 0, 50, 10)]
    settings = AutomaticMaskSettings()
    assert suppress(found_masks(masks, [0.9, 0.95, 0.89]), settings).levels.tolist() == [1, 2]
    strict = replace(settings, max_overlap=0.97)
    assert suppress(found_masks(masks, [0.9, 0.95, 0.89]), strict).levels.tolist() == [1, 0, 2]
    assert len(suppress(found_masks([], []), settings)) == 0


def test_boxes_compete_up_to_their_last_pixel() -> None:
    # 9 x 9 of 10 x 9 pixels is 0.90 by edges, but 8 x 8 of 9 x 8 is 0.89 by pixels, as the release counts.
    masks = [rectangle(0, 0, 10, 9), rectangle(0, 0, 9, 9)]
    assert len(suppress(found_masks(masks, [0.9, 0.8]), AutomaticMaskSettings(max_overlap=0.89))) == 2
    assert len(suppress(found_masks(masks, [0.9, 0.8]), AutomaticMaskSettings(max_overlap=0.88))) == 1


def test_masks_with_different_names_compete_only_where_names_do_not_count() -> None:
    masks = [rectangle(10, 10, 30, 30)] * 3
    found = found_masks(masks, [0.9, 0.95, 0.92], ["car", "dog", "dog"])
    assert suppress(found, AutomaticMaskSettings()).levels.tolist() == [1]
    assert suppress(found, AutomaticMaskSettings(class_aware=True)).levels.tolist() == [1, 0]
    wheel_of_a_dog = replace(found, part_scores=np.array([0.4, 0.4, 0.6]))
    assert suppress(wheel_of_a_dog, AutomaticMaskSettings(class_aware=True)).levels.tolist() == [1, 2, 0]


def test_small_holes_are_filled_and_small_islands_removed() -> None:
    solid = rectangle(10, 10, 30, 30)
    spoiled = solid.copy()
    spoiled[15:18, 15:18] = False  # A hole of nine pixels,
    spoiled[40, 2:11] = True  # and an island of nine,
    spoiled[0, 0:5], spoiled[1, 5:9] = True, True  # and one that holds together over a corner.
    mended, changed = without_small_regions(spoiled, 10)
    assert changed
    np.testing.assert_array_equal(mended, solid)
    kept, changed = without_small_regions(spoiled, 9)
    assert not changed
    np.testing.assert_array_equal(kept, spoiled)


def test_of_small_islands_alone_the_largest_stays() -> None:
    specks = rectangle(1, 1, 2, 2) | rectangle(5, 5, 7, 7) | rectangle(20, 20, 22, 21)
    mended, changed = without_small_regions(specks, 10)
    assert changed
    np.testing.assert_array_equal(mended, rectangle(5, 5, 7, 7))
    mended, changed = without_small_regions(rectangle(5, 5, 7, 7), 10)
    assert not changed
    assert mended.sum() == 4


@pytest.mark.parametrize("seed", range(6))
def test_cleaning_near_a_mask_is_cleaning_the_whole_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(0, 40, 2) * [1, 0.6]
    masks = [
        rectangle(int(x1), int(y1), int(x1) + 20, int(y1) + 18) & (rng.random((HEIGHT, WIDTH)) < share)
        for share in (0.6, 0.2)
    ]
    masks += [~masks[0], rectangle(0, 0, WIDTH, HEIGHT) & ~rectangle(63, 47, 64, 48), rectangle(30, 30, 31, 31)]
    settings = AutomaticMaskSettings(max_overlap=1, min_region_area=6)
    cleaned = clean(found_masks(masks, [0.9] * 5), settings)
    expected = [without_small_regions(mask, 6)[0] for mask in masks]
    assert sorted(cleaned.levels) == list(range(5))
    for mask, level, area in zip(cleaned.masks(), cleaned.levels, cleaned.areas, strict=True):
        np.testing.assert_array_equal(mask, expected[level])
        assert area == expected[level].sum()


def test_a_mended_mask_gives_way_to_an_untouched_one() -> None:
    spoiled = rectangle(10, 10, 30, 30) | rectangle(50, 40, 52, 42)
    found = found_masks([spoiled, rectangle(10, 10, 30, 29)], [0.95, 0.9])
    assert suppress(found, AutomaticMaskSettings()).levels.tolist() == [0, 1]  # The island makes its box large.
    assert clean(found, AutomaticMaskSettings()).levels.tolist() == [1]
    assert clean(found_masks([], []), AutomaticMaskSettings()).masks().shape == (0, HEIGHT, WIDTH)


def test_every_click_and_level_is_there_when_nothing_is_filtered(image: np.ndarray) -> None:
    settings = replace(EVERYTHING, min_region_area=0)
    predictor = new_predictor()
    found = AutomaticMasks(predictor, settings).of_image(image)
    predictor.set_image(image)
    answer = predictor.predict(grid_points(4, HEIGHT, WIDTH))
    expected = {
        (*point, level): mask
        for point, masks in zip(grid_points(4, HEIGHT, WIDTH).tolist(), answer.masks, strict=True)
        for level, mask in enumerate(masks)
        if mask.any()
    }
    dense = found.masks()
    order = [(*point, level) for point, level in zip(found.points_xy.tolist(), found.levels.tolist(), strict=True)]
    assert len(order) == len(expected) > 60
    assert all((mask != expected[key]).sum() <= 1 for mask, key in zip(dense, order, strict=True))
    np.testing.assert_array_equal(found.areas, dense.sum(axis=(1, 2)))
    assert (np.diff(found.iou_predictions) <= 0).all()
    points = grid_points(4, HEIGHT, WIDTH).tolist()
    for i in range(0, len(found), 7):
        name, score = answer.best_object(points.index(found.points_xy[i].tolist()), found.levels[i]) or ("", 0.0)
        assert found.object_names[i] == name
        assert found.object_scores[i] == pytest.approx(score, abs=1e-5)
        assert found.part_names[i] == "wheel"


def test_the_batch_of_clicks_changes_nothing(image: np.ndarray) -> None:
    settings = replace(EVERYTHING, max_overlap=0.7)
    found = AutomaticMasks(new_predictor(), settings).of_image(image)
    for batch in (1, 16):
        again = AutomaticMasks(new_predictor(), replace(settings, points_per_batch=batch)).of_image(image)
        assert again.levels.tolist() == found.levels.tolist()
        np.testing.assert_allclose(again.iou_predictions, found.iou_predictions, atol=1e-5)
        assert (again.masks() != found.masks()).mean() < 1e-4


def test_filters_keep_what_is_above_them(image: np.ndarray) -> None:
    every = AutomaticMasks(new_predictor(), replace(EVERYTHING, min_region_area=0)).of_image(image)
    bounds = {
        "min_iou": float(np.median(every.iou_predictions)),
        "min_stability": float(np.median(every.stability_scores)),
    }
    settings = replace(EVERYTHING, min_region_area=0, **bounds)
    found = AutomaticMasks(new_predictor(), settings).of_image(image)
    kept = (every.iou_predictions > settings.min_iou) & (every.stability_scores >= settings.min_stability)
    assert 0 < len(found) == kept.sum() < len(every)
    nothing = AutomaticMasks(new_predictor(), AutomaticMaskSettings(points_per_side=2, min_iou=100)).of_image(image)
    assert len(nothing) == 0
    assert nothing.masks().shape == (0, HEIGHT, WIDTH)


def test_levels_are_chosen(image: np.ndarray) -> None:
    found = AutomaticMasks(new_predictor(), replace(EVERYTHING, levels=(5, 2))).of_image(image)
    assert set(found.levels) == {2, 5}
    with pytest.raises(ValueError, match=r"levels \[9\]"):
        AutomaticMasks(new_predictor(), replace(EVERYTHING, levels=(9,)))


def test_without_a_vocabulary_masks_have_no_names(image: np.ndarray) -> None:
    found = AutomaticMasks(Predictor(MODEL, ImageSize(64, 128)), EVERYTHING).of_image(image)
    assert set(found.object_names) == set(found.part_names) == {None}
    assert found.object_scores.sum() == 0
    assert len(found) > 0


def test_several_images_are_answered_one_by_one(image: np.ndarray) -> None:
    other = np.zeros((20, 90, 3), np.uint8)
    photos = [image, other, image[:, ::-1].copy(), image]
    settings = replace(EVERYTHING, points_per_side=2, images_at_once=3)
    found = list(AutomaticMasks(new_predictor(), settings).of_images(iter(photos)))
    assert [(one.height, one.width) for one in found] == [(HEIGHT, WIDTH), (20, 90), (HEIGHT, WIDTH), (HEIGHT, WIDTH)]
    alone = AutomaticMasks(new_predictor(), settings).of_image(other)
    assert alone.levels.tolist() == found[1].levels.tolist()
    np.testing.assert_allclose(found[3].iou_predictions, found[0].iou_predictions, atol=1e-5)
    assert list(AutomaticMasks(new_predictor(), settings).of_images([])) == []


def test_masks_have_the_photos_own_size_and_stability_that_of_the_networks_input(image: np.ndarray) -> None:
    large = np.repeat(np.repeat(image, 3, axis=0), 3, axis=1)
    settings = replace(EVERYTHING, points_per_side=2, max_overlap=1.0, min_region_area=0)
    found = AutomaticMasks(new_predictor(HEIGHT), settings).of_image(large)
    same = AutomaticMasks(new_predictor(HEIGHT), settings).of_image(image)
    assert found.masks().shape[1:] == (3 * HEIGHT, 3 * WIDTH)
    np.testing.assert_allclose(found.stability_scores, same.stability_scores, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (2000, 3)])
def test_extreme_shapes_have_masks(shape: tuple[int, int]) -> None:
    settings = replace(EVERYTHING, points_per_side=2)
    found = AutomaticMasks(new_predictor(), settings).of_image(np.full((*shape, 3), 90, np.uint8))
    assert (found.areas > 0).all()
    assert np.isfinite(found.stability_scores).all()
    assert (found.boxes_xyxy[:, 2:] <= shape[::-1]).all()


def test_clicks_of_the_released_style_see_their_batch(image: np.ndarray) -> None:
    one = AutomaticMasks(new_predictor(prompt_style=RELEASED), EVERYTHING).of_image(image)
    other = AutomaticMasks(new_predictor(prompt_style=RELEASED), replace(EVERYTHING, points_per_batch=16)).of_image(
        image
    )
    assert np.abs(one.iou_predictions[:10] - other.iou_predictions[:10]).max() > 1e-4


@pytest.mark.parametrize(
    "values", [{"points_per_side": 0}, {"points_per_batch": 0}, {"max_overlap": 2}, {"min_region_area": -1}]
)
def test_settings_without_sense_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        AutomaticMaskSettings(**values)  # type: ignore[arg-type]
