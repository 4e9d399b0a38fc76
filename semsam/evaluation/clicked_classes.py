"""Is the region under a click named rightly?  Object and part top-1, given the level whose mask fits it best."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from semsam.evaluation.metric import Means


class ClickedClasses(Means):
    """`object_top1`, `part_top1`: shares of regions whose name has the highest score of their dataset's vocabulary.

    The level is the one with the highest true IoU: the number speaks of naming alone, and a wheel is not counted wrong
    because the car's mask came out first.
    """

    def update(
        self,
        ious: Float[np.ndarray, " k"],
        object_scores: Float[np.ndarray, "k x"],
        part_scores: Float[np.ndarray, "k y"],
        object_category: int | None,
        part_category: int | None,
    ) -> None:
        """Add one clicked region; a category that is None (not annotated) adds nothing to its number."""
        level = int(np.argmax(ious))
        if object_category is not None:
            self.add("object_top1", float(np.argmax(object_scores[level]) == object_category))
        if part_category is not None:
            self.add("part_top1", float(np.argmax(part_scores[level]) == part_category))
