"""Mean IoU of one click per region (paper, "1-click mIoU"): the click is the region's innermost pixel."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float

from semsam.evaluation.metric import Means


class OneClick(Means):
    """`miou_max`: of the level that predicts the highest IoU; `miou_oracle`: of the level that has it."""

    def update(self, ious: Float[np.ndarray, " k"], iou_predictions: Float[np.ndarray, " k"]) -> None:
        """Add one clicked region: the true IoU of each level's mask with it, and the IoU each level predicts."""
        self.add("miou_max", ious[np.argmax(iou_predictions)])
        self.add("miou_oracle", ious.max())


def innermost_pixel(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the mask's edge and the image's border; the first in row order of several.

    Raises `ValueError` for an empty mask.
    """
    if not mask.any():
        raise ValueError("an empty mask has no innermost pixel")
    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # Squares are whole numbers; their roots may differ in the last bits between pixels that are equally far inside.
    squared = np.rint(distance.astype(np.float64) ** 2)
    y, x = np.unravel_index(np.argmax(squared), squared.shape)
    return int(x), int(y)
