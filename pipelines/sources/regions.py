"""Collects the regions of one image, and what of them has to be dropped and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Integer

from pipelines.sources.categories import Category
from pipelines.sources.source import Read, Rejected
from pipelines.sources.stored_image import StoredImage
from semsam.data import rle
from semsam.data.schema import Kind, Record, Region

Box = tuple[float, float, float, float]  # x1, y1, x2, y2


class Regions:
    """The regions of one image in the order in which they are added.

    Every `add_` returns the new region's index, or None when the region is unusable and was dropped.  Boxes of masks
    are recomputed from the mask: tight, in pixel edges (largest index + 1); annotated ones are kept only where a
    source gives them, for average precision to be measured on.
    """

    def __init__(self, sample_id: str, image: StoredImage) -> None:
        self.sample_id = sample_id
        self.image = image
        self.file = ""  # The annotation file that is being read, for messages.
        self.regions: list[Region] = []
        self.dropped: list[Rejected] = []

    def drop(self, reason: str, detail: str) -> None:
        """Count a region that the record will not hold, or not with all that it says."""
        self.dropped.append(Rejected(reason, self.sample_id, f"{self.file}: {detail}" if self.file else detail))

    def add_rle(
        self,
        counts: bytes,
        annotation_id: str,
        kind: Kind,
        category: Category | None = None,
        *,
        area: float | None = None,
        box_xywh: Sequence[float] | None = None,
        parent: int | None = None,
        is_crowd: bool = False,
    ) -> int | None:
        """Add a mask given as COCO counts, which are stored as they are; drops "broken RLE" and "empty mask".

        `box_xywh` is the annotated box.  Drops "box off its mask", and takes the mask's, where the two do not meet.
        """
        try:
            box = rle.box_xyxy(counts, self.image.height, self.image.width)
        except ValueError as error:
            self.drop("broken RLE", f"annotation {annotation_id}: {error}")
            return None
        if box[2] == 0:
            self.drop("empty mask", f"annotation {annotation_id}")
            return None
        if box_xywh is not None:
            annotated = self._in_image(box_xywh)
            if boxes_meet(annotated, box):
                box = annotated
            else:
                self.drop("box off its mask", f"annotation {annotation_id}: {box_xywh!r}")
        return self._add(
            Region(
                annotation_id=annotation_id,
                rle=counts,
                box_xyxy=box,
                area=float(rle.area(counts)) if area is None else area,
                kind=kind,
                object_category=category.object if category else None,
                part_category=category.part if category else None,
                parent=parent,
                is_thing=category.thing if category else True,
                is_crowd=is_crowd,
            )
        )

    def add_mask(
        self,
        mask: Bool[np.ndarray, "h w"],
        annotation_id: str,
        kind: Kind,
        category: Category | None = None,
        *,
        parent: int | None = None,
        is_crowd: bool = False,
    ) -> int | None:
        """Add a dense mask of the image's size; drops "empty mask"."""
        counts = rle.encode(mask)
        return self.add_rle(counts, annotation_id, kind, category, parent=parent, is_crowd=is_crowd)

    def add_box(
        self,
        xywh: Sequence[float],
        annotation_id: str,
        kind: Kind,
        category: Category,
        *,
        area: float | None,
        is_crowd: bool,
        parent: int | None = None,
    ) -> int | None:
        """Add a box without a mask, clipped to the image; drops "empty box" (or wholly outside)."""
        x1, y1, x2, y2 = box = self._in_image(xywh)
        if x2 <= x1 or y2 <= y1:
            self.drop("empty box", f"annotation {annotation_id}: {xywh!r}")
            return None
        return self._add(
            Region(
                annotation_id=annotation_id,
                rle=None,
                box_xyxy=box,
                area=xywh[2] * xywh[3] if area is None else area,
                kind=kind,
                object_category=category.object,
                part_category=category.part,
                parent=parent,
                is_thing=category.thing,
                is_crowd=is_crowd,
            )
        )

    def read(self, dataset: str, split: str, **checked: tuple[int, ...]) -> Read:
        """The finished record; `checked` are the fields of federated datasets."""
        image = self.image
        record = Record(
            dataset=dataset,
            split=split,
            sample_id=self.sample_id,
            image=image.data,
            height=image.height,
            width=image.width,
            original_height=image.height,
            original_width=image.width,
            regions=tuple(self.regions),
            **checked,
        )
        return Read(record, tuple(self.dropped))

    def _in_image(self, xywh: Sequence[float]) -> Box:
        """The box cut at the image's border, rounded as the record stores it: a sliver cannot become empty later."""
        x, y, w, h = xywh
        corners = [max(x, 0), max(y, 0), min(x + w, self.image.width), min(y + h, self.image.height)]
        x1, y1, x2, y2 = np.array(corners, "f4").tolist()
        return x1, y1, x2, y2

    def _add(self, region: Region) -> int:
        self.regions.append(region)
        return len(self.regions) - 1


def boxes_meet(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes, as x1, y1, x2, y2, have an area in common."""
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


def masks_of(ids: Integer[np.ndarray, "h w"]) -> Iterator[tuple[int, Bool[np.ndarray, "h w"]]]:
    """Each non-zero id of an id map, ascending, with its pixels."""
    ids = np.asfortranarray(ids)  # RLE runs down the columns.
    flat = ids.ravel(order="F")
    run_starts = np.diff(flat, prepend=~flat[:1]) != 0  # A hundredth of the pixels to sort.
    for value in np.unique(flat[run_starts]).tolist():
        if value:
            yield value, ids == value
