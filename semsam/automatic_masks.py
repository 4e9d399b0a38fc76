"""Masks of everything in an image: a grid of clicks, of whose answers the sure, stable and different ones are kept.

The rules and defaults are those of the released mask generator (SAM's, arXiv 2304.02643, appendix B), except that masks
have the photo's own size, and that clicks do not influence each other unless the predictor's style says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from semsam.config import AnyFloat, Count, Positive, Share, Weight, settings
from semsam.data import rle
from semsam.data.images import Photo
from semsam.detections import detections
from semsam.encoded_image import EncodedImage
from semsam.mask_encoding import encode_masks, mask_areas
from semsam.ops.boxes import non_maximum_suppression
from semsam.predictor import Decoded, Predictor, best_name

PART_SCORE = 0.5  # A mask whose part name is likelier than not is that part; else it is the object.


@settings
class AutomaticMaskSettings:
    """Which clicks are made, and which of their masks are kept."""

    points_per_side: Positive = 32  # The grid has its square of clicks, at the centres of equal cells.
    points_per_batch: Positive = 200  # Clicks decoded together: what memory depends on.
    levels: tuple[Count, ...] | None = None  # Of the model, by number; None: all.
    min_iou: AnyFloat = 0.88  # Masks are kept whose predicted IoU is greater,
    min_stability: Share = 0.92  # and whose stability (see `stability_scores`) is at least this.
    stability_offset: Weight = 1.0
    max_overlap: Share = 0.7  # Of two masks whose boxes have a greater IoU only the better one is kept.
    class_aware: bool = False  # Masks that got different names do not compete.
    min_region_area: Count = 10  # Smaller holes are filled and smaller islands removed, in the photo's pixels; 0: none.
    images_at_once: Positive = 1  # Images of one size that are encoded together.


@dataclass(frozen=True)
class ImageMasks:
    """The `m` masks found in an image of `height` x `width` pixels, the best predicted IoU first."""

    height: int
    width: int
    rles: tuple[bytes, ...]  # COCO's compressed `counts`.
    boxes_xyxy: Float[np.ndarray, "m 4"]  # Tight, in pixel edges.
    areas: Int64[np.ndarray, " m"]
    iou_predictions: Float[np.ndarray, " m"]
    stability_scores: Float[np.ndarray, " m"]
    points_xy: Float[np.ndarray, "m 2"]  # The click that each mask answers.
    levels: Int64[np.ndarray, " m"]
    object_names: tuple[str | None, ...]  # The likeliest; None without a vocabulary, and its score 0.
    object_scores: Float[np.ndarray, " m"]
    part_names: tuple[str | None, ...]
    part_scores: Float[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.rles)

    def masks(self) -> Bool[np.ndarray, "m h w"]:
        """The masks as dense arrays, which takes m * height * width bytes."""
        dense = np.zeros((len(self), self.height, self.width), bool)
        for row, counts in zip(dense, self.rles, strict=True):
            row[:] = rle.decode(counts, self.height, self.width)
        return dense

    def to_supervision(self, object_names: Sequence[str] = ()) -> Any:
        """`supervision.Detections` of the masks, in their order, with dense masks.

        Class ids are positions in `object_names`, which are the predictor's where it had a vocabulary.  The confidence
        is the predicted IoU, times the name's score where there is one, as in COCO's results.  `data`: see
        `semsam.detections`, and `level`, `iou_prediction`, `stability_score`, `object_score`, `part_score`.  Raises
        `ValueError` for a mask whose name is not among `object_names`, and where the library is not installed.
        """
        has_names = any(name is not None for name in self.object_names)
        unknown = [name for name in self.object_names if has_names and name not in object_names]
        if unknown:
            raise ValueError(f"object_names: {unknown[0]!r} is a mask's name, and not among {list(object_names)}")
        scores = self.object_scores if has_names else np.ones(len(self))
        return detections(
            self.boxes_xyxy,
            self.masks(),
            self.iou_predictions * scores,
            [object_names.index(name) for name in self.object_names if name is not None] if object_names else None,
            {
                "class_name": self.object_names,
                "part_name": self.part_names,
                "level": self.levels.tolist(),
                "iou_prediction": self.iou_predictions.tolist(),
                "stability_score": self.stability_scores.tolist(),
                "object_score": self.object_scores.tolist(),
                "part_score": self.part_scores.tolist(),
            },
        )

    def take(self, kept: Int64[np.ndarray, " k"]) -> ImageMasks:
        """These masks, in this order."""
        taken: dict[str, Any] = {
            name: values[kept] if isinstance(values, np.ndarray) else tuple(values[i] for i in kept)
            for name, values in self._columns().items()
        }
        return replace(self, **taken)

    @staticmethod
    def join(parts: Sequence[ImageMasks]) -> ImageMasks:
        """The masks of all parts, which are of one image."""
        of_parts = [part._columns() for part in parts]
        joined: dict[str, Any] = {
            name: np.concatenate([columns[name] for columns in of_parts])
            if isinstance(values, np.ndarray)
            else sum((columns[name] for columns in of_parts), ())
            for name, values in of_parts[0].items()
        }
        return replace(parts[0], **joined)

    def _columns(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)[2:]}


class AutomaticMasks:
    """Finds the masks of images with a predictor, whose vocabulary names them.

    `points_xy` are clicks to make in place of the grid, as fractions of an image's width and height, below 1.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: AutomaticMaskSettings | None = None,
        points_xy: Float[np.ndarray, "n 2"] | None = None,
    ) -> None:
        self.predictor = predictor
        self.settings = settings or AutomaticMaskSettings()
        self.points_xy = points_xy
        predictor.chosen_levels(self.settings.levels)  # Refuses what the model does not have.

    def of_image(self, photo: Photo) -> ImageMasks:
        """The masks of one photo (see `read_photo` for what it may be)."""
        [found] = self.of_images([photo])
        return found

    def of_images(self, photos: Iterable[Photo]) -> Iterator[ImageMasks]:
        """The masks of each photo, in order.

        No more than `images_at_once` photos and, of the masks, one batch of clicks are in memory at a time; what was
        found is kept as run lengths.
        """
        left = iter(photos)
        while some := list(islice(left, self.settings.images_at_once)):
            for image in self.predictor.encode(some):
                yield self._of_encoded(image)

    @torch.no_grad()
    def _of_encoded(self, image: EncodedImage) -> ImageMasks:
        self.predictor.set_image(image)
        if self.points_xy is None:
            points = grid_points(self.settings.points_per_side, *image.size)
        else:
            points = self.points_xy * np.array(image.size[::-1])
        parts = []
        for start in range(0, len(points), self.settings.points_per_batch):
            some = points[start : start + self.settings.points_per_batch]
            for decoded in self.predictor.decode(some, levels=self.settings.levels):
                parts.append(self._candidates(image, decoded, some))
                some = some[len(decoded.iou_predictions) :]
        found = suppress(ImageMasks.join(parts), self.settings)
        if self.settings.min_region_area:
            found = clean(found, self.settings)
        return found.take(np.argsort(-found.iou_predictions, kind="stable"))

    def _candidates(self, image: EncodedImage, decoded: Decoded, points: Float[np.ndarray, "n 2"]) -> ImageMasks:
        """The sure and stable masks of some clicks."""
        levels = np.array(self.predictor.chosen_levels(self.settings.levels), np.int64)
        queries = torch.nonzero(decoded.iou_predictions.flatten() > self.settings.min_iou)[:, 0]
        rles: list[bytes] = []
        stable: list[Tensor] = []
        stabilities: list[Tensor] = []
        embeddings = decoded.mask_embeddings.flatten(0, 1)
        for some in queries.split(image.masks_at_once()):
            logits = image.mask_logits(embeddings[some])
            stability = stability_scores(logits, self.settings.stability_offset)
            kept = torch.nonzero(stability >= self.settings.min_stability)[:, 0]
            rles += encode_masks(image.at_own_size(logits[kept]) > 0)
            stable.append(some[kept])
            stabilities.append(stability[kept])
        chosen = torch.cat(stable)
        rows = chosen.cpu().numpy()

        def of_chosen(values: Float[Tensor, "n k *x"]) -> np.ndarray:
            return values.flatten(0, 1)[chosen].cpu().numpy()

        objects = _best_names(self.predictor.object_names, of_chosen(decoded.object_scores))
        parts = _best_names(self.predictor.part_names, of_chosen(decoded.part_scores))
        boxes, areas = _measured(rles, *image.size)
        found = ImageMasks(
            *image.size,
            rles=tuple(rles),
            boxes_xyxy=boxes,
            areas=areas,
            iou_predictions=of_chosen(decoded.iou_predictions),
            stability_scores=torch.cat(stabilities).cpu().numpy(),
            points_xy=points[rows // max(len(levels), 1)],
            levels=levels[rows % max(len(levels), 1)],
            object_names=objects[0],
            object_scores=objects[1],
            part_names=parts[0],
            part_scores=parts[1],
        )
        return found.take(np.flatnonzero(found.areas))  # A small photo may have no pixel for a mask of its input.


def grid_points(per_side: int, height: int, width: int) -> Float[np.ndarray, "n 2"]:
    """The centres of `per_side` x `per_side` equal cells of an image, row by row."""
    fractions = (np.arange(per_side) + 0.5) / per_side
    xs, ys = np.meshgrid(fractions * width, fractions * height)
    return np.stack([xs.ravel(), ys.ravel()], axis=1)


def stability_scores(logits: Float[Tensor, "m h w"], offset: float) -> Float[Tensor, " m"]:
    """How little each mask changes with its threshold: its area at `offset` over that at minus `offset`; 0 for none."""
    inner, outer = (mask_areas(logits > bound) for bound in (offset, -offset))
    return inner / outer.clamp(min=1)


def suppress(found: ImageMasks, settings: AutomaticMaskSettings) -> ImageMasks:
    """The masks that no better one overlaps, the best predicted IoU first."""
    return found.take(_different(found, found.iou_predictions, settings))


def clean(found: ImageMasks, settings: AutomaticMaskSettings) -> ImageMasks:
    """The masks without small holes and islands, and of those that thereby overlap too much the untouched ones."""
    size = (found.height, found.width)
    rles, changed = list(found.rles), np.zeros(len(found), bool)
    for i, (counts, box) in enumerate(zip(found.rles, found.boxes_xyxy, strict=True)):
        mask = rle.decode(counts, *size)
        # A margin as wide as that shows whether what surrounds the mask is large.
        x1, y1, x2, y2 = (box + np.array([-1, -1, 1, 1]) * settings.min_region_area).clip(min=0).astype(int)
        inside = (slice(y1, y2), slice(x1, x2))
        mask[inside], changed[i] = without_small_regions(mask[inside], settings.min_region_area)
        if changed[i]:
            rles[i] = rle.encode(mask)
    boxes, areas = _measured(rles, *size)
    cleaned = replace(found, rles=tuple(rles), boxes_xyxy=boxes, areas=areas)
    return cleaned.take(_different(cleaned, 1.0 - changed, settings))


def without_small_regions(mask: Bool[np.ndarray, "h w"], min_area: int) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """The mask with its small holes filled, then its small islands removed; and whether that changed it.

    Regions hold together over corners, too.  Of a mask that is all small islands the largest one stays.
    """
    holes, hole_areas = _regions(~mask)
    small_holes = np.flatnonzero(hole_areas < min_area) + 1
    filled = mask | np.isin(holes, small_holes) if len(small_holes) else mask
    islands, island_areas = _regions(filled)
    small_islands = np.flatnonzero(island_areas < min_area) + 1
    if len(small_islands) and len(small_islands) == len(island_areas):
        small_islands = np.delete(small_islands, island_areas.argmax())
    kept = filled & ~np.isin(islands, small_islands) if len(small_islands) else filled
    return kept, bool((kept != mask).any())


def _regions(mask: Bool[np.ndarray, "h w"]) -> tuple[np.ndarray, Int64[np.ndarray, " r"]]:
    """Each pixel's region, from 1 on and 0 outside, and the regions' areas."""
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return regions, statistics[1:, cv2.CC_STAT_AREA].astype(np.int64)


def _different(
    found: ImageMasks, scores: Float[np.ndarray, " m"], settings: AutomaticMaskSettings
) -> Int64[np.ndarray, " k"]:
    classes = None
    if settings.class_aware:
        parts = [
            name if score > PART_SCORE else None
            for name, score in zip(found.part_names, found.part_scores, strict=True)
        ]
        numbers: dict[tuple[str | None, str | None], int] = {}
        pairs = zip(found.object_names, parts, strict=True)
        classes = np.array([numbers.setdefault(pair, len(numbers)) for pair in pairs], np.int64)
    # Up to the last pixel instead of its edge, as the released generator measures boxes.
    boxes = found.boxes_xyxy - np.array([0, 0, 1, 1])
    return non_maximum_suppression(boxes, scores, settings.max_overlap, classes)


def _measured(
    rles: Sequence[bytes], height: int, width: int
) -> tuple[Float[np.ndarray, "m 4"], Int64[np.ndarray, " m"]]:
    boxes = [rle.box_xyxy(counts, height, width) for counts in rles]
    return np.array(boxes, np.float64).reshape(-1, 4), np.array([rle.area(counts) for counts in rles], np.int64)


def _best_names(
    names: Sequence[str], scores: Float[np.ndarray, "m x"]
) -> tuple[tuple[str | None, ...], Float[np.ndarray, " m"]]:
    best = [best_name(names, row) or (None, 0.0) for row in scores]
    return tuple(name for name, _ in best), np.array([score for _, score in best], np.float64)
