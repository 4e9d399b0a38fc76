"""How far the IoU that a level predicts can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import rankdata

from semsam.evaluation.class_sums import ClassSums, ratio
from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import Values

BINS = 10  # Equal parts of the range from 0 to 1.
_COUNT, _PREDICTED, _TRUE = range(3)


def fit_of_choice(clicks: PromptTable) -> dict[str, Values]:
    """`miou`: IoU of the chosen level with the region under the click that it fits best.

    A click asks for no region in particular, so this is what a user sees of the model's choice.
    """
    best = np.zeros(len(clicks))
    prompt = np.repeat(np.arange(len(clicks)), np.diff(clicks.prompted.under_starts))
    np.maximum.at(best, prompt, clicks.prompted.under_ious[np.arange(len(prompt)), clicks.prompted.chosen[prompt]])
    return {"miou": clicks.values(best)}


@dataclass(frozen=True)
class Calibration:
    """What each level of each click predicted, and its best IoU with a region under the click."""

    image: Int64[np.ndarray, " v"]
    predicted: Float64[np.ndarray, " v"]  # Raw numbers, which may lie beyond 0 and 1.
    true: Float64[np.ndarray, " v"]

    @staticmethod
    def of(clicks: PromptTable) -> Calibration:
        """Of all levels of the clicks."""
        prompted = clicks.prompted
        count, levels = prompted.iou_predictions.shape
        true = np.zeros((count, levels))
        np.maximum.at(true, np.repeat(np.arange(count), np.diff(prompted.under_starts)), prompted.under_ious)
        image = np.repeat(clicks.image, levels)
        return Calibration(image, prompted.iou_predictions.reshape(-1).astype(np.float64), true.reshape(-1))

    @staticmethod
    def join(parts: Sequence[Calibration]) -> Calibration:
        """All of them, one part after the other."""
        return Calibration(*(np.concatenate([vars(one)[name] for one in parts]) for name in vars(parts[0])))

    def numbers(self) -> dict[str, float]:
        """`ece`: the expected calibration error; `rank_correlation`: Spearman's.  Empty where nothing was measured."""
        if not len(self.true):
            return {}
        numbers = self.sums(int(self.image[-1]) + 1).values()
        ranks = [rankdata(values) for values in (self.predicted, self.true)]
        if all(np.ptp(one) > 0 for one in ranks):  # What never varies has no correlation.
            numbers["rank_correlation"] = float(np.corrcoef(*ranks)[0, 1])
        return numbers

    def sums(self, num_images: int) -> CalibrationSums:
        """What each image adds to each tenth of the predicted IoUs."""
        place = np.clip((self.predicted * BINS).astype(int), 0, BINS - 1)
        row, inverse = np.unique(self.image * BINS + place, return_inverse=True)
        columns = (np.ones(len(place)), self.predicted, self.true)
        sums = np.stack([np.bincount(inverse, values, len(row)) for values in columns], axis=1)
        names = tuple(f"{one / BINS:.1f} to {(one + 1) / BINS:.1f}" for one in range(BINS))
        return CalibrationSums(num_images, names, row // BINS, row % BINS, sums)


@dataclass(frozen=True)
class CalibrationSums(ClassSums):
    """Of each image and tenth of the predicted IoUs how many levels there are, and their predicted and true IoUs."""

    def class_numbers(self, totals: Float64[np.ndarray, "r c 3"]) -> dict[str, Float64[np.ndarray, "r c"]]:
        """The reliability curve: the number of levels, and the means of what they predicted and of what was true."""
        count = totals[..., _COUNT]
        return {
            "levels": np.where(count > 0, count, np.nan),
            "predicted": ratio(totals[..., _PREDICTED], count),
            "true": ratio(totals[..., _TRUE], count),
        }

    def headline(self, totals: Float64[np.ndarray, "r c 3"]) -> dict[str, Float64[np.ndarray, " r"]]:
        """The expected calibration error: the mean distance of the two, weighted by the number of levels."""
        apart = np.abs(totals[..., _PREDICTED] - totals[..., _TRUE]).sum(axis=1)
        return {"ece": ratio(apart, totals[..., _COUNT].sum(axis=1))}
