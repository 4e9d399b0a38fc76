"""Each region prompted with its own box: mean IoU (paper, "box 1-IoU"), and its name where there is only a box."""

from __future__ import annotations

import numpy as np

from semsam.evaluation.clicked_classes import is_best
from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import Values


def box_prompt(boxes: PromptTable) -> dict[str, Values]:
    """`miou` over regions with a mask, `object_top1` over named regions; both of the chosen level
    (see `semsam.predictor.PromptStyle`).

    Box-only data (Objects365) has no mask to click on or to compare with: the name is all that can be measured there.
    """
    level = boxes.prompted.chosen
    ious = boxes.at(boxes.prompted.ious, level)
    top1 = is_best(boxes.at(boxes.prompted.objects, level), boxes.object_category, 1)
    return {"miou": boxes.values(ious, ~np.isnan(ious)), "object_top1": boxes.values(top1, boxes.object_category >= 0)}
