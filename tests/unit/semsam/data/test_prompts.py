"""Prompts: what is asked, and which regions answer."""

from __future__ import annotations

import numpy as np
import pytest

from semsam.data import rle
from semsam.data.atoms import AtomMap
from semsam.data.prompts import PromptSettings, click_boxes_cxcywh, make_prompts, no_prompts
from semsam.data.sample import Prompts, Regions

SIZE = 32


def regions_of(masks: np.ndarray, has_mask: np.ndarray | None = None) -> tuple[AtomMap, Regions]:
    has_mask = np.ones(len(masks), bool) if has_mask is None else has_mask
    rles = [rle.encode(mask) for mask in masks]
    boxes = np.array([rle.box_xyxy(one, *masks.shape[1:]) for one in rles], np.float32).reshape(-1, 4) / SIZE
    none = np.full(len(masks), -1, np.int32)
    regions = Regions(
        boxes_cxcywh=np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1),
        has_mask=has_mask,
        object_category=none,
        part_category=none,
        parent=none,
        is_thing=np.ones(len(masks), bool),
    )
    masked = [one if has else None for one, has in zip(rles, has_mask, strict=True)]
    return AtomMap.from_rles(masked, SIZE, SIZE), regions


def nested(num: int) -> np.ndarray:
    """Squares inside each other; the pixels at the centre are in all of them."""
    masks = np.zeros((num, SIZE, SIZE), bool)
    for j in range(num):
        masks[j, j : SIZE - j, j : SIZE - j] = True
    return masks


def prompts_for(masks: np.ndarray, seed: int = 0, has_mask: np.ndarray | None = None, **options) -> Prompts:
    atoms, regions = regions_of(masks, has_mask)
    return make_prompts(atoms, regions, np.random.default_rng(seed), PromptSettings(**options), SIZE, SIZE)


