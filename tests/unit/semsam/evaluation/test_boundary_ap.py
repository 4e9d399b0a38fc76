"""Boundary AP is that of a slow version: outlines by erosion of dense masks, matched by pycocotools."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from typing import Any

import cv2
import numpy as np
import pytest
from jaxtyping import Bool
from pycocotools.cocoeval import COCOeval

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.evaluation.boundary_ap import boundary_average_precision
from semsam.evaluation.items import ImageItem
from semsam.evaluation.matches import Matches
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Absent, Numbers
from tests.synthetic_items import NAMES, federated, synthetic_items
from tests.unit.semsam.evaluation.test_average_precision import NUMBERS, pycocotools_evaluation


class SlowBoundaryEvaluation(COCOeval):  # type: ignore[misc]
    """COCOeval whose IoU is the lower of that of masks and that of outlines; a crowd has no outline."""

    def computeIoU(self, image: int, category: int) -> Any:  # noqa: N802
        masks = super().computeIoU(image, category)
        if not len(masks):
            return masks
        answers = self._dts[image, category]
        order = np.argsort([-answer["score"] for answer in answers], kind="mergesort")
        of_answers = [outline(answers[i]["segmentation"]) for i in order[: self.params.maxDets[-1]]]
        of_truth = [outline(one["segmentation"]) for one in self._gts[image, category]]
        outlines = np.zeros((len(of_answers), len(of_truth)))
        for d, found in enumerate(of_answers):
            for g, true in enumerate(of_truth):
                is_crowd = self._gts[image, category][g]["iscrowd"]
                outlines[d, g] = 1 if is_crowd else (found & true).sum() / (found | true).sum()
        return np.minimum(masks, outlines)


def outline(mask: dict[str, Any]) -> Bool[np.ndarray, "h w"]:
    """What lies within 2% of the diagonal from the mask's edge; the image's border is one too."""
    dense = rle.decode(mask["counts"], *mask["size"]).astype(np.uint8)
    width = max(round(0.02 * float(np.hypot(*dense.shape))), 1)
    padded = cv2.copyMakeBorder(dense, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return (dense - inner).astype(bool)


def slow_numbers(items: list[ImageItem], names: Names, vocabulary: Vocabulary = NAMES) -> dict[str, float]:
    plain = pycocotools_evaluation(items, names, Overlap.MASKS, vocabulary)
    evaluation = SlowBoundaryEvaluation(plain.cocoGt, plain.cocoDt, "segm")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: value for name, value in zip(NUMBERS, evaluation.stats, strict=True) if value > -1}


def check(items: list[ImageItem], names: Names, vocabulary: Vocabulary = NAMES) -> None:
    result = boundary_average_precision(items, vocabulary, names)
    assert isinstance(result, Numbers)
    expected = slow_numbers(items, names, vocabulary)
    assert dict(result.values) == pytest.approx(expected, abs=1e-12)
    assert isinstance(result.images, Matches)
    assert result.images.values() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("count", "seed"), [(60, 1), pytest.param(500, 7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("names", [Names.THINGS, Names.OBJECT_PARTS])
def test_numbers_are_those_of_the_slow_version(count: int, seed: int, names: Names) -> None:
    check(synthetic_items(count, seed), names)


@pytest.mark.slow
@pytest.mark.samples
def test_numbers_of_photos_are_those_of_the_slow_version(photo_items: list[ImageItem], photo_names: Vocabulary) -> None:
    check(photo_items, Names.THINGS, photo_names)


def test_what_cannot_be_measured_says_so() -> None:
    items = synthetic_items(9, seed=1)
    assert isinstance(boundary_average_precision(federated(items, 0), NAMES), Absent)
    assert isinstance(
        boundary_average_precision([dataclasses.replace(one, regions=()) for one in items], NAMES), Absent
    )
    assert isinstance(boundary_average_precision([dataclasses.replace(items[0], instances=None)], NAMES), Absent)
    with pytest.raises(ValueError, match="no images"):
        boundary_average_precision([], NAMES)


def test_no_answers_at_all_is_zero() -> None:
    items = [dataclasses.replace(one, instances=()) for one in synthetic_items(9, seed=1)]
    result = boundary_average_precision(items, NAMES)
    assert isinstance(result, Numbers)
    assert set(result.values.values()) == {0.0}
