"""How far the IoU that a level predicts can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import Values

BINS = 10  # Equal parts of the range from 0 to 1.


def fit_of_choice(clicks: PromptTable) -> dict[str, Values]:
    """`chosen_fits`: IoU of the level that predicts the highest one with the region under the click that it fits best.

    A click asks for no region in particular, so this is what a user sees of the model's choice.
    """
    best = np.zeros(len(clicks))
    prompt = np.repeat(np.arange(len(clicks)), np.diff(clicks.prompted.under_starts))
    np.maximum.at(best, prompt, clicks.prompted.under_ious[np.arange(len(prompt)), clicks.prompted.chosen[prompt]])
    return {"chosen_fits": clicks.values(best)}


@dataclass(frozen=True)
class Calibration:
    """What was predicted and what was true, for each level of each click: its best IoU with a region under it."""

    predicted: Values
    true: Float[np.ndarray, " v"]

    @staticmethod
    def of(clicks: PromptTable) -> Calibration:
        """Of all levels of the clicks."""
        prompted = clicks.prompted
        count, levels = prompted.iou_predictions.shape
        true = np.zeros((count, levels))
        np.maximum.at(true, np.repeat(np.arange(count), np.diff(prompted.under_starts)), prompted.under_ious)
        predicted = Values.of(prompted.iou_predictions.reshape(-1), np.repeat(clicks.image, levels))
        return Calibration(predicted, true.reshape(-1))

    @staticmethod
    def join(parts: Sequence[Calibration]) -> Calibration:
        """All of them, one part after the other."""
        return Calibration(Values.join([one.predicted for one in parts]), np.concatenate([one.true for one in parts]))

    def curve(self) -> Float[np.ndarray, "bins 3"]:
        """For each tenth of the predicted IoUs: how many levels, their mean prediction and their mean true IoU."""
        place = np.clip((self.predicted.value * BINS).astype(int), 0, BINS - 1)
        count = np.bincount(place, minlength=BINS)
        sums = [np.bincount(place, values, BINS) for values in (self.predicted.value, self.true)]
        means = [np.divide(one, count, out=np.full(BINS, np.nan), where=count > 0) for one in sums]
        return np.stack([count, *means], axis=1)

    def numbers(self) -> dict[str, float]:
        """`ece`: the expected calibration error; `rank_correlation`: Spearman's.  Empty where nothing was measured."""
        if not len(self.predicted):
            return {}
        curve = self.curve()
        filled = curve[curve[:, 0] > 0]
        numbers = {"ece": float((filled[:, 0] * abs(filled[:, 1] - filled[:, 2])).sum() / curve[:, 0].sum())}
        ranks = [rankdata(values) for values in (self.predicted.value, self.true)]
        if all(np.ptp(one) > 0 for one in ranks):  # What never varies has no correlation.
            numbers["rank_correlation"] = float(np.corrcoef(*ranks)[0, 1])
        return numbers
