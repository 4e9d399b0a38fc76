"""Every protocol of clicks and boxes, and the names of their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from semsam.evaluation.baselines import FILLINGS
from semsam.evaluation.box_prompt import box_prompt
from semsam.evaluation.clicked_classes import clicked_classes, confusions
from semsam.evaluation.granularity import distinct_masks, granularity
from semsam.evaluation.iou_calibration import Calibration, fit_of_choice
from semsam.evaluation.items import Ask, ImageItem
from semsam.evaluation.one_click import one_click
from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import Values

BASELINE = "baseline"  # First part of a blind baseline's metric name.


def measure(table: PromptTable) -> dict[str, Values]:
    """What the prompts of some images say, by the number's name less its dataset: `one_click/miou_max`."""
    clicks, random, boxes = (table.asked_by(ask) for ask in (Ask.INNERMOST, Ask.RANDOM, Ask.BOX))
    found = {
        "one_click": one_click(clicks),
        "random_click": one_click(random),
        "granularity": granularity(clicks) | distinct_masks(clicks),
        "box_prompt": box_prompt(boxes),
        "classes": clicked_classes(clicks),
        "calibration": fit_of_choice(clicks),
    }
    return {f"{protocol}/{name}": values for protocol, numbers in found.items() for name, values in numbers.items()}


def measure_blind(table: PromptTable) -> dict[str, Values]:
    """The same of blind guesses, as far as these mean anything; and each filling of a box."""
    found = measure(table)
    for name in ("granularity/distinct", "classes/object_top5", "classes/part_top5"):
        del found[name]  # There is but one guess of a name, and discs always differ.
    boxes = table.asked_by(Ask.BOX)
    for level, name in enumerate(FILLINGS if len(boxes) else ()):
        ious = boxes.prompted.ious[:, level]
        found[f"box_prompt/miou_{name}"] = boxes.values(ious, ~np.isnan(ious))
    return found


@dataclass
class Numbers:
    """What was measured of a dataset's split so far, image by image in their order."""

    is_blind: bool = False
    num_images: int = 0
    parts: dict[str, list[Values]] = field(default_factory=dict)
    calibrations: list[Calibration] = field(default_factory=list)
    confusions: dict[str, list[Int64[np.ndarray, "n 2"]]] = field(default_factory=dict)

    def add(self, items: Sequence[ImageItem]) -> None:
        """Measure the images that follow.  Raises `ValueError` for one that was not asked."""
        if not items:
            return
        table = PromptTable.of(items, self.num_images)
        self.num_images += len(items)
        for name, values in (measure_blind if self.is_blind else measure)(table).items():
            self.parts.setdefault(name, []).append(values)
        clicks = table.asked_by(Ask.INNERMOST)
        self.calibrations.append(Calibration.of(clicks))
        for what, pairs in confusions(clicks).items():
            self.confusions.setdefault(what, []).append(pairs)

    def values(self) -> dict[str, Values]:
        """All values by name; what nothing was measured for is absent."""
        joined = {name: Values.join(parts) for name, parts in self.parts.items()}
        return {name: values for name, values in joined.items() if len(values)}

    def sums(self) -> dict[str, tuple[float, int]]:
        """The sum of each number's values, and how many there are."""
        return {name: (float(values.value.sum()), len(values)) for name, values in self.values().items()}

    def compute(self) -> dict[str, float]:
        """Every number by its name less its dataset."""
        numbers = {name: total / count for name, (total, count) in self.sums().items()}
        if self.is_blind or not self.calibrations:
            return numbers
        calibration = Calibration.join(self.calibrations).numbers()
        return numbers | {f"calibration/{name}": value for name, value in calibration.items()}


def means_of(sums: Iterable[Mapping[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """Each number's mean over the values of all datasets, given as their sums, and how many values there are."""
    totals: dict[str, tuple[float, int]] = {}
    for of_dataset in sums:
        for name, (total, count) in of_dataset.items():
            so_far = totals.get(name, (0.0, 0))
            totals[name] = so_far[0] + total, so_far[1] + count
    return {name: (total / count, count) for name, (total, count) in sorted(totals.items())}


def metric_name(name: str, dataset: str, is_blind: bool = False) -> str:
    """A number's name in MLflow, such as `one_click/ade20k/miou_oracle` or `baseline/one_click/ade20k/miou_oracle`."""
    protocol, _, number = name.partition("/")
    return f"{BASELINE}/" * is_blind + f"{protocol}/{dataset}/{number}"
