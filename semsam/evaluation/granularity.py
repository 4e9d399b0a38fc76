"""Mean IoU over all masks under a click (paper, "1-IoU@All-Granularity"): are all its objects and parts found?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from semsam.evaluation.metric import Means


class Granularity(Means):
    """`miou_all`: each true mask under a click against the level assigned to it, averaged over masks and clicks.

    Levels are assigned to masks one to one so that the sum of IoUs is greatest; a mask left without a level (more masks
    than levels) counts as 0, so that answering fewer granularities never pays.
    """

    def update(self, ious: Float[np.ndarray, "k t"]) -> None:
        """Add one click: the IoU of each level's mask with each of the `t` true masks under it."""
        levels, truths = linear_sum_assignment(ious, maximize=True)
        of_truth = np.zeros(ious.shape[1])
        of_truth[truths] = ious[levels, truths]
        for iou in of_truth:
            self.add("miou_all", iou)
