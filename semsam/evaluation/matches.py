"""Average precision from the matches of every image, for any choice of images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64

from semsam.evaluation.class_sums import ratio
from semsam.evaluation.matching import AREAS, IOU_THRESHOLDS
from semsam.evaluation.numbers import present

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class _Line:
    """What one precision-recall curve of every class needs: detections that count, in the order of scores.

    Precision is looked at where a true one is: between them it only falls.
    """

    image: Int64[np.ndarray, " kept"]
    true_place: Int64[np.ndarray, " true"]  # In `image`.
    true_image: Int64[np.ndarray, " true"]
    true_edges: Int64[np.ndarray, " c+1"]  # Where each class begins in `true_place`.
    kept_edges: Int64[np.ndarray, " c+1"]  # And in `image`.


@dataclass(frozen=True)
class Matches:
    """Every detection and what became of it.  Detections are in the order of class, score, image, and of the item."""

    num_images: int
    names: tuple[str, ...]
    max_detections: tuple[int, ...]  # Of one image and class; recalls are given for each.
    image: Int64[np.ndarray, " d"]
    category: Int64[np.ndarray, " d"]
    rank: Int64[np.ndarray, " d"]  # In its image and class.
    score: Float64[np.ndarray, " d"]
    is_true: Bool[np.ndarray, "t a d"]
    is_ignored: Bool[np.ndarray, "t a d"]
    # The regions that were to be found; of each whether its size counts.
    truth_image: Int64[np.ndarray, " g"]
    truth_category: Int64[np.ndarray, " g"]
    truth_counts: Bool[np.ndarray, "a g"]

    def values(self) -> dict[str, float]:
        """The numbers of all images, each once: ap, ap50, ap75, ap_<size>, ar<most detections>, ar_<size>."""
        return present({name: value[0] for name, value in self.resampled(self._once()).items()})

    def resampled(
        self, weights: Int64[np.ndarray, "r n"], names: Collection[str] | None = None
    ) -> dict[str, Float64[np.ndarray, " r"]]:
        """As `Contributions` says; without sizes and recalls a quarter of the work."""
        sizes = 1 if names is not None and {"ap", "ap50", "ap75"}.issuperset(names) else len(AREAS)
        seen = self._of_classes_with_truth
        rows = [seen._summary(*seen._curves(row, sizes)) for row in weights]
        return {name: np.array([row[name] for row in rows]) for name in rows[0] if names is None or name in names}

    def resampled_classes(self, weights: Int64[np.ndarray, "r n"]) -> dict[str, dict[str, Float64[np.ndarray, " r"]]]:
        """As `Contributions` says: ap and ap50 of every class that there is truth for."""
        seen = self._of_classes_with_truth
        curves = np.stack([seen._curves(row, 1)[0][:, 0] for row in weights])  # [r t c]
        return {name: {"ap": curves[:, :, c].mean(1), "ap50": curves[:, 0, c]} for c, name in enumerate(seen.names)}

    def per_class(self) -> dict[str, dict[str, float]]:
        """As `Contributions` says; and how many regions there were to be found."""
        seen = self._of_classes_with_truth
        precision, recall = seen._curves(self._once()[0], len(AREAS))
        regions = np.bincount(seen.truth_category[seen.truth_counts[0]], minlength=len(seen.names))
        table = {}
        for c, name in enumerate(seen.names):
            summary = seen._summary(precision[..., [c]], recall[..., [c]])
            table[name] = {**present(summary), "regions": float(regions[c])}
        return table

    def precisions(self, iou: float) -> Float64[np.ndarray, " 101"]:
        """Precision at each of `RECALLS`, mean over classes: the curve whose own mean is the AP at this threshold.

        Regions of all sizes; NaN where there is no truth.  Raises `ValueError` for an IoU that is no threshold.
        """
        places = np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou))
        if not len(places):
            raise ValueError(f"no detections are matched at IoU {iou}; thresholds are {IOU_THRESHOLDS.tolist()}")
        seen = self._of_classes_with_truth
        if not seen.names:
            return np.full(len(RECALLS), np.nan)
        regions = np.bincount(seen.truth_category[seen.truth_counts[0]], minlength=len(seen.names))
        line = seen._lines[int(places[0])][0]
        falling, _ = _precisions(line, self._once()[0], regions.astype(np.int64), _needed(regions))
        return falling.mean(0)[::-1]

    def per_image(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """As `Contributions` says: the share found, mean over thresholds, and wrong detections at IoU 0.5."""
        found = np.zeros(self.num_images)
        for is_true in self.is_true[:, 0] & ~self.is_ignored[:, 0]:
            found += np.bincount(self.image[is_true], minlength=self.num_images)
        wrong = ~self.is_true[0, 0] & ~self.is_ignored[0, 0]
        regions = np.bincount(self.truth_image[self.truth_counts[0]], minlength=self.num_images)
        return {
            "found": ratio(found / len(IOU_THRESHOLDS), regions),
            "wrong50": np.bincount(self.image[wrong], minlength=self.num_images).astype(np.float64),
        }

    def _once(self) -> Int64[np.ndarray, "1 n"]:
        return np.ones((1, self.num_images), np.int64)

    @cached_property
    def _of_classes_with_truth(self) -> Matches:
        """The same of the classes that have an AP: a vocabulary has many names that a dataset has no region of."""
        regions = np.bincount(self.truth_category[self.truth_counts[0]], minlength=len(self.names))
        kept = np.flatnonzero(regions)
        place = np.cumsum(regions > 0) - 1
        detection, truth = regions[self.category] > 0, regions[self.truth_category] > 0
        return replace(
            self,
            names=tuple(self.names[c] for c in kept),
            image=self.image[detection],
            category=place[self.category[detection]],
            rank=self.rank[detection],
            score=self.score[detection],
            is_true=self.is_true[:, :, detection],
            is_ignored=self.is_ignored[:, :, detection],
            truth_image=self.truth_image[truth],
            truth_category=place[self.truth_category[truth]],
            truth_counts=self.truth_counts[:, truth],
        )

    @cached_property
    def _lines(self) -> list[list[_Line]]:
        """By threshold and size."""
        return [[self._line(t, a) for a in range(len(AREAS))] for t in range(len(IOU_THRESHOLDS))]

    def _line(self, t: int, a: int) -> _Line:
        kept = np.flatnonzero(~self.is_ignored[t, a])
        true_place = np.flatnonzero(self.is_true[t, a, kept])
        classes = np.arange(len(self.names) + 1)
        return _Line(
            image=self.image[kept],
            true_place=true_place,
            true_image=self.image[kept[true_place]],
            true_edges=np.searchsorted(self.category[kept[true_place]], classes),
            kept_edges=np.searchsorted(self.category[kept], classes),
        )

    @cached_property
    def _first_true(self) -> list[list[tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]]]:
        """Image and class of the true detections that remain if an image may have fewer; by limit and threshold."""
        lists = []
        for most in self.max_detections[:-1]:
            kept = [~ignored[0] & true[0] & (self.rank < most) for ignored, true in self._pairs()]
            lists.append([(self.image[one], self.category[one]) for one in kept])
        return lists

    def _pairs(self) -> list[tuple[Bool[np.ndarray, "a d"], Bool[np.ndarray, "a d"]]]:
        return list(zip(self.is_ignored, self.is_true, strict=True))

    def _curves(
        self, weights: Int64[np.ndarray, " n"], num_sizes: int
    ) -> tuple[Float64[np.ndarray, "t a c"], Float64[np.ndarray, "l t c"]]:
        """AP of each threshold, size and class, and recall: by size, then by the smaller limits; NaN without truth.

        Of one size alone, all of them, the recalls by the smaller limits are left out too.
        """
        size = len(IOU_THRESHOLDS), len(AREAS), len(self.names)
        precision = np.full(size, np.nan)
        recall = np.full((len(AREAS) + len(self.max_detections) - 1, size[0], size[2]), np.nan)
        truth_weights = weights[self.truth_image]
        for a in range(num_sizes):
            regions = np.bincount(self.truth_category, self.truth_counts[a] * truth_weights, size[2]).astype(np.int64)
            needed = _needed(regions)
            for t in range(size[0]):
                precision[t, a], found = _average_precision(self._lines[t][a], weights, regions, needed)
                recall[a, t] = ratio(found, regions)
            if a == 0 and num_sizes > 1:
                for i, by_threshold in enumerate(self._first_true):
                    for t, (image, category) in enumerate(by_threshold):
                        found = np.bincount(category, weights[image], size[2])
                        recall[len(AREAS) + i, t] = ratio(found, regions)
        return precision, recall

    def _summary(
        self, precision: Float64[np.ndarray, "t a c"], recall: Float64[np.ndarray, "l t c"]
    ) -> dict[str, np.floating]:
        summary = {
            "ap": _mean(precision[:, 0]),
            "ap50": _mean(precision[0, 0]),
            "ap75": _mean(precision[5, 0]),
            **{f"ap_{name}": _mean(precision[:, a]) for a, name in enumerate(AREAS) if a},
        }
        for i, most in enumerate(self.max_detections[:-1]):
            summary[f"ar{most}"] = _mean(recall[len(AREAS) + i])
        summary[f"ar{self.max_detections[-1]}"] = _mean(recall[0])
        return summary | {f"ar_{name}": _mean(recall[a]) for a, name in enumerate(AREAS) if a}


def _needed(regions: Int64[np.ndarray, " c"]) -> Int64[np.ndarray, "c 101"]:
    """How many true detections give each recall, found / regions in floating point as it is computed elsewhere."""
    divisor = np.maximum(regions, 1)[:, None]
    needed = np.ceil(RECALLS * divisor).astype(np.int64)
    needed -= ((needed - 1) / divisor >= RECALLS) & (needed > 0)
    needed += needed / divisor < RECALLS
    return np.maximum(needed, 1)  # Recall 0 is there from the start, and the best precision of all at the first true.


def _average_precision(
    line: _Line,
    weights: Int64[np.ndarray, " n"],
    regions: Int64[np.ndarray, " c"],
    needed: Int64[np.ndarray, "c 101"],
) -> tuple[Float64[np.ndarray, " c"], Int64[np.ndarray, " c"]]:
    """AP of each class, and the number of regions found."""
    best, found = _precisions(line, weights, regions, needed)
    return np.where(regions > 0, best.mean(1), np.nan), found


def _precisions(
    line: _Line,
    weights: Int64[np.ndarray, " n"],
    regions: Int64[np.ndarray, " c"],
    needed: Int64[np.ndarray, "c 101"],
) -> tuple[Float64[np.ndarray, "c 101"], Int64[np.ndarray, " c"]]:
    """The best precision at each recall or a higher one, by class and falling recall; and the number of regions found.

    An image that is chosen twice has its detections one after the other: true ones raise the precision together, so
    the curve, which only looks ahead, is the same as if they had one place.
    """
    if not len(line.true_place):
        return np.zeros(needed.shape), np.zeros(len(regions), np.int64)
    so_far = np.concatenate([[0], np.cumsum(weights[line.image])])
    true_so_far = np.concatenate([[0], np.cumsum(weights[line.true_image])])
    before = so_far[line.kept_edges[:-1]], true_so_far[line.true_edges[:-1]]
    num_true = np.diff(line.true_edges)
    true = true_so_far[1:] - np.repeat(before[1], num_true)
    detections = so_far[line.true_place + 1] - np.repeat(before[0], num_true)
    precision = np.append(true / (detections + np.spacing(1)), 0.0)
    # The first place at which each class has each recall: true detections so far only rise, over all classes.
    place = np.searchsorted(true_so_far[1:], before[1][:, None] + needed)
    stop = line.true_edges[1:, None]
    is_reached = place < stop
    # Best precision of each stretch between two recalls, and then of all stretches from there on.
    best = np.maximum.reduceat(precision, np.minimum(place, stop).reshape(-1)).reshape(place.shape)
    best = np.where(is_reached, best, 0.0)
    best = np.maximum.accumulate(best[:, ::-1], axis=1)
    return best, true_so_far[line.true_edges[1:]] - before[1]


def _mean(values: np.ndarray) -> np.floating:
    known = values[~np.isnan(values)]
    return known.mean() if known.size else np.float64(np.nan)
