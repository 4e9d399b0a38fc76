"""The images that a protocol's numbers are best and worst on: those to look at."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.headlines import HEADLINES

SHOWN = 5  # Images at either end.
LOWER_IS_BETTER = frozenset({"ece"})
_FOUND = "found"  # What single images have in place of AP.


@dataclass(frozen=True)
class Extremes:
    """The images at either end of a protocol's main number, each with its own: the best first, the worst first."""

    number: str
    best: tuple[tuple[str, float], ...]  # Sample id and number.
    worst: tuple[tuple[str, float], ...]


def extremes(numbers: DatasetNumbers, shown: int = SHOWN) -> dict[str, Extremes]:
    """The extremes of every protocol that single images have a number of; no image is at both ends.

    Where few images have a number, more of them are among the worst.  Equal ones are in the order of the items.
    """
    found = {}
    for protocol, one in numbers.protocols.items():
        of_image = one.images.per_image()
        wanted = (*HEADLINES.get(protocol, ()), _FOUND, *one.values)
        number = next((name for name in wanted if name in of_image), None)
        if number is None:
            continue
        values = of_image[number]
        goodness = -values if number in LOWER_IS_BETTER else values
        known = np.flatnonzero(~np.isnan(values))
        order = known[np.argsort(goodness[known], kind="stable")]
        worst = order[: min(shown, (len(order) + 1) // 2)]
        others = np.sort(order[len(worst) :])
        best = others[np.argsort(-goodness[others], kind="stable")][:shown]
        ends = [tuple((numbers.sample_ids[i], float(values[i])) for i in end.tolist()) for end in (best, worst)]
        found[protocol] = Extremes(number, *ends)
    return found


def picture_name(dataset: str, sample_id: str) -> str:
    """Where an evaluation's output has the picture of one image."""
    return f"{dataset}/{quote(sample_id, safe='')}.png"
