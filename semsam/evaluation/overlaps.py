"""Overlaps of predicted masks with all regions of an image, through its atom map."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from semsam.data.atoms import AtomMap


def mask_ious(masks: Bool[np.ndarray, "q h w"], atoms: AtomMap) -> Float[np.ndarray, "q m"]:
    """IoU of every predicted mask with every region, counting pixels per label once; two empty masks have IoU 0."""
    flat = atoms.labels.reshape(-1)
    counts = np.stack([np.bincount(flat[mask.reshape(-1)], minlength=len(atoms.table)) for mask in masks])
    return ious_from_counts(counts, atoms)


def ious_from_counts(counts: Int[np.ndarray, "q a"], atoms: AtomMap) -> Float[np.ndarray, "q m"]:
    """IoU of predictions, given as their number of pixels in each label, with every region."""
    intersections = counts @ atoms.table.astype(np.float64)
    areas = np.bincount(atoms.labels.reshape(-1), minlength=len(atoms.table)) @ atoms.table.astype(np.float64)
    unions = counts.sum(axis=1, keepdims=True) + areas[None] - intersections
    return intersections / np.maximum(unions, 1)
