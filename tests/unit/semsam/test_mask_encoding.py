"""Run lengths made on the device are those that are made everywhere."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, strategies

from semsam.data import rle
from semsam.mask_encoding import RunLengths, encode_labels, encode_masks, encode_on_device, mask_areas

SEEDS = strategies.integers(0, 2**32)


@given(SEEDS, strategies.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_masks_are_encoded_as_everywhere(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((rng.integers(0, 4), *rng.integers(1, 9, 2))) < density
    expected = [rle.encode(mask) for mask in masks]
    assert encode_masks(torch.from_numpy(masks)) == expected
    assert encode_on_device(torch.from_numpy(masks)) == expected
    assert mask_areas(torch.from_numpy(masks)).tolist() == masks.sum(axis=(1, 2)).tolist()
    runs = RunLengths(len(masks))
    for columns in np.array_split(masks, rng.integers(1, 12), axis=2):  # Some of them without a column.
        runs.add(torch.from_numpy(columns).transpose(1, 2))
    assert runs.encoded() == expected


@given(SEEDS)
def test_labels_are_encoded_as_their_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, rng.integers(0, 4), rng.integers(1, 9, 2))
    expected = [rle.encode(label == labels.T) for label in range(4)]
    assert encode_labels(labels, 4) == expected
