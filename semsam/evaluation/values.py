"""Numbers whose mean is a metric: each with the image and the class that it is of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from semsam.data.manifest import Vocabulary
from semsam.evaluation.class_sums import ratio


@dataclass(frozen=True)
class Values:
    """One number per region or click, in the order of the images."""

    value: Float64[np.ndarray, " v"]
    image: Int64[np.ndarray, " v"]  # Position of the image among those that were evaluated.
    category: Int64[np.ndarray, " v"]  # The name that the number is of; -1 where there is none.

    @staticmethod
    def of(
        value: Float[np.ndarray, " v"], image: Int64[np.ndarray, " v"], category: Int64[np.ndarray, " v"] | None = None
    ) -> Values:
        """Values in float64, so that sums of millions are exact enough; without a class where none is given."""
        names = np.full(len(value), -1, np.int64) if category is None else category.astype(np.int64)
        return Values(value.astype(np.float64), image.astype(np.int64), names)

    @staticmethod
    def join(parts: Sequence[Values]) -> Values:
        """All values, one part after the other."""
        return Values(*(np.concatenate([vars(one)[name] for one in parts]) for name in ("value", "image", "category")))

    def __len__(self) -> int:
        return len(self.value)

    def where(self, kept: Bool[np.ndarray, " v"]) -> Values:
        """Some of the values."""
        return Values(self.value[kept], self.image[kept], self.category[kept])

    def by_image(self, num_images: int) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """The sum of each image's values, and how many there are."""
        return np.bincount(self.image, self.value, num_images), np.bincount(self.image, minlength=num_images)

    def by_category(self) -> dict[int, tuple[float, int]]:
        """Mean and number of values of each name."""
        names = np.unique(self.category[self.category >= 0]).tolist()
        return {name: (float(one.mean()), len(one)) for name in names for one in [self.value[self.category == name]]}


@dataclass(frozen=True)
class PromptMeans:
    """What every image adds to means over prompts, as `Contributions`."""

    num_images: int
    vocabulary: Vocabulary
    values: Mapping[str, Values]  # By the number's name; those of `part_...` are of part names.

    def resampled(
        self, weights: Int64[np.ndarray, "r n"], names: Collection[str] | None = None
    ) -> dict[str, Float64[np.ndarray, " r"]]:
        """As `Contributions` says."""
        chosen = weights.astype(np.float64)
        found = {}
        for name, values in self.values.items():
            if names is None or name in names:
                total, count = values.by_image(self.num_images)
                found[name] = ratio(chosen @ total, chosen @ count)
        return found

    def resampled_classes(self, weights: Int64[np.ndarray, "r n"]) -> dict[str, dict[str, Float64[np.ndarray, " r"]]]:
        """As `Contributions` says."""
        rows: dict[str, dict[str, Float64[np.ndarray, " r"]]] = {}
        for number, values in self.values.items():
            for category in np.unique(values.category[values.category >= 0]).tolist():
                total, count = values.where(values.category == category).by_image(self.num_images)
                means = ratio(weights.astype(np.float64) @ total, weights.astype(np.float64) @ count)
                rows.setdefault(self._names(number)[category], {})[number] = means
        return rows

    def per_class(self) -> dict[str, dict[str, float]]:
        """As `Contributions` says; `<number>_count` is how many prompts a class has."""
        rows: dict[str, dict[str, float]] = {}
        for number, values in self.values.items():
            for category, (mean, count) in values.by_category().items():
                name = self._names(number)[category]
                rows.setdefault(name, {}).update({number: mean, f"{number}_count": count})
        return rows

    def per_image(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """As `Contributions` says."""
        return {name: ratio(*values.by_image(self.num_images)) for name, values in self.values.items()}

    def _names(self, number: str) -> tuple[str, ...]:
        return self.vocabulary.parts if number.startswith("part_") else self.vocabulary.objects
