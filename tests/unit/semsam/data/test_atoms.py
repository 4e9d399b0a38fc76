"""The atom map against the stack of dense masks that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from semsam.data import rle
from semsam.data.atoms import AtomMap
from semsam.data.label_runs import TooManyAtomsError, labels_of_hashes

quick = hypothesis_settings(max_examples=60)


def random_masks(num: int, height: int, width: int, seed: int) -> np.ndarray:
    """Ellipses and noise, some of them empty, many of them over the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((num, height, width), bool)
    for j in range(num):
        if rng.random() < 0.2:
            masks[j] = rng.random((height, width)) < rng.choice([0.0, 0.1, 0.9, 1.0])
        else:
            radii = rng.uniform(0.5, 1 + max(height, width) / 2, 2)
            centre = rng.uniform(-2, (height + 2, width + 2))
            masks[j] = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
    return masks


def atoms_of(masks: np.ndarray, **options) -> AtomMap:
    return AtomMap.from_rles([rle.encode(mask) for mask in masks], *masks.shape[1:], **options)


def assert_same_masks(atoms: AtomMap, masks: np.ndarray) -> None:
    """Equal masks, and what the map derives from them equals what the dense masks give."""
    assert atoms.num_masks == len(masks)
    assert atoms.labels.shape == masks.shape[1:]
    np.testing.assert_array_equal(atoms.table[atoms.labels].transpose(2, 0, 1), masks)
    assert not atoms.table[0].any()
    assert len(np.unique(atoms.table, axis=0)) == len(atoms.table)
    assert set(range(1, len(atoms.table))) <= set(np.unique(atoms.labels).tolist())
    np.testing.assert_array_equal(atoms.areas(), masks.sum((1, 2)))
    boxes = [rle.box_xyxy(rle.encode(mask), *mask.shape) for mask in masks]
    np.testing.assert_array_equal(atoms.boxes_xyxy(), np.array(boxes, np.float32).reshape(-1, 4))
    assert atoms.boxes_xyxy().dtype == np.float32


