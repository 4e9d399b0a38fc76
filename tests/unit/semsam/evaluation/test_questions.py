"""Which prompts an image gets, and what is kept of the answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from semsam.data import rle
from semsam.data.schema import Kind, Record, Region
from semsam.evaluation.items import BEST, Ask
from semsam.evaluation.questions import AskedRegions, Questions, best_names, innermost_pixel

HEIGHT, WIDTH = 20, 30


def region(mask: np.ndarray | None, kind: Kind = Kind.INSTANCE, *, is_crowd: bool = False) -> Region:
    counts = None if mask is None else rle.encode(mask)
    return Region("1", counts, (1.0, 2.0, 9.0, 8.0), 1.0, kind, 0, is_crowd=is_crowd)


def record(*regions: Region, sample_id: str = "7") -> Record:
    return Record("paco", "val", sample_id, b"", HEIGHT, WIDTH, HEIGHT, WIDTH, regions)


def square(y1: int, x1: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1 : y1 + side, x1 : x1 + side] = True
    return mask


OUTER, INNER = square(2, 3, 15), square(6, 6, 5)
EMPTY = np.zeros((HEIGHT, WIDTH), bool)


def test_every_region_is_asked_for_by_a_click_on_its_inside_and_by_its_box() -> None:
    some = record(region(OUTER), region(OUTER, is_crowd=True), region(None), region(EMPTY), region(INNER))
    asked = AskedRegions.of(some)
    prompts = asked.prompts(some, Questions(random_clicks=3))
    assert asked.places.tolist() == [0, 2, 3, 4]
    of_kind = {kind: prompts.column[prompts.ask == kind].tolist() for kind in Ask}
    assert of_kind == {Ask.INNERMOST: [0, 3], Ask.RANDOM: [0, 0, 0, 3, 3, 3], Ask.BOX: [0, 1, 2, 3]}
    for column, (x, y) in zip(prompts.column, prompts.click_xy, strict=True):
        assert x == y == -1 or asked.atoms.mask(column)[y, x]
    under = asked.under(prompts.click_xy)
    assert under[prompts.ask == Ask.INNERMOST].tolist() == [[True, False, False, True], [True, False, False, True]]
    assert not under[prompts.ask == Ask.BOX].any()


def test_the_inside_of_a_part_of_the_image_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = np.hypot(*(np.mgrid[:HEIGHT, :WIDTH] - rng.uniform(0, 20, (2, 1, 1)))) < rng.uniform(2, 12)
        if mask.any():
            assert AskedRegions.of(record(region(mask))).innermost_clicks() == {0: innermost_pixel(mask)}


def test_random_clicks_depend_on_the_sample_and_the_seed_alone() -> None:
    def clicks(sample_id: str, seed: int) -> list[list[int]]:
        some = record(region(OUTER), region(INNER), sample_id=sample_id)
        prompts = AskedRegions.of(some).prompts(some, Questions(random_clicks=4, seed=seed))
        found: list[list[int]] = prompts.click_xy[prompts.ask == Ask.RANDOM].tolist()
        return found

    assert clicks("7", 0) == clicks("7", 0)
    assert clicks("7", 0) != clicks("8", 0)
    assert clicks("7", 0) != clicks("7", 1)


@pytest.mark.parametrize("regions", [(), (region(OUTER, is_crowd=True),)])
def test_an_image_without_regions_is_asked_nothing(regions: tuple[Region, ...]) -> None:
    some = record(*regions)
    assert len(AskedRegions.of(some).prompts(some, Questions())) == 0


def test_the_best_names_come_first_and_what_is_missing_last() -> None:
    names, scores = best_names(np.array([[[0.25, 0.5, 0.5]]], np.float32))
    assert names.tolist() == [[[1, 2, 0, -1, -1]]]
    assert scores.tolist() == [[[0.5, 0.5, 0.25, 0, 0]]]
    assert best_names(np.zeros((2, 6, 0), np.float32))[0].shape == (2, 6, BEST)
    assert best_names(np.arange(9, dtype=np.float32).reshape(1, 1, 9))[0].tolist() == [[[8, 7, 6, 5, 4]]]


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
