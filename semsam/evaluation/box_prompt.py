"""Each region prompted with its own box: mean IoU (paper, "box 1-IoU"), and its name where there is only a box."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from semsam.evaluation.metric import Means


class BoxPrompt(Means):
    """`miou` over regions with a mask, `object_top1` over named regions; both of the level that predicts most IoU.

    Box-only data (Objects365) has no mask to click on or to compare with: the name is all that can be measured there.
    """

    def update(
        self,
        ious: Float[np.ndarray, " k"] | None,
        iou_predictions: Float[np.ndarray, " k"],
        object_scores: Float[np.ndarray, "k x"],
        object_category: int | None,
    ) -> None:
        """Add one region: the true IoU of each level's mask (None without a mask), and what each level predicts."""
        level = int(np.argmax(iou_predictions))
        if ious is not None:
            self.add("miou", ious[level])
        if object_category is not None:
            self.add("object_top1", float(np.argmax(object_scores[level]) == object_category))