@quick
@given(st.integers(0, 8), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_map_and_table_say_the_same_as_dense_masks(num: int, height: int, width: int, seed: int) -> None:
    masks = random_masks(num, height, width, seed)
    atoms = atoms_of(masks)
    assert_same_masks(atoms, masks)
    # A map that knows nothing of its runs finds them in its labels.
    assert_same_masks(AtomMap(np.ascontiguousarray(atoms.labels), atoms.table), masks)


@quick
@given(st.data())
def test_resampling_before_and_after_making_the_map_is_indexing_the_masks(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    masks = random_masks(data.draw(st.integers(0, 5)), height, width, data.draw(st.integers(0, 2**31)))
    rows = np.array(
        sorted(data.draw(st.lists(st.integers(0, height - 1), max_size=30)))
        + [-1] * data.draw(st.integers(0, 3)),
        np.int64,
    )  # fmt: skip
    cols = np.array(data.draw(st.lists(st.integers(-1, width - 1), max_size=30)), np.int64)
    expected = masks[:, rows[:, None], cols] & (rows >= 0)[:, None] & (cols >= 0)
    assert_same_masks(atoms_of(masks).resample(rows, cols), expected)
    assert_same_masks(atoms_of(masks, rows=rows, cols=cols), expected)


def test_flipping_twice_is_the_identity() -> None:
    masks = random_masks(6, 17, 23, seed=1)
    rows, mirrored = np.arange(17), np.arange(23)[::-1]
    atoms = atoms_of(masks)
    np.testing.assert_array_equal(atoms.resample(rows, mirrored).resample(rows, mirrored).labels, atoms.labels)


@pytest.mark.parametrize("rows", [[1, 0], [-1, 0], [0, -1, 1]])
def test_rows_out_of_order_are_refused(rows: list[int]) -> None:
    masks = random_masks(2, 3, 3, seed=0)
    with pytest.raises(ValueError, match="ascend"):
        atoms_of(masks).resample(np.array(rows), np.arange(3))
    with pytest.raises(ValueError, match="ascend"):
        atoms_of(masks, rows=np.array(rows), cols=np.arange(3))


@pytest.mark.parametrize(("rows", "cols"), [([0, 3], [0]), ([0], [2, 3])])
def test_tables_beyond_the_map_are_refused(rows: list[int], cols: list[int]) -> None:
    masks = random_masks(2, 3, 3, seed=0)
    with pytest.raises(ValueError, match="beyond a map of 3 x 3"):
        atoms_of(masks).resample(np.array(rows), np.array(cols))
    with pytest.raises(ValueError, match="beyond a map of 3 x 3"):
        atoms_of(masks, rows=np.array(rows), cols=np.array(cols))


@pytest.mark.parametrize("num", [63, 64, 65, 128, 200])
def test_more_masks_than_bits_in_a_word(num: int) -> None:
    masks = random_masks(num, 12, 11, seed=num)
    assert_same_masks(atoms_of(masks), masks)


def test_regions_without_mask_are_empty_columns() -> None:
    masks = random_masks(4, 9, 9, seed=3)
    rles: list[bytes | None] = [rle.encode(mask) for mask in masks]
    rles[0] = rles[2] = None
    masks[[0, 2]] = False
    assert_same_masks(AtomMap.from_rles(rles, 9, 9), masks)


def test_no_masks_give_one_label() -> None:
    atoms = AtomMap.from_rles([], 5, 7)
    assert_same_masks(atoms, np.zeros((0, 5, 7), bool))
    assert atoms.table.shape == (1, 0)


def test_a_mask_of_everything_leaves_label_zero_to_nobody() -> None:
    atoms = atoms_of(np.ones((1, 4, 4), bool))
    assert atoms.table.tolist() == [[False], [True]]
    assert (atoms.labels == 1).all()


def test_masks_on_the_border_keep_their_last_row_and_column() -> None:
    masks = np.zeros((2, 6, 8), bool)
    masks[0, -1, :], masks[1, :, -1] = True, True
    assert_same_masks(atoms_of(masks), masks)
    np.testing.assert_array_equal(atoms_of(masks).boxes_xyxy(), [[0, 5, 8, 6], [7, 0, 8, 6]])


def test_labels_are_small_where_they_fit_and_wide_where_they_do_not() -> None:
    rng = np.random.default_rng(0)
    assert atoms_of(random_masks(5, 20, 20, seed=0)).labels.dtype == np.uint16
    # 24 masks of noise: nearly every pixel is a set of its own, which is more than 16 bits can count.
    noise = rng.random((24, 280, 280)) < 0.5
    atoms = atoms_of(noise)
    assert len(atoms.table) > 2**16
    assert atoms.labels.dtype == np.uint32
    np.testing.assert_array_equal(atoms.mask(7), noise[7])
    np.testing.assert_array_equal(atoms.areas(), noise.sum((1, 2)))
    cropped = atoms.resample(np.arange(100), np.arange(100))
    assert cropped.labels.dtype == np.uint16  # Compacted: a crop of 10,000 pixels has no more labels than that.
    np.testing.assert_array_equal(cropped.mask(23), noise[23, :100, :100])


def test_three_hundred_overlapping_blobs() -> None:
    y, x = np.mgrid[:256, :256]
    rng = np.random.default_rng(5)
    centres, radii = rng.uniform(0, 256, (300, 2)), rng.uniform(30, 110, 300)
    masks = np.stack([np.hypot(y - cy, x - cx) < r for (cy, cx), r in zip(centres, radii, strict=True)])
    atoms = atoms_of(masks)
    assert len(atoms.table) > 2**14
    for j in (0, 150, 299):
        np.testing.assert_array_equal(atoms.mask(j), masks[j])
    np.testing.assert_array_equal(atoms.areas(), masks.sum((1, 2)))


def test_a_table_past_the_limit_is_refused_before_it_is_made() -> None:
    noise = np.random.default_rng(0).random((20, 30, 30)) < 0.5
    with pytest.raises(TooManyAtomsError, match="more than 1000 bytes"):
        atoms_of(noise, max_table_bytes=1000)


def test_hashes_that_differ_only_in_the_bits_that_hold_the_index_get_different_labels() -> None:
    hashes = np.array([0, 5, 4, 5, 2**63, 0, 4, 1], np.uint64)
    label, example = labels_of_hashes(hashes)
    np.testing.assert_array_equal(hashes[example][label], hashes)
    assert len(example) == 5
    assert label[0] == label[5] == 0


def test_covering_names_the_masks_over_each_pixel() -> None:
    masks = random_masks(7, 20, 15, seed=11)
    ys, xs = np.array([0, 19, 7]), np.array([0, 14, 3])
    np.testing.assert_array_equal(atoms_of(masks).covering(ys, xs), masks[:, ys, xs].T)
    assert atoms_of(masks).covering(ys[:0], xs[:0]).shape == (0, 7)


def uniformity(counts: np.ndarray) -> float:
    """Chi-square per degree of freedom: about 1 for uniform draws."""
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum() / (counts.size - 1))


@pytest.mark.parametrize("shape", ["blob", "diagonal"])
def test_random_pixels_are_uniform_over_the_mask(shape: str) -> None:
    y, x = np.mgrid[:60, :60]
    # The diagonal fills so little of its box that sampling has to fall back on its runs.
    mask = np.hypot(y - 30, x - 20) < 9 if shape == "blob" else (x == y) | ((x == 59 - y) & (x < 9))
    atoms = atoms_of(np.stack([mask, np.ones_like(mask)]))
    rng = np.random.default_rng(0)
    draws = 40 * int(mask.sum())
    ys, xs = atoms.random_pixels(np.zeros(draws, np.int64), rng)
    counts = np.bincount(ys * 60 + xs, minlength=3600).reshape(60, 60)
    assert counts[~mask].sum() == 0
    assert 0.7 < uniformity(counts[mask]) < 1.3


def test_the_exact_fallback_alone_is_uniform_too() -> None:
    mask = random_masks(1, 12, 12, seed=4)[0] | np.eye(12, dtype=bool)
    atoms = atoms_of(mask[None])
    rng = np.random.default_rng(1)
    counts = np.zeros((12, 12))
    for _ in range(40 * int(mask.sum())):
        counts[atoms._random_pixel_of_runs(0, rng)] += 1
    assert counts[~mask].sum() == 0
    assert 0.6 < uniformity(counts[mask]) < 1.5


def test_a_mask_of_one_pixel_gives_that_pixel() -> None:
    mask = np.zeros((1, 30, 40), bool)
    mask[0, 29, 39] = True
    assert atoms_of(mask).random_pixel(0, np.random.default_rng(0)) == (29, 39)


def test_an_empty_mask_has_no_pixel_to_draw() -> None:
    with pytest.raises(ValueError, match="mask 1 covers no pixel"):
        atoms_of(np.stack([np.ones((3, 3), bool), np.zeros((3, 3), bool)])).random_pixels(
            np.array([0, 1]), np.random.default_rng(0)
        )


def test_labels_are_numbered_alike_in_every_process() -> None:
    y, x = np.mgrid[:6, :5]
    masks = np.stack([(x * (j + 1) + y * 3) % 7 < 3 for j in range(4)])
    # Written down once: other hash keys, or keys drawn at start, would give other numbers.
    assert atoms_of(masks).labels[0].tolist() == [5, 7, 2, 1, 9]


def test_keeping_masks_keeps_their_pixels() -> None:
    masks = random_masks(5, 10, 10, seed=2) & np.array([True, False, True, True, False])[:, None, None]
    kept = np.flatnonzero(masks.any((1, 2)))
    assert_same_masks(atoms_of(masks).keep_masks(kept), masks[kept])
