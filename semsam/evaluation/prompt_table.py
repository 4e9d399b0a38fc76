"""The prompts of many images as one table, which the protocols of clicks and boxes read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from semsam.evaluation.items import Ask, ImageItem, Prompted, join_prompted
from semsam.evaluation.values import Values


@dataclass(frozen=True)
class PromptTable:
    """Prompts with the image that each was put to, and the true names of its region (-1: none is known)."""

    prompted: Prompted
    image: Int64[np.ndarray, " p"]
    object_category: Int64[np.ndarray, " p"]
    part_category: Int64[np.ndarray, " p"]

    @staticmethod
    def of(items: Sequence[ImageItem], first_image: int = 0) -> PromptTable:
        """The prompts of neighbouring images, of which the first has the number `first_image`.

        Raises `ValueError` for an image that was not asked.
        """
        parts, images, objects, names = [], [], [], []
        for position, item in enumerate(items, first_image):
            if item.prompted is None:
                raise ValueError(f"{item.sample_id}: no prompts were put to this image")
            regions = [item.regions[region] for region in item.prompted.region]
            parts.append(item.prompted)
            images += [position] * len(regions)
            objects += [or_minus_one(region.object_category) for region in regions]
            names += [or_minus_one(region.part_category) for region in regions]
        prompted = join_prompted(parts, parts[0].iou_predictions.shape[1] if parts else 0)
        return PromptTable(prompted, *(np.array(values, np.int64) for values in (images, objects, names)))

    def __len__(self) -> int:
        return len(self.image)

    def asked_by(self, ask: Ask) -> PromptTable:
        """The prompts of one kind."""
        kept = np.flatnonzero(self.prompted.ask == ask)
        columns = (self.image, self.object_category, self.part_category)
        return PromptTable(self.prompted.take(kept), *(values[kept] for values in columns))

    def best(self) -> Int64[np.ndarray, " p"]:
        """The level that has the highest IoU with the region asked for; 0 where that has no mask."""
        return np.nan_to_num(self.prompted.ious, nan=-1.0).argmax(axis=1)

    def at(self, values: Float[np.ndarray, "p k ..."], level: Int64[np.ndarray, " p"]) -> Float[np.ndarray, "p ..."]:
        """The values of one level of each prompt."""
        return values[np.arange(len(self)), level]

    def values(self, value: Float32[np.ndarray, " p"], kept: Bool[np.ndarray, " p"] | None = None) -> Values:
        """A number for each prompt, or for some of them; its class is the object that the region shows."""
        found = Values.of(value, self.image, self.object_category)
        return found if kept is None else found.where(kept)


def or_minus_one(category: int | None) -> int:
    """The number of a name; -1 where there is none."""
    return -1 if category is None else category
