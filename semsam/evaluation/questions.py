"""What is asked about an image: prompts for its regions; and how answers to them become an item."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64

from semsam.config import Count, Seed, settings
from semsam.data.atoms import AtomMap
from semsam.data.randomness import generator
from semsam.data.schema import Record, Region
from semsam.data.training_sample import regions_to_train
from semsam.evaluation.items import BEST, Ask, ImageItem, Prompted
from semsam.everything import EverythingSettings


@settings
class Questions:
    """What an image is asked, beside an innermost click and a box for every region."""

    random_clicks: Count = 1  # Of each region: people do not click on its innermost pixel.
    seed: Seed = 0  # Of the random clicks.
    everything: EverythingSettings = field(default_factory=EverythingSettings)  # What is found without being asked for.


@dataclass(frozen=True)
class RegionPrompts:
    """`p` prompts for the regions of an image."""

    ask: Int32[np.ndarray, " p"]  # An `Ask`.
    column: Int64[np.ndarray, " p"]  # The region's in `AskedRegions`.
    click_xy: Int32[np.ndarray, "p 2"]  # A pixel; -1 for boxes.
    box_xyxy: Float[np.ndarray, "p 4"]  # Zeros for clicks.

    def __len__(self) -> int:
        return len(self.ask)

    def take(self, kept: slice) -> RegionPrompts:
        """Some of the prompts."""
        return RegionPrompts(self.ask[kept], self.column[kept], self.click_xy[kept], self.box_xyxy[kept])


class AskedRegions(NamedTuple):
    """The regions of a record that are asked for, which are those that teach."""

    places: Int32[np.ndarray, " m"]  # In the record.
    regions: tuple[Region, ...]
    atoms: AtomMap

    @staticmethod
    def of(record: Record) -> AskedRegions:
        """The regions of a record.  Raises `ValueError` for a mask that does not fit it."""
        teaching = regions_to_train(record.regions)
        regions = tuple(teaching.values())
        atoms = AtomMap.from_rles([region.rle for region in regions], record.height, record.width)
        return AskedRegions(np.array(list(teaching), np.int32), regions, atoms)

    def innermost_clicks(self) -> dict[int, tuple[int, int]]:
        """(x, y) of the innermost pixel of each region that has a mask with a pixel in it, by its column."""
        boxes, clicks = self.atoms.boxes_xyxy().astype(int).tolist(), {}
        for column in np.flatnonzero(self.atoms.areas()).tolist():
            x1, y1, x2, y2 = boxes[column]
            x, y = innermost_pixel(self.atoms.table[:, column][self.atoms.labels[y1:y2, x1:x2]])
            clicks[column] = (x1 + x, y1 + y)
        return clicks

    def prompts(self, record: Record, questions: Questions) -> RegionPrompts:
        """Innermost clicks, then random ones, then boxes, each in the order of the regions.

        Random clicks are the same in every run: they are keyed by the sample.
        """
        clicks = self.innermost_clicks()
        clicked = np.array(list(clicks), np.int64)
        drawn, boxed = np.repeat(clicked, questions.random_clicks), np.arange(len(self.regions))
        sample = hashlib.blake2b(f"{record.dataset}/{record.sample_id}".encode(), digest_size=8).digest()
        rng = generator(questions.seed, int.from_bytes(sample, "little"), "evaluation")
        ys, xs = self.atoms.random_pixels(drawn, rng)
        innermost = np.array(list(clicks.values()), np.int32).reshape(-1, 2)
        random = np.stack([xs, ys], axis=1).astype(np.int32)
        boxes = np.array([region.box_xyxy for region in self.regions], np.float64).reshape(-1, 4)
        counts = (len(clicked), len(drawn), len(boxed))
        return RegionPrompts(
            ask=np.repeat(np.array([Ask.INNERMOST, Ask.RANDOM, Ask.BOX], np.int32), counts),
            column=np.concatenate([clicked, drawn, boxed]),
            click_xy=np.concatenate([innermost, random, np.full((len(boxed), 2), -1, np.int32)]),
            box_xyxy=np.concatenate([np.zeros((len(clicked) + len(drawn), 4)), boxes]),
        )

    def under(self, click_xy: Int32[np.ndarray, "p 2"]) -> Bool[np.ndarray, "p m"]:
        """Which regions lie under each click; none under a box, whose click is at -1."""
        x, y = click_xy.T
        return self.atoms.covering(y, x) & (x >= 0)[:, None]

    def answered(
        self,
        prompts: RegionPrompts,
        chosen: Int64[np.ndarray, " p"],
        iou_predictions: Float32[np.ndarray, "p k"],
        ious: Float[np.ndarray, "p k m"],
        level_ious: Float32[np.ndarray, "p k k"],
        object_scores: Float32[np.ndarray, "p k x"],
        part_scores: Float32[np.ndarray, "p k y"],
    ) -> Prompted:
        """What is kept of answers, given as the IoU of each level with each region and the score of each name."""
        regions = [self.regions[column] for column in prompts.column]
        has_mask = np.array([region.rle is not None for region in regions], bool)
        own = np.take_along_axis(ious, prompts.column[:, None, None], axis=2)[:, :, 0]
        prompt, column = np.nonzero(self.under(prompts.click_xy))
        objects, best_object_scores = best_names(object_scores)
        parts, best_part_scores = best_names(part_scores)
        return Prompted(
            ask=prompts.ask,
            region=self.places[prompts.column],
            click_xy=prompts.click_xy,
            chosen=chosen.astype(np.int32),
            iou_predictions=iou_predictions,
            ious=np.where(has_mask[:, None], own, np.nan).astype(np.float32),
            under_starts=np.searchsorted(prompt, np.arange(len(regions) + 1)),
            under=self.places[column],
            under_ious=ious[prompt, :, column].astype(np.float32),
            level_ious=level_ious,
            objects=objects,
            object_scores=best_object_scores,
            true_object_score=_score_of(object_scores, [region.object_category for region in regions]),
            parts=parts,
            part_scores=best_part_scores,
            true_part_score=_score_of(part_scores, [region.part_category for region in regions]),
        )


def item_of(record: Record, prompted: Prompted | None = None) -> ImageItem:
    """The truth of a record, with answers to prompts or without."""
    return ImageItem(
        sample_id=record.sample_id,
        height=record.height,
        width=record.width,
        original_height=record.original_height,
        original_width=record.original_width,
        regions=record.regions,
        checked_objects=record.checked_objects,
        checked_parts=record.checked_parts,
        not_exhaustive_objects=record.not_exhaustive_objects,
        prompted=prompted,
    )


def innermost_pixel(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the mask's edge and the array's border; the first in row order of several.

    Raises `ValueError` for an empty mask.
    """
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = mask
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).reshape(-1)
    farthest = distance.max()
    if not farthest:
        raise ValueError("an empty mask has no innermost pixel")
    # Squares are whole numbers; their roots may differ in the last bits between pixels that are equally far inside.
    near = np.flatnonzero(distance > farthest * (1 - 1e-5))
    y, x = divmod(int(near[np.rint(distance[near].astype(np.float64) ** 2).argmax()]), padded.shape[1])
    return x - 1, y - 1


def best_names(
    scores: Float32[np.ndarray, "p k x"],
) -> tuple[Int32[np.ndarray, "p k best"], Float32[np.ndarray, "p k best"]]:
    """The likeliest names, -1 past the last one, and their scores; of equal ones the first."""
    order = np.argsort(-scores, axis=2, kind="stable")[:, :, :BEST]
    names, best = np.full((*scores.shape[:2], BEST), -1, np.int32), np.zeros((*scores.shape[:2], BEST), np.float32)
    names[:, :, : order.shape[2]] = order
    best[:, :, : order.shape[2]] = np.take_along_axis(scores, order, axis=2)
    return names, best


def _score_of(scores: Float32[np.ndarray, "p k x"], categories: Sequence[int | None]) -> Float32[np.ndarray, "p k"]:
    found = np.full(scores.shape[:2], np.nan, np.float32)
    for prompt, category in enumerate(categories):
        if category is not None:
            found[prompt] = scores[prompt, :, category]
    return found
