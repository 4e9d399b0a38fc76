"""Mean IoU over all masks under a click (paper, "1-IoU@All-Granularity"): are all its objects and parts found?"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import Values


def granularity(clicks: PromptTable) -> dict[str, Values]:
    """`miou_all`: each true mask under a click against the level assigned to it, averaged over masks and clicks.

    Levels are assigned to masks one to one so that the sum of IoUs is greatest; a mask left without a level (more masks
    than levels) counts as 0, so that answering fewer granularities never pays.
    """
    starts, ious = clicks.prompted.under_starts, clicks.prompted.under_ious.astype(np.float64)
    assigned = np.zeros(len(ious))
    for start, end in pairwise(starts.tolist()):
        truths, levels = linear_sum_assignment(ious[start:end], maximize=True)
        assigned[start + truths] = ious[start + truths, levels]
    return {"miou_all": Values.of(assigned, np.repeat(clicks.image, np.diff(starts)))}


def distinct_masks(clicks: PromptTable, same: float = 0.9) -> dict[str, Values]:
    """`distinct`: how many different masks the levels of a click show; those of IoU `same` or more are one mask."""
    pairs = clicks.prompted.level_ious >= same
    is_new = np.ones(pairs.shape[:2], bool)
    for level in range(1, pairs.shape[1]):
        is_new[:, level] = ~(pairs[:, level, :level] & is_new[:, :level]).any(axis=1)
    return {"distinct": clicks.values(is_new.sum(axis=1).astype(np.float32))}
