"""Shapes guessed without seeing an image, against the same shapes drawn pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from semsam.data import rle
from semsam.data.atoms import AtomMap
from semsam.evaluation.blind_shapes import ColumnShapes, RegionRuns, box_fillings, discs

HEIGHT, WIDTH = 30, 40
YS, XS = np.mgrid[:HEIGHT, :WIDTH]


def truth() -> np.ndarray:
    rng = np.random.default_rng(2)
    blobs = [np.hypot(YS - rng.integers(30), XS - rng.integers(40)) < rng.integers(2, 20) for _ in range(5)]
    return np.stack([*blobs, rng.random((HEIGHT, WIDTH)) < 0.5, np.zeros((HEIGHT, WIDTH), bool)])


def runs_of(masks: np.ndarray) -> RegionRuns:
    atoms = AtomMap.from_rles([rle.encode(mask) for mask in masks], HEIGHT, WIDTH)
    return RegionRuns.of(atoms.runs, atoms.table, atoms.areas())


def drawn(shapes: ColumnShapes) -> np.ndarray:
    return (shapes.top[:, None] <= YS) & (shapes.bottom[:, None] > YS)


def ious(shapes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.array([[(s & m).sum() / max((s | m).sum(), 1) for m in masks] for s in shapes])


@pytest.mark.parametrize("click", [(23, 11), (0, 0), (39, 29)])
def test_discs_are_the_pixels_within_a_radius(click: tuple[int, int]) -> None:
    radii = np.array([0.02, 0.1, 0.3, 2.0])
    found = discs(click, radii, HEIGHT, WIDTH)
    expected = [np.hypot(YS - click[1], XS - click[0]) <= radius * np.sqrt(HEIGHT * WIDTH) for radius in radii]
    np.testing.assert_array_equal(drawn(found), expected)
    np.testing.assert_allclose(found.ious(runs_of(truth())), ious(np.array(expected), truth()), atol=1e-12)


@pytest.mark.parametrize("box", [(3, 4, 20, 11), (0, 0, 40, 30), (5.3, 2.2, 9.9, 28.7), (38, 1, 39, 2), (-4, 6, 8, 50)])
def test_a_box_is_filled_by_the_pixels_whose_centres_it_holds(box: tuple[float, float, float, float]) -> None:
    x1, y1, x2, y2 = box
    ys, xs = YS + 0.5, XS + 0.5
    filled = (xs >= x1) & (xs <= x2) & (ys >= y1) & (ys <= y2)
    across, down = (xs - (x1 + x2) / 2) / ((x2 - x1) / 2), (ys - (y1 + y2) / 2) / ((y2 - y1) / 2)
    found = box_fillings(box, HEIGHT, WIDTH)
    np.testing.assert_array_equal(drawn(found), [filled, across**2 + down**2 <= 1])


def test_regions_are_taken_by_number() -> None:
    shapes, runs = discs((20, 15), np.array([0.3]), HEIGHT, WIDTH), runs_of(truth())
    np.testing.assert_array_equal(shapes.ious(runs.take(np.array([4, 0]))), shapes.ious(runs)[:, [4, 0]])
    assert shapes.ious(runs.take(np.zeros(0, int))).shape == (1, 0)
