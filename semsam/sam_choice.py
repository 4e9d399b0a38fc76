"""Which of a prompt's masks a user of SAM gets: the best one, or three of them from part to whole.

SAM (arXiv 2304.02643) has three masks for a prompt, this model six levels.  The levels of a prompt are put in order:
first those that are right about as many of its clicks as any (of several clicks: a click alone is left to the scores),
among them by `PromptStyle.scores`, as a `Predictor` chooses.  The first of that order is the best one.  The three are
the first of it and the two that follow and are not nearly the same mask as one taken before, given from the smallest
to the largest.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64

from semsam.predictor import PromptStyle, mask_boxes_xyxy

NUM_MASKS = 3
TOO_ALIKE = 0.9  # Two masks with a greater IoU count as the same as long as there are others.


def in_order(
    style: PromptStyle,
    iou_predictions: Float[np.ndarray, " m"],
    masks: Bool[np.ndarray, "m h w"],
    box_xyxy: Float[np.ndarray, " 4"] | None,
    agreement: Int64[np.ndarray, " m"],
    likeness: Float[np.ndarray, " m"] | None = None,
) -> Int64[np.ndarray, " m"]:
    """The places of one prompt's masks, the best first; of equally good ones the first stays first.

    `box_xyxy` is the prompt's box, `agreement` how many of its clicks each mask is right about, and `likeness` how much
    each mask is like the one that is to be corrected, where the model itself has not seen that one.
    """
    tight = mask_boxes_xyxy(masks)
    scores = style.scores(iou_predictions[None], tight[None], None if box_xyxy is None else box_xyxy[None])[0]
    if likeness is not None:
        scores = scores * likeness
    return np.lexsort((-scores, -agreement))


def three_of(order: Int64[np.ndarray, " m"], masks: Bool[np.ndarray, "m h w"]) -> Int64[np.ndarray, " c"]:
    """The places of three masks that differ, the smallest first; of as many as there are, if there are fewer."""
    taken: list[int] = []
    for place in order.tolist():
        if len(taken) < NUM_MASKS and all(mask_iou(masks[place], masks[other]) <= TOO_ALIKE for other in taken):
            taken.append(place)
    taken += [place for place in order.tolist() if place not in taken][: NUM_MASKS - len(taken)]
    areas = masks[taken].sum(axis=(1, 2))
    return np.array(taken, np.int64)[np.argsort(areas, kind="stable")]


def mask_iou(one: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"]) -> float:
    """How much two masks are alike, from 0 to 1; two empty ones are the same."""
    either = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / either) if either else 1.0
