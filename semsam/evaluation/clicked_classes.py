"""Is the region under a click named rightly?  Given the level whose mask fits it best."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int32, Int64

from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import Values


def clicked_classes(clicks: PromptTable) -> dict[str, Values]:
    """`object_top1`, `part_top1`: shares of regions whose name has the highest score of their dataset's vocabulary.

    `object_top5`, `part_top5`: of those whose name is among the five likeliest.  The level is the one with the highest
    true IoU: the number speaks of naming alone, and a wheel is not counted wrong because the car's mask came out
    first.  A name that is not annotated counts nowhere.
    """
    level = clicks.best()
    found = {}
    for what, names, truth in (
        ("object", clicks.prompted.objects, clicks.object_category),
        ("part", clicks.prompted.parts, clicks.part_category),
    ):
        best = clicks.at(names, level)
        for count in (1, 5):
            values = Values.of(is_best(best, truth, count), clicks.image, truth)
            found[f"{what}_top{count}"] = values.where(truth >= 0)
    return found


def confusions(clicks: PromptTable) -> dict[str, Int64[np.ndarray, "n 2"]]:
    """Pairs of true and likeliest names, `object` and `part`, of the regions that have one."""
    level = clicks.best()
    pairs = {}
    for what, names, truth in (
        ("object", clicks.prompted.objects, clicks.object_category),
        ("part", clicks.prompted.parts, clicks.part_category),
    ):
        pairs[what] = np.stack([truth, clicks.at(names, level)[:, 0].astype(np.int64)], axis=1)[truth >= 0]
    return pairs


def is_best(best: Int32[np.ndarray, "p best"], truth: Int64[np.ndarray, " p"], count: int) -> Float32[np.ndarray, " p"]:
    """1 where the true name is among the `count` likeliest, else 0."""
    return (best[:, :count] == truth[:, None]).any(axis=1).astype(np.float32)
