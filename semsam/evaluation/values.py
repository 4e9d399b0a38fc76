"""Numbers whose mean is a metric: each with the image and the class that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64


@dataclass(frozen=True)
class Values:
    """One number per region or click, in the order of the images."""

    value: Float[np.ndarray, " v"]
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
        return Values(
            *(np.concatenate([getattr(one, name) for one in parts]) for name in ("value", "image", "category"))
        )

    def __len__(self) -> int:
        return len(self.value)

    def where(self, kept: Bool[np.ndarray, " v"]) -> Values:
        """Some of the values."""
        return Values(self.value[kept], self.image[kept], self.category[kept])

    def by_image(self, num_images: int) -> tuple[Float[np.ndarray, " i"], Int64[np.ndarray, " i"]]:
        """The sum of each image's values, and how many there are."""
        return np.bincount(self.image, self.value, num_images), np.bincount(self.image, minlength=num_images)

    def by_category(self) -> dict[int, tuple[float, int]]:
        """Mean and number of values of each name."""
        names = np.unique(self.category[self.category >= 0]).tolist()
        return {name: (float(one.mean()), len(one)) for name in names for one in [self.value[self.category == name]]}