def clicked_pixels(prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the clicks, read back from their boxes."""
    pixels = prompts.boxes_cxcywh[~prompts.is_box, :2] * SIZE
    np.testing.assert_array_equal(pixels, pixels.round())
    return pixels[:, 1].astype(int), pixels[:, 0].astype(int)


def test_targets_of_a_click_are_the_masks_under_it_in_order() -> None:
    masks = nested(5)
    prompts = prompts_for(masks, num_prompts=60, box_share=0.0)
    assert not prompts.is_box.any()
    assert prompts.valid.all()
    for y, x, targets in zip(*clicked_pixels(prompts), prompts.targets, strict=True):
        expected = np.flatnonzero(masks[:, y, x]).tolist()
        assert targets.tolist() == expected + [-1] * (6 - len(expected))


def test_of_too_many_masks_under_a_click_a_random_choice_is_kept() -> None:
    masks = np.repeat(nested(1), 10, axis=0)
    prompts = prompts_for(masks, num_prompts=600, box_share=0.0)
    assert all(len(set(targets)) == 6 and min(targets) >= 0 for targets in prompts.targets.tolist())
    times = np.bincount(prompts.targets.reshape(-1), minlength=10)
    np.testing.assert_allclose(times / 600, 0.6, atol=0.08)


def test_what_was_asked_for_is_known_even_where_it_is_not_among_the_targets() -> None:
    masks = np.concatenate([nested(4), np.repeat(nested(1), 6, axis=0)])
    prompts = prompts_for(masks, num_prompts=200)
    assert (prompts.targets[prompts.is_box, 0] == prompts.asked[prompts.is_box]).all()
    for y, x, asked in zip(*clicked_pixels(prompts), prompts.asked[~prompts.is_box], strict=True):
        assert masks[asked, y, x]
    assert not (prompts.targets == prompts.asked[:, None]).any(1).all()
    assert set(np.bincount(prompts.asked, minlength=10)) == {20}


@pytest.mark.parametrize("num_levels", [1, 3, 6])
def test_exactly_as_many_masks_as_levels_are_all_kept(num_levels: int) -> None:
    prompts = prompts_for(np.repeat(nested(1), num_levels, axis=0), num_levels=num_levels, box_share=0.0)
    assert prompts.targets.tolist() == [list(range(num_levels))] * 60


@pytest.mark.parametrize(("num_regions", "times"), [(1, {60}), (7, {8, 9}), (60, {1})])
def test_every_region_is_asked_for_equally_often(num_regions: int, times: set[int]) -> None:
    prompts = prompts_for(nested(num_regions) if num_regions < 16 else stripes(num_regions), box_share=1.0)
    assert prompts.is_box.all()
    assert set(np.bincount(prompts.targets[:, 0], minlength=num_regions).tolist()) == times
    assert (prompts.targets[:, 1:] == -1).all()


def stripes(num: int) -> np.ndarray:
    masks = np.zeros((num, SIZE, SIZE), bool)
    for j in range(num):
        masks[j, j % SIZE, : SIZE // 2 if j < SIZE else SIZE] = True
    return masks


def test_of_more_regions_than_prompts_a_random_choice_is_asked_for() -> None:
    asked = [set(prompts_for(stripes(60), seed, num_prompts=10, box_share=1.0).targets[:, 0]) for seed in range(15)]
    assert all(len(some) == 10 for some in asked)
    assert len(set.union(*asked)) > 50


def test_clicks_are_uniform_over_the_mask() -> None:
    mask = np.zeros((1, SIZE, SIZE), bool)
    mask[0, 3:7, 20:32], mask[0, 25, :] = True, True
    ys, xs = clicked_pixels(prompts_for(mask, num_prompts=8000, box_share=0.0))
    counts = np.zeros((SIZE, SIZE))
    np.add.at(counts, (ys, xs), 1)
    assert counts[~mask[0]].sum() == 0
    expected = 8000 / mask.sum()
    chi_square = ((counts[mask[0]] - expected) ** 2 / expected).sum() / (mask.sum() - 1)
    assert 0.7 < chi_square < 1.35


def test_a_click_is_a_box_of_three_pixels_to_each_side() -> None:
    boxes = click_boxes_cxcywh(np.array([0, 10]), np.array([0, 31]), 20, 40)
    np.testing.assert_allclose(boxes, [[0, 0, 6 / 40, 6 / 20], [31 / 40, 10 / 20, 6 / 40, 6 / 20]], rtol=1e-6)


def test_share_of_boxes_is_as_configured() -> None:
    assert prompts_for(nested(4), num_prompts=4000).is_box.mean() == pytest.approx(0.25, abs=0.03)


def test_a_box_prompt_without_noise_is_the_regions_box() -> None:
    prompts = prompts_for(nested(4), box_share=1.0, box_noise=0.0)
    _, regions = regions_of(nested(4))
    np.testing.assert_allclose(prompts.boxes_cxcywh, regions.boxes_cxcywh[prompts.targets[:, 0]], atol=1e-6)


def test_box_noise_follows_the_side_up_to_its_limit_and_stays_inside() -> None:
    masks = np.zeros((1, SIZE, SIZE), bool)
    masks[0, 8:24, 12:20] = True
    boxes = prompts_for(masks, num_prompts=3000, box_share=1.0, box_noise=0.1, max_box_noise=2.0).boxes_cxcywh * SIZE
    edges = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1) - [12, 8, 20, 24]
    assert np.abs(edges).max() == pytest.approx(2.0, abs=1e-4)
    assert edges[:, 0].std() == pytest.approx(0.8, rel=0.1)
    wild = prompts_for(masks, num_prompts=3000, box_share=1.0, box_noise=3.0, max_box_noise=1e9).boxes_cxcywh
    assert (wild[:, 2:] > 0).all()
    assert (wild[:, :2] - wild[:, 2:] / 2).min() >= -1e-6
    assert (wild[:, :2] + wild[:, 2:] / 2).max() <= 1 + 1e-6


def test_a_region_without_mask_gets_boxes_only_and_is_under_no_click() -> None:
    prompts = prompts_for(nested(3), has_mask=np.array([True, False, True]), box_share=0.0)
    assert (prompts.targets[prompts.is_box, 0] == 1).all()
    assert prompts.is_box.sum() == 20
    assert not (prompts.targets[~prompts.is_box] == 1).any()


def test_boxes_alone_are_legal() -> None:
    prompts = prompts_for(nested(3), has_mask=np.zeros(3, bool))
    assert prompts.is_box.all()
    assert prompts.valid.all()


def test_no_regions_give_padding() -> None:
    prompts = prompts_for(np.zeros((0, SIZE, SIZE), bool))
    assert not prompts.valid.any()
    assert (prompts.targets == -1).all()
    assert (prompts.asked == -1).all()
    assert (prompts.boxes_cxcywh == no_prompts(PromptSettings()).boxes_cxcywh).all()
    assert prompts.boxes_cxcywh.shape == (60, 4)


def test_one_pixel_is_always_clicked() -> None:
    mask = np.zeros((1, SIZE, SIZE), bool)
    mask[0, SIZE - 1, 0] = True
    ys, xs = clicked_pixels(prompts_for(mask, box_share=0.0))
    assert set(ys.tolist()) == {SIZE - 1}
    assert set(xs.tolist()) == {0}


@pytest.mark.parametrize("wrong", [{"num_prompts": 0}, {"num_levels": 0}, {"box_share": 1.5}, {"box_noise": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        PromptSettings(**wrong)
