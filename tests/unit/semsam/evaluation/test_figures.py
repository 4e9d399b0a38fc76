"""Figures are the same for the same numbers, readable for few and many names, and drawn only of what there is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pytest

from semsam.evaluation.dataset_numbers import DatasetNumbers, measure_dataset
from semsam.evaluation.figures import _confusion, _png, _reliability, figures_of, most_confused
from semsam.evaluation.items import ImageItem
from tests.synthetic_items import NAMES, synthetic_items, without_prompts

WIDTH, HEIGHT = slice(16, 20), slice(20, 24)  # Of a PNG, in pixels.


def numbers_of(items: Sequence[ImageItem]) -> DatasetNumbers:
    """The numbers of items to which no prompts were put."""
    return measure_dataset([[without_prompts(item) for item in items]], NAMES)


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[WIDTH]), int.from_bytes(png[HEIGHT])


def test_the_same_numbers_give_the_same_bytes_whatever_the_user_likes() -> None:
    items = synthetic_items(20, seed=1)
    figures = figures_of(numbers_of(items))
    assert list(figures) == ["precision_recall"]
    with mpl.rc_context({"figure.dpi": 30, "font.size": 40, "axes.facecolor": "green"}):
        assert figures_of(numbers_of(items)) == figures
        assert mpl.rcParams["font.size"] == 40
    assert figures_of(numbers_of(synthetic_items(20, seed=2))) != figures


def test_of_nothing_there_are_no_figures() -> None:
    assert figures_of(numbers_of([])) == {}


@pytest.mark.parametrize("count", [1, 2, 365])
def test_a_confusion_can_be_read_with_few_and_with_many_names(count: int) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (count, count + 1)) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = _png(_confusion(counts, [f"椅子 $\\frac {i}" * 5 for i in range(count)], "objects"))
    width, height = size(picture)
    assert 300 < width < 2000
    assert 300 < height < 2000


def test_the_most_confused_names_are_shown() -> None:
    counts = np.diag([9, 9, 9, 9, 0])
    counts = np.concatenate([counts, np.zeros((5, 1), int)], axis=1)
    assert most_confused(counts, 24).tolist() == [0, 1, 2, 3]  # The last one never occurs.
    counts[1, 3] = 2
    counts[2, 5] = 1  # Was given no name.
    assert most_confused(counts, 3).tolist() == [1, 2, 3]
    assert most_confused(counts, 2).tolist() == [1, 3]
    assert most_confused(counts, 24).tolist() == [0, 1, 2, 3]
    counts[0, 4] = 5
    assert most_confused(counts, 2).tolist() == [0, 4]


def test_predictions_beyond_1_are_in_the_picture() -> None:
    tenths = {"0.9 to 1.0": {"levels": 3.0, "predicted": 1.4, "true": 0.5}}
    figure = _reliability(tenths, {"ece": 0.9})
    assert figure.axes[0].get_xlim() == (0.0, 1.4)
    assert size(_png(figure))[0] > 300
