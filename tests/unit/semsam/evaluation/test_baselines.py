import itertools

import numpy as np
import pytest

from semsam.data.atoms import AtomMap
from semsam.evaluation.baselines import CANDIDATE_RADII, BaselineFit, best_radii, disc_ious
from semsam.evaluation.overlaps import mask_ious


def atoms_of(masks: np.ndarray) -> AtomMap:
    """The atom map of a stack of masks, by the definition: one label per distinct set of covering masks."""
    m, height, width = masks.shape
    patterns, labels = np.unique(masks.reshape(m, -1).T, axis=0, return_inverse=True)
    if patterns[0].any():  # Label 0 is what nothing covers, even where everything is covered.
        patterns, labels = np.concatenate([np.zeros((1, m), bool), patterns]), labels + 1
    return AtomMap(labels.reshape(height, width).astype(np.uint16), patterns)


def random_masks(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:30, :40]
    discs = [np.hypot(yy - rng.integers(30), xx - rng.integers(40)) < rng.integers(2, 20) for _ in range(5)]
    return np.stack(discs)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_overlaps_through_the_atom_map_equal_dense_ones() -> None:
    truth, predicted = random_masks(0), random_masks(1)
    expected = [[iou(p, t) for t in truth] for p in predicted]
    np.testing.assert_allclose(mask_ious(predicted, atoms_of(truth)), expected, atol=1e-12)


def test_an_empty_prediction_overlaps_nothing() -> None:
    assert not mask_ious(np.zeros((1, 30, 40), bool), atoms_of(random_masks(0))).any()


def test_discs_equal_drawn_ones() -> None:
    truth = random_masks(2)
    radii = np.array([0.02, 0.1, 0.3, 2.0])
    yy, xx = np.mgrid[:30, :40]
    drawn = [np.hypot(yy - 11, xx - 23) <= radius * np.sqrt(30 * 40) for radius in radii]
    expected = [[iou(d, t) for t in truth] for d in drawn]
    np.testing.assert_allclose(disc_ious(atoms_of(truth), (23, 11), radii), expected, atol=1e-12)


def test_the_chosen_radii_are_the_best_or_nearly() -> None:
    ious = np.random.default_rng(0).random((50, 8)) ** 3
    chosen = ious[:, best_radii(ious, 3)].max(axis=1).mean()
    best = max(ious[:, list(c)].max(axis=1).mean() for c in itertools.combinations(range(8), 3))
    assert chosen == pytest.approx(best, rel=0.01)


def test_a_fit_survives_the_way_between_processes_and_merging() -> None:
    rng = np.random.default_rng(0)
    whole, halves = BaselineFit(), [BaselineFit(), BaselineFit()]
    for i in range(10):
        ious = rng.random(len(CANDIDATE_RADII))
        for fit in (whole, halves[i // 5]):
            fit.update(ious, i % 3, None if i % 2 else 7)
    merged = BaselineFit.from_json(halves[0].to_json())
    merged.merge(BaselineFit.from_json(halves[1].to_json()))
    assert merged.compute(6) == whole.compute(6)
    assert whole.compute(6).commonest_object == 0
    assert whole.compute(6).commonest_part == 7


def test_nothing_to_fit_gives_no_guess() -> None:
    baselines = BaselineFit().compute(6)
    assert (baselines.radii, baselines.commonest_object, baselines.commonest_part) == ((), None, None)
