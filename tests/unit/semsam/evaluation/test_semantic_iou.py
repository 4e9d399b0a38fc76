"""Semantic IoU is that of a confusion matrix counted pixel by pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from jaxtyping import Int64

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind
from semsam.evaluation.items import ImageItem, NamedMask
from semsam.evaluation.numbers import Absent, Numbers
from semsam.evaluation.semantic_iou import semantic_iou
from tests.synthetic_items import NAMES, synthetic_items


def confusion(item: ImageItem, num_names: int) -> Int64[np.ndarray, "names names_plus_1"]:
    """Labelled pixels by true name and answered name; the last column has no answer."""
    size = item.height, item.width
    true, found = np.full(size, -1), np.full(size, num_names)
    for region in item.regions:
        if region.kind is Kind.PANOPTIC:
            true[rle.decode(region.rle or b"", *size)] = region.object_category
    for answer in item.semantic or ():
        found[rle.decode(answer.rle, *size)] = answer.object_category
    matrix = np.zeros((num_names, num_names + 1), np.int64)
    np.add.at(matrix, (true[true >= 0], found[true >= 0]), 1)
    return matrix


def slow_numbers(items: list[ImageItem], num_names: int) -> dict[str, float]:
    matrix = sum(confusion(item, num_names) for item in items)
    assert isinstance(matrix, np.ndarray)
    ious, accuracies, shares = [], [], []
    for name in range(num_names):
        true, both = matrix[name].sum(), matrix[name, name]
        if true:
            ious.append(both / (true + matrix[:, name].sum() - both))
            accuracies.append(both / true)
            shares.append(true / matrix.sum())
    return {
        "miou": float(np.mean(ious)),
        "frequency_weighted_iou": float(np.dot(ious, shares)),
        "mean_accuracy": float(np.mean(accuracies)),
        "pixel_accuracy": float(np.trace(matrix[:, :num_names]) / matrix.sum()),
    }


def numbers(items: list[ImageItem], names: Vocabulary = NAMES) -> Numbers:
    result = semantic_iou(items, names)
    assert isinstance(result, Numbers), result
    return result


@pytest.mark.parametrize(("count", "seed"), [(60, 1), pytest.param(600, 7, marks=pytest.mark.slow)])
def test_numbers_are_those_of_a_confusion_matrix(count: int, seed: int) -> None:
    items = synthetic_items(count, seed)
    assert numbers(items).values == pytest.approx(slow_numbers(items, len(NAMES.objects)), abs=1e-12)


@pytest.mark.slow
@pytest.mark.samples
def test_numbers_of_photos_are_those_of_a_confusion_matrix(
    photo_items: list[ImageItem], photo_names: Vocabulary
) -> None:
    expected = slow_numbers(photo_items, len(photo_names.objects))
    assert numbers(photo_items, photo_names).values == pytest.approx(expected, abs=1e-12)


def test_images_classes_and_choices_speak_of_the_same_sums() -> None:
    items = synthetic_items(30, seed=1)
    whole = numbers(items)
    table = whole.images.per_class()
    assert np.nanmean([row["iou"] for row in table.values()]) == pytest.approx(whole.values["miou"], abs=1e-12)
    weights = np.repeat([[0, 1]], 15, 1).reshape(1, -1)
    chosen = {name: value[0] for name, value in whole.images.resampled(weights).items()}
    assert chosen == pytest.approx(dict(numbers(items[15:]).values), abs=1e-12)
    of_image = whole.images.per_image()["miou"]
    expected = slow_numbers(items[5:6], len(NAMES.objects))["miou"]
    assert of_image[5] == pytest.approx(expected, abs=1e-12)


def test_a_name_of_answers_alone_is_no_class_of_the_mean() -> None:
    mask = rle.encode(np.ones((4, 5), bool))
    item = dataclasses.replace(one_label(mask), semantic=(NamedMask(mask, (0.0, 0.0, 5.0, 4.0), 1, None, 1.0),))
    assert numbers([item]).values["miou"] == 0
    assert set(numbers([item]).images.per_class()) == {"dog"}


def test_a_labelled_pixel_without_answer_is_a_miss() -> None:
    whole = rle.encode(np.ones((4, 5), bool))
    half = rle.encode(np.arange(20).reshape(4, 5) < 10)
    item = dataclasses.replace(one_label(whole), semantic=(NamedMask(half, (0.0, 0.0, 5.0, 2.0), 0, None, 1.0),))
    assert numbers([item]).values["miou"] == 0.5
    assert numbers([dataclasses.replace(item, semantic=())]).values["miou"] == 0


def test_what_cannot_be_measured_says_so() -> None:
    item = one_label(rle.encode(np.ones((4, 5), bool)))
    assert semantic_iou([item], NAMES) == Absent("1 of 1 images have no semantic answers, the first of them photo")
    answered = dataclasses.replace(item, semantic=(), regions=())
    assert isinstance(semantic_iou([answered], NAMES), Absent)
    mask = NamedMask(rle.encode(np.ones((4, 5), bool)), (0.0, 0.0, 5.0, 4.0), 0, None, 1.0)
    with pytest.raises(ValueError, match="photo: segments overlap"):
        semantic_iou([dataclasses.replace(item, semantic=(mask, mask))], NAMES)
    with pytest.raises(ValueError, match="photo: a semantic mask has name 9, of 7 names"):
        semantic_iou([dataclasses.replace(item, semantic=(dataclasses.replace(mask, object_category=9),))], NAMES)
    with pytest.raises(ValueError, match="no images"):
        semantic_iou([], NAMES)


def one_label(mask: bytes) -> ImageItem:
    item = synthetic_items(2, seed=1)[1]
    region = item.regions[0]._replace(kind=Kind.PANOPTIC, object_category=0, rle=mask)
    return dataclasses.replace(item, sample_id="photo", height=4, width=5, regions=(region,), semantic=None)
