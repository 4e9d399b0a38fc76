import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from semsam.evaluation.box_prompt import BoxPrompt
from semsam.evaluation.clicked_classes import ClickedClasses
from semsam.evaluation.granularity import Granularity
from semsam.evaluation.metric import Means
from semsam.evaluation.one_click import OneClick, innermost_pixel


def test_a_mean_of_nothing_is_absent() -> None:
    assert Means().compute() == {}


def test_merged_halves_equal_the_whole() -> None:
    rng = np.random.default_rng(0)
    whole, halves = OneClick(), [OneClick(), OneClick()]
    for i in range(20):
        ious, predicted = rng.random(6), rng.random(6)
        whole.update(ious, predicted)
        halves[i % 2].update(ious, predicted)
    halves[0].merge(Means.from_sums(halves[1].sums))
    assert halves[0].compute() == pytest.approx(whole.compute())
    assert halves[0].count("miou_max") == 20


def test_max_takes_the_level_that_predicts_most_and_oracle_the_best() -> None:
    metric = OneClick()
    metric.update(np.array([0.2, 0.9, 0.5]), np.array([0.1, 0.3, 0.8]))
    assert metric.compute() == {"miou_max": 0.5, "miou_oracle": 0.9}


def test_box_prompts_without_masks_measure_the_name_alone() -> None:
    metric = BoxPrompt()
    metric.update(None, np.array([0.1, 0.8]), np.array([[1.0, 0.0], [0.0, 1.0]]), 1)
    assert metric.compute() == {"object_top1": 1.0}


def test_granularity_gives_each_truth_its_own_level() -> None:
    metric = Granularity()
    metric.update(np.array([[0.9, 0.8], [0.85, 0.1]]))
    assert metric.compute()["miou_all"] == pytest.approx((0.85 + 0.8) / 2)


def test_granularity_counts_a_truth_without_a_level_as_zero() -> None:
    metric = Granularity()
    metric.update(np.array([[1.0, 1.0, 1.0]]))
    assert metric.compute()["miou_all"] == pytest.approx(1 / 3)


def test_classes_are_read_from_the_level_that_fits_best() -> None:
    metric = ClickedClasses()
    metric.update(np.array([0.1, 0.9]), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.3], [0.2]]), 1, None)
    assert metric.compute() == {"object_top1": 1.0}
    metric.update(np.array([0.9, 0.1]), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.3], [0.2]]), 1, 0)
    assert metric.compute() == {"object_top1": 0.5, "part_top1": 1.0}


def test_the_innermost_pixel_of_a_full_image_is_its_middle() -> None:
    assert innermost_pixel(np.ones((5, 9), bool)) == (2, 2)  # The first of (2..6, 2).


def test_of_equally_inner_pixels_the_first_counts() -> None:
    random, (ys, xs) = np.random.default_rng(0), np.mgrid[:48, :61]
    for _ in range(200):
        y, x, radius, flatness = random.uniform((16, 22, 6, 0.5), (32, 38, 19, 2))
        blob = (ys - y) ** 2 * flatness + (xs - x) ** 2 < radius**2
        # Symmetric, and so full of ties: distances computed in float32 break them by their last bits.
        mask = (blob | blob[::-1] | blob[:, ::-1] | blob[::-1, ::-1]) & ((ys - 24) ** 2 + (xs - 30) ** 2 > 9)
        squared = np.rint(distance_transform_edt(np.pad(mask, 1)) ** 2)[1:-1, 1:-1]
        y, x = np.unravel_index(squared.argmax(), squared.shape)
        assert innermost_pixel(mask) == (x, y)


def test_the_innermost_pixel_is_inside_a_ring() -> None:
    yy, xx = np.mgrid[:41, :41]
    radius = np.hypot(yy - 20, xx - 20)
    ring = (radius > 10) & (radius < 18)
    x, y = innermost_pixel(ring)
    assert ring[y, x]
    assert abs(radius[y, x] - 14) < 1.5


def test_a_single_pixel_on_the_border_is_its_own_click() -> None:
    mask = np.zeros((4, 6), bool)
    mask[3, 5] = True
    assert innermost_pixel(mask) == (5, 3)


def test_an_empty_mask_has_no_click() -> None:
    with pytest.raises(ValueError, match="empty mask"):
        innermost_pixel(np.zeros((3, 3), bool))
