"""The images at either end of a protocol's number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from semsam.data.manifest import Vocabulary
from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.extremes import Extremes, extremes, picture_name
from semsam.evaluation.numbers import Numbers
from semsam.evaluation.protocols import PromptNumbers
from semsam.evaluation.values import PromptMeans, Values

NAMES = Vocabulary(())


def numbers_of(values: Sequence[float], image: Sequence[int], num_images: int, name: str) -> DatasetNumbers:
    """A protocol whose number has these values."""
    protocol, _, number = name.partition("/")
    found = {number: Values.of(np.array(values), np.array(image, np.int64))}
    numbers = Numbers("", {number: 0.0}, lambda: PromptMeans(num_images, NAMES, found))
    return DatasetNumbers(tuple("abcdefgh"[:num_images]), PromptNumbers(NAMES), {protocol: numbers}, {})


def test_the_ends_share_no_image_and_leave_out_those_without_a_number() -> None:
    numbers = numbers_of([0.1, 0.9, 0.5, 0.5], [0, 1, 2, 4], 6, "box_prompt/miou")
    found = Extremes("miou", (("b", 0.9), ("e", 0.5)), (("a", 0.1), ("c", 0.5)))
    assert extremes(numbers) == {"box_prompt": found}
    assert extremes(numbers, shown=1)["box_prompt"] == Extremes("miou", (("b", 0.9),), (("a", 0.1),))


def test_equal_ones_are_in_the_order_of_the_images() -> None:
    found = extremes(numbers_of([1.0] * 5, range(5), 5, "box_prompt/miou"), shown=2)["box_prompt"]
    assert found == Extremes("miou", (("c", 1.0), ("d", 1.0)), (("a", 1.0), ("b", 1.0)))


def test_a_high_error_is_the_worst() -> None:
    found = extremes(numbers_of([0.1, 0.9], [0, 1], 2, "iou_calibration/ece"))["iou_calibration"]
    assert found == Extremes("ece", (("a", 0.1),), (("b", 0.9),))


def test_one_image_is_the_worst_and_none_is_no_end() -> None:
    assert extremes(numbers_of([0.3], [0], 1, "x/y"))["x"] == Extremes("y", (), (("a", 0.3),))
    assert extremes(numbers_of([], [], 2, "x/y"))["x"] == Extremes("y", (), ())


@pytest.mark.parametrize("sample_id", ["7", "train/a b", "../x", "ü&%"])
def test_a_picture_lies_in_its_datasets_folder(sample_id: str) -> None:
    name = picture_name("sa1b", sample_id)
    assert name.startswith("sa1b/")
    assert name.count("/") == 1
