"""Every protocol of clicks and boxes, and the names of their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from semsam.data.manifest import Vocabulary
from semsam.evaluation.baselines import FILLINGS
from semsam.evaluation.box_prompt import box_prompt
from semsam.evaluation.clicked_classes import clicked_classes, confusions
from semsam.evaluation.granularity import distinct_masks, granularity
from semsam.evaluation.iou_calibration import Calibration, fit_of_choice
from semsam.evaluation.items import Ask, ImageItem
from semsam.evaluation.numbers import Numbers
from semsam.evaluation.one_click import one_click
from semsam.evaluation.open_vocabulary import TrainedNames, open_vocabulary
from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.values import PromptMeans, Values

BASELINE = "baseline"  # First part of a blind baseline's metric name.
CONVENTIONS = {
    "one_click": "one click on each region's innermost pixel; mean IoU over regions",
    "random_click": "one click on any pixel of each region; mean IoU over regions",
    "granularity": "all masks under each region's innermost pixel; mean over masks",
    "box_prompt": "each region's own box; mean over regions",
    "classes": "names of clicked regions, by the level that fits best; mean over regions",
    "open_vocabulary": "names of clicked regions that the training never had, and had; mean over regions",
    "choice": "the chosen level against the region under the click that it fits best; mean over clicks",
}


def measure(table: PromptTable) -> dict[str, Values]:
    """What the prompts of some images say, by the number's name less its dataset: `one_click/miou_max`."""
    clicks, random, boxes = (table.asked_by(ask) for ask in (Ask.INNERMOST, Ask.RANDOM, Ask.BOX))
    found = {
        "one_click": one_click(clicks),
        "random_click": one_click(random),
        "granularity": granularity(clicks) | distinct_masks(clicks),
        "box_prompt": box_prompt(boxes),
        "classes": clicked_classes(clicks),
        "choice": fit_of_choice(clicks),
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
class PromptNumbers:
    """What clicks and boxes say of a dataset's split so far, image by image in their order."""

    vocabulary: Vocabulary
    is_blind: bool = False
    trained: TrainedNames | None = None  # None: it is not known what the model was trained on.
    num_images: int = 0
    parts: dict[str, list[Values]] = field(default_factory=dict)
    calibrations: list[Calibration] = field(default_factory=list)
    pairs: dict[str, list[Int64[np.ndarray, "n 2"]]] = field(default_factory=dict)

    def add(self, items: Sequence[ImageItem]) -> None:
        """Measure the images that follow.  Raises `ValueError` for one that was not asked."""
        if not items:
            return
        table = PromptTable.of(items, self.num_images)
        self.num_images += len(items)
        clicks = table.asked_by(Ask.INNERMOST)
        measured = (measure_blind if self.is_blind else measure)(table)
        if self.trained is not None:
            found = open_vocabulary(clicks, self.vocabulary, self.trained)
            measured |= {f"open_vocabulary/{name}": values for name, values in found.items()}
        for name, values in measured.items():
            self.parts.setdefault(name, []).append(values)
        self.calibrations.append(Calibration.of(clicks))
        for what, pairs in confusions(clicks).items():
            self.pairs.setdefault(what, []).append(pairs)

    def values(self) -> dict[str, Values]:
        """All values by name; what nothing was measured for is absent."""
        joined = {name: Values.join(parts) for name, parts in self.parts.items()}
        return {name: values for name, values in joined.items() if len(values)}

    def sums(self) -> dict[str, tuple[float, int]]:
        """The sum of each number's values, and how many there are."""
        return {name: (float(values.value.sum()), len(values)) for name, values in self.values().items()}

    def confusion(self, what: str) -> Int64[np.ndarray, "t n"]:
        """How often a region of each name (row) was taken for each (column); `what` is `object` or `part`.

        The last column is what was given no name.
        """
        num_names = len(self.vocabulary.objects if what == "object" else self.vocabulary.parts)
        counts = np.zeros((num_names, num_names + 1), np.int64)
        for pairs in self.pairs.get(what, []):
            np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
        return counts

    def compute(self) -> dict[str, Numbers]:
        """The numbers of every protocol that has any, by its name."""
        by_protocol: dict[str, dict[str, Values]] = {}
        for name, values in self.values().items():
            protocol, _, number = name.partition("/")
            by_protocol.setdefault(protocol, {})[number] = values
        found = {protocol: self._means(protocol, values) for protocol, values in by_protocol.items()}
        if not self.is_blind and self.calibrations:
            calibration = Calibration.join(self.calibrations)
            if numbers := calibration.numbers():
                convention = "predicted IoU against the best IoU under the click, all levels"
                found["iou_calibration"] = Numbers(convention, numbers, lambda: calibration.sums(self.num_images))
        return found

    def _means(self, protocol: str, values: Mapping[str, Values]) -> Numbers:
        numbers = {name: float(one.value.sum()) / len(one) for name, one in values.items()}
        return Numbers(CONVENTIONS[protocol], numbers, lambda: PromptMeans(self.num_images, self.vocabulary, values))


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
