"""Intervals are what measuring the drawn images again would give, and pairs cancel what both share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from semsam.evaluation.average_precision import average_precision
from semsam.evaluation.intervals import Interval, class_intervals, intervals, paired_intervals, resample
from semsam.evaluation.items import ImageItem
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Absent, Contributions, Numbers
from semsam.evaluation.panoptic_quality import panoptic_quality
from semsam.evaluation.semantic_iou import semantic_iou
from semsam.evaluation.values import PromptMeans, Values
from tests.synthetic_items import NAMES, synthetic_items


def mask_ap(items: list[ImageItem]) -> Numbers | Absent:
    return average_precision(items, NAMES, Names.THINGS, Overlap.MASKS)


def quality(items: list[ImageItem]) -> Numbers | Absent:
    return panoptic_quality(items, NAMES)


def semantic(items: list[ImageItem]) -> Numbers | Absent:
    return semantic_iou(items, NAMES)


def means(values: Sequence[float], image: Sequence[int] | None = None, num_images: int | None = None) -> PromptMeans:
    """What images add to a mean; one value each, unless their images are given."""
    of_image = np.arange(len(values)) if image is None else np.array(image, np.int64)
    found = Values.of(np.array(values, np.float64), of_image)
    return PromptMeans(len(values) if num_images is None else num_images, NAMES, {"x": found})


def images_of(result: Numbers | Absent) -> Contributions:
    assert isinstance(result, Numbers)
    return result.images


@pytest.mark.parametrize("measure", [mask_ap, quality, semantic])
def test_a_resample_has_the_numbers_of_its_images_measured_again(measure: object) -> None:
    assert callable(measure)
    items = without_equal_scores(synthetic_items(40, seed=1))
    weights = resample(40, seed=5, num_resamples=4)
    resampled = images_of(measure(items)).resampled(weights)
    for row, counts in enumerate(weights):
        again = measure([items[i] for i in np.repeat(np.arange(40), counts)])
        known = {name: values[row] for name, values in resampled.items() if not np.isnan(values[row])}
        assert known == pytest.approx(dict(again.values), abs=1e-12)


@pytest.mark.parametrize("measure", [mask_ap, quality, semantic])
def test_every_number_lies_in_its_interval(measure: object) -> None:
    assert callable(measure)
    result = measure(synthetic_items(60, seed=1))
    found = intervals(result.images, num_resamples=200)
    assert found.keys() == result.values.keys()
    for name, value in result.values.items():
        assert found[name].low < value < found[name].high


@pytest.mark.parametrize(("measure", "main"), [(mask_ap, "ap"), (quality, "pq"), (semantic, "iou")])
def test_classes_have_intervals_around_their_numbers(measure: object, main: str) -> None:
    assert callable(measure)
    images = measure(synthetic_items(60, seed=1)).images
    table, found = images.per_class(), class_intervals(images, num_resamples=50)
    assert found.keys() == table.keys()
    for label, row in table.items():
        interval = found[label][main]
        assert interval.low <= row[main] + 1e-12
        assert interval.high >= row[main] - 1e-12
    once = images.resampled_classes(np.ones((1, 60), np.int64))
    assert {label: row[main] for label, row in table.items()} == pytest.approx(
        {label: row[main][0] for label, row in once.items()}, abs=1e-12
    )


def test_an_evaluation_does_not_differ_from_itself() -> None:
    images = images_of(mask_ap(synthetic_items(30, seed=1)))
    assert set(paired_intervals(images, images, num_resamples=20).values()) == {Interval(0.0, 0.0)}


def test_a_small_gain_on_every_image_is_sure_in_pairs_alone() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(200)
    before, after = means(values.tolist()), means((values + 0.01 + 0.001 * rng.random(200)).tolist())
    gain = paired_intervals(before, after)["x"]
    assert 0.01 < gain.low < gain.high < 0.011
    assert intervals(before)["x"].high > intervals(after)["x"].low


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, 2000)
    found = intervals(means(values.tolist()))["x"]
    half = 1.96 * values.std() / np.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_means_weigh_images_by_what_they_hold() -> None:
    some = means([1, 1, 1, 0.25, 0.75], image=[0, 0, 0, 2, 2], num_images=3)
    assert some.resampled(np.array([[1, 1, 1], [0, 1, 0]]))["x"] == pytest.approx([0.8, np.nan], nan_ok=True)
    assert some.per_image()["x"] == pytest.approx([1, np.nan, 0.5], nan_ok=True)


def test_a_number_that_no_resample_has_truth_for_has_no_interval() -> None:
    assert intervals(means([], num_images=3)) == {}


def test_draws_depend_on_the_seed_alone() -> None:
    weights = resample(50, seed=3, num_resamples=7)
    np.testing.assert_array_equal(weights, resample(50, seed=3, num_resamples=7))
    assert (weights.sum(1) == 50).all()
    assert (weights != resample(50, seed=4, num_resamples=7)).any()


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        resample(0)
    one, two = (means([0.0] * n) for n in (1, 2))
    with pytest.raises(ValueError, match="evaluations of 1 and 2 images"):
        paired_intervals(one, two)


def without_equal_scores(items: list[ImageItem]) -> list[ImageItem]:
    """With equal scores the order of images matters, and a resample has its images in another one."""
    rng = np.random.default_rng(0)
    return [
        dataclasses.replace(
            item,
            instances=tuple(dataclasses.replace(one, score=float(rng.random())) for one in item.instances or ()),
        )
        for item in items
    ]


@pytest.mark.parametrize(("measure", "main"), [(mask_ap, "ap"), (quality, "pq"), (semantic, "miou")])
def test_some_numbers_alone_are_the_same_as_among_all(measure: object, main: str) -> None:
    assert callable(measure)
    images = measure(synthetic_items(40, seed=1)).images
    weights = resample(40, num_resamples=5)
    alone = images.resampled(weights, (main,))
    assert list(alone) == [main]
    np.testing.assert_array_equal(alone[main], images.resampled(weights)[main])


def test_numbers_come_in_one_order_whatever_is_wanted() -> None:
    """Of a set of names, whose order differs from process to process, stored numbers must not."""
    images = quality(synthetic_items(20, seed=1))
    assert isinstance(images, Numbers)
    found = list(intervals(images.images, num_resamples=2))
    for names in ({"pq", "rq", "sq"}, ("rq", "sq", "pq")):
        some = list(intervals(images.images, num_resamples=2, names=names))
        assert some == [name for name in found if name in names]
