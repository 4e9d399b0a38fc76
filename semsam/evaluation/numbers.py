"""What a protocol gives: numbers, what each image added to them, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Float64, Int64

from semsam.evaluation.items import ImageItem


class Contributions(Protocol):
    """What every image adds to the numbers of a protocol; from it alone the numbers of any choice of images follow."""

    @property
    def num_images(self) -> int:
        """How many images were measured; positions are those of the items."""
        ...

    def resampled(
        self, weights: Int64[np.ndarray, "r n"], names: Collection[str] | None = None
    ) -> dict[str, Float64[np.ndarray, " r"]]:
        """The numbers when image i is there `weights[:, i]` times; NaN where a choice holds no truth for one.

        Of all numbers, or of those of `names` that there are.
        """
        ...

    def resampled_classes(self, weights: Int64[np.ndarray, "r n"]) -> dict[str, dict[str, Float64[np.ndarray, " r"]]]:
        """The same of the main numbers of every class: name of the class, then of the number."""
        ...

    def per_class(self) -> dict[str, dict[str, float]]:
        """The numbers of every class that has any: name of the class, then of the number."""
        ...

    def per_image(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """Numbers of single images, to find the worst; NaN where an image has none."""
        ...


@dataclass(frozen=True)
class Numbers:
    """A protocol's numbers over a dataset."""

    convention: str  # What exactly was measured, in a few words: names of a metric are read beside it.
    values: Mapping[str, float]  # What there is truth for; never NaN.
    contribute: Callable[[], Contributions]

    @cached_property
    def images(self) -> Contributions:
        """What each image added: intervals, classes, worst images.  Made when it is first asked for."""
        return self.contribute()


@dataclass(frozen=True)
class Absent:
    """Why a protocol has no numbers here."""

    reason: str


def present(values: Mapping[str, float | np.floating]) -> dict[str, float]:
    """The values without those that there is no truth for."""
    return {name: float(value) for name, value in values.items() if not np.isnan(value)}


def check_not_empty(items: Sequence[ImageItem]) -> None:
    """Raises `ValueError` where there is nothing to measure."""
    if not items:
        raise ValueError("no images to measure: the evaluation is empty")


def unanswered(items: Sequence[ImageItem], field: str) -> Absent | None:
    """Why a number may not be had from the images that were answered: some were not, so it would be another number."""
    missing = [item.sample_id for item in items if getattr(item, field) is None]
    if not missing:
        return None
    return Absent(f"{len(missing)} of {len(items)} images have no {field} answers, the first of them {missing[0]}")
