"""95% bootstrap intervals over images: how much a number would move had other images of the same kind been taken.

The same images are drawn for every number and every evaluation, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from semsam.evaluation.numbers import Contributions

NUM_RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """The middle 95% of a number's resamples, moved by what they are higher than the number on average.

    For means that is nothing.  But AP takes the best precision that lies ahead, which images that are drawn twice
    raise: a low AP may lie below all of its resamples.
    """

    low: float
    high: float


def resample(num_images: int, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Int64[np.ndarray, "r n"]:
    """How often each image is in each resample: as many as there are images, drawn with replacement."""
    if num_images < 1:
        raise ValueError("no images to draw from: the evaluation is empty")
    weights = np.empty((num_resamples, num_images), np.int64)
    rng = np.random.default_rng(seed)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)
    return weights


def intervals(
    images: Contributions,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    names: Collection[str] | None = None,
) -> dict[str, Interval]:
    """The interval of every number (or of those of `names`) that there is any truth for."""
    return _percentiles(images.resampled(_with_all(images, seed, num_resamples), names))


def class_intervals(
    images: Contributions, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> dict[str, dict[str, Interval]]:
    """The intervals of every class's main numbers, by the class's name."""
    table = images.resampled_classes(_with_all(images, seed, num_resamples))
    return {label: _percentiles(row) for label, row in table.items()}


def paired_intervals(
    first: Contributions,
    second: Contributions,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    names: Collection[str] | None = None,
) -> dict[str, Interval]:
    """The interval of second - first, for every number (or those of `names`) that both have, over the same images.

    Raises `ValueError` for different numbers of images.
    """
    if first.num_images != second.num_images:
        raise ValueError(
            f"evaluations of {first.num_images} and {second.num_images} images cannot be compared in pairs"
        )
    weights = _with_all(first, seed, num_resamples)
    before, after = first.resampled(weights, names), second.resampled(weights, names)
    return _percentiles({name: after[name] - before[name] for name in before if name in after})


def _with_all(images: Contributions, seed: int, num_resamples: int) -> Int64[np.ndarray, "r_plus_1 n"]:
    """All images once, and then the resamples."""
    once = np.ones((1, images.num_images), np.int64)
    return np.concatenate([once, resample(images.num_images, seed, num_resamples)])


def _percentiles(resampled: dict[str, Float64[np.ndarray, " r_plus_1"]]) -> dict[str, Interval]:
    """From the number itself and its resamples; one that holds no truth for a number says nothing about it."""
    found = {}
    for name, values in resampled.items():
        known = values[1:][~np.isnan(values[1:])]
        if known.size and not np.isnan(values[0]):
            low, high = np.percentile(known, _PERCENTILES) - (known.mean() - values[0])
            found[name] = Interval(float(low), float(high))
    return found
