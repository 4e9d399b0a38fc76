"""Mean IoU of one click per region (paper, "1-click mIoU"): on its innermost pixel, or on any pixel of it."""

from __future__ import annotations

from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import Values


def one_click(clicks: PromptTable) -> dict[str, Values]:
    """`miou_max`: of the chosen level, which predicts the highest IoU; `miou_oracle`: of the level that has it."""
    ious = clicks.prompted.ious
    return {
        "miou_max": clicks.values(clicks.at(ious, clicks.prompted.chosen)),
        "miou_oracle": clicks.values(clicks.at(ious, clicks.best())),
    }
