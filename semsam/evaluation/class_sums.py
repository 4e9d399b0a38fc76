"""Numbers that are quotients of sums over images, class by class: panoptic quality, semantic IoU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from semsam.evaluation.numbers import present

_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class ClassSums(ABC):
    """Sums of every image and class in rows: an image has few of the classes."""

    num_images: int
    names: tuple[str, ...]
    image: Int64[np.ndarray, " s"]
    category: Int64[np.ndarray, " s"]
    sums: Float64[np.ndarray, "s columns"]

    @abstractmethod
    def class_numbers(self, totals: Float64[np.ndarray, "r c columns"]) -> dict[str, Float64[np.ndarray, "r c"]]:
        """The numbers of each class from its sums; NaN for a class that does not count."""

    @abstractmethod
    def headline(self, totals: Float64[np.ndarray, "r c columns"]) -> dict[str, Float64[np.ndarray, " r"]]:
        """The protocol's numbers; NaN where no class counts."""

    def resampled(
        self, weights: Int64[np.ndarray, "r n"], names: Collection[str] | None = None
    ) -> dict[str, Float64[np.ndarray, " r"]]:
        """As `Contributions` says."""
        pieces = [
            self.headline(self._totals(weights[first : first + _RESAMPLES_AT_ONCE]))
            for first in range(0, len(weights), _RESAMPLES_AT_ONCE)
        ]
        kept = [name for name in pieces[0] if names is None or name in names]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in kept}

    def resampled_classes(self, weights: Int64[np.ndarray, "r n"]) -> dict[str, dict[str, Float64[np.ndarray, " r"]]]:
        """As `Contributions` says."""
        columns = self.class_numbers(self._totals(weights))
        table = {label: {name: v[:, c] for name, v in columns.items()} for c, label in enumerate(self.names)}
        return {label: row for label, row in table.items() if not all(np.isnan(value).all() for value in row.values())}

    def values(self) -> dict[str, float]:
        """The numbers of all images, each once."""
        return present({name: value[0] for name, value in self.headline(self._all()).items()})

    def per_class(self) -> dict[str, dict[str, float]]:
        """As `Contributions` says."""
        table = self.resampled_classes(np.ones((1, self.num_images), np.int64))
        return {label: present({name: value[0] for name, value in row.items()}) for label, row in table.items()}

    def per_image(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """As `Contributions` says: the same numbers as if there were this image alone."""
        dense = np.zeros((self.num_images, len(self.names), self.sums.shape[1]))
        dense[self.image, self.category] = self.sums
        return self.headline(dense)

    def _all(self) -> Float64[np.ndarray, "1 c columns"]:
        return self._totals(np.ones((1, self.num_images), np.int64))

    def _totals(self, weights: Int64[np.ndarray, "r n"]) -> Float64[np.ndarray, "r c columns"]:
        """The sums over the chosen images.  Row by row in the order of images: the same bytes on every machine."""
        totals = np.zeros((len(weights), len(self.names), self.sums.shape[1]))
        order = np.argsort(self.category, kind="stable")
        classes, starts = np.unique(self.category[order], return_index=True)
        if not len(classes):
            return totals
        image = self.image[order]
        for column in range(self.sums.shape[1]):
            weighted = weights[:, image] * self.sums[order, column]
            totals[:, classes, column] = np.add.reduceat(weighted, starts, axis=1)
        return totals


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient; NaN where nothing was counted."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)


def mean_where(values: Float64[np.ndarray, "r c"], counts: np.ndarray) -> Float64[np.ndarray, " r"]:
    """Mean over the classes that count; NaN where none does."""
    return ratio(np.where(counts, values, 0).sum(1), np.asarray(counts).sum(1))
