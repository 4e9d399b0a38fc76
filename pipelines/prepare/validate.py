"""Does a record keep the promises of `semsam.data.schema`?  What does not is left out, with a reason to count by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.prepare.many_masks import boxes_xyxy
from pipelines.sources.regions import boxes_meet
from pipelines.sources.source import BadSample, Read, Rejected
from semsam.data import rle
from semsam.data.images import jpeg_size
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Record, Region

# Boxes are stored as float32, so a coordinate of a few thousand pixels is off by less than this.
BOX_TOLERANCE = 1e-2

Box = Sequence[float]  # x1, y1, x2, y2


@dataclass(frozen=True)
class Fault:
    """Why one region cannot stay: a short fixed phrase to count by, and what was seen."""

    reason: str
    detail: str


def validate(read: Read, vocabulary: Vocabulary) -> Read:
    """The record with its usable regions; the others join `dropped`.

    A record whose regions are all unusable stays, without any.  Sources have decoded the image already, so that a JPEG
    that was cut short never gets here: its header is looked at, not its pixels.  Raises `BadSample` for an image that
    is no JPEG or has another size than the record says, and for federated categories outside the vocabulary.
    """
    record = read.record
    _check_image(record)
    _check_federation(record, vocabulary)
    faults: dict[int, Fault] = {}
    tight = _tight_boxes(record)
    for position, region in enumerate(record.regions):
        fault = (
            _fault_of_geometry(region, tight[position], record)
            or _fault_of_names(region, vocabulary)
            or _fault_of_parent(position, record)
        )
        if fault is not None:
            faults[position] = fault
    return Read(*without(record, faults, read.dropped))


def without(
    record: Record, faults: Mapping[int, Fault], dropped: tuple[Rejected, ...] = ()
) -> tuple[Record, tuple[Rejected, ...]]:
    """The record without the regions (by position) that have a fault, and `dropped` with those added.

    Parts go with their object: without it they would be taken for parts of nothing.  Parents are renumbered.
    """
    if not faults:
        return record, dropped
    faults = dict(faults)
    for position, region in enumerate(record.regions):
        if position not in faults and region.parent is not None and region.parent in faults:
            faults[position] = Fault(
                "part of a dropped object", f"object {record.regions[region.parent].annotation_id}"
            )
    kept = [position for position in range(len(record.regions)) if position not in faults]
    moved = {old: new for new, old in enumerate(kept)}
    regions = tuple(
        region._replace(parent=None if region.parent is None else moved[region.parent])
        for region in (record.regions[position] for position in kept)
    )
    added = tuple(
        Rejected(fault.reason, record.sample_id, f"region {record.regions[position].annotation_id}: {fault.detail}")
        for position, fault in sorted(faults.items())
    )
    return replace(record, regions=regions), dropped + added


def _check_image(record: Record) -> None:
    try:
        height, width = jpeg_size(record.image)
    except ValueError as error:
        raise BadSample("broken image", record.sample_id, str(error)) from None
    if (height, width) != (record.height, record.width):
        seen = f"image {height} x {width}, record {record.height} x {record.width} (height x width)"
        raise BadSample("image size differs from annotation", record.sample_id, seen)


def _check_federation(record: Record, vocabulary: Vocabulary) -> None:
    for listed, names in (
        (record.checked_objects, vocabulary.objects),
        (record.not_exhaustive_objects, vocabulary.objects),
        (record.checked_parts, vocabulary.parts),
    ):
        for category in listed or ():
            if not 0 <= category < len(names):
                raise BadSample("unknown category", record.sample_id, f"checked category {category} of {len(names)}")


def _tight_boxes(record: Record) -> list[Box | str | None]:
    """The box of each region's mask; None where it has none, and what is wrong where it is no mask of the image."""
    size = record.height, record.width
    masks = [region.rle for region in record.regions if region.rle is not None]
    try:
        found: Iterator[Box | str] = iter(boxes_xyxy(masks, *size).tolist())
    except ValueError:  # One of them; which, and what about it?
        found = (_box_or_reason(counts, *size) for counts in masks)
    return [None if region.rle is None else next(found) for region in record.regions]


def _box_or_reason(counts: bytes, height: int, width: int) -> Box | str:
    try:
        return rle.box_xyxy(counts, height, width)
    except ValueError as error:
        return str(error)


def _fault_of_geometry(region: Region, tight: Box | str | None, record: Record) -> Fault | None:
    """`tight` is the box of the region's mask, as `_tight_boxes` gives it."""
    x1, y1, x2, y2 = box = region.box_xyxy
    if not all(map(math.isfinite, (*box, region.area))) or region.area < 0:
        return Fault("box or area is no number", f"box {box}, area {region.area}")
    if isinstance(tight, str):
        return Fault("broken RLE", tight)
    if tight is not None:
        if tight[0] == tight[2]:
            return Fault("empty mask", "no pixel inside")
        if not _fits(region, tight):
            return Fault("box does not fit the mask", f"box {box}, mask {tuple(tight)}")
    if x1 >= x2 or y1 >= y2:
        return Fault("empty box", f"box {box}")
    if x1 < 0 or y1 < 0 or x2 > record.width or y2 > record.height:
        return Fault("box outside the image", f"box {box} in {record.width} x {record.height}")
    return None


def _fits(region: Region, tight: Box) -> bool:
    """Whether the box is that of the mask; an instance may have one of its own, which meets it."""
    if region.kind is Kind.INSTANCE:
        return boxes_meet(region.box_xyxy, tight)
    return max(abs(a - b) for a, b in zip(tight, region.box_xyxy, strict=True)) <= BOX_TOLERANCE


def _fault_of_names(region: Region, vocabulary: Vocabulary) -> Fault | None:
    for category, names in ((region.object_category, vocabulary.objects), (region.part_category, vocabulary.parts)):
        if category is not None and not 0 <= category < len(names):
            return Fault("unknown category", f"category {category} of {len(names)}")
    if (region.part_category is not None) != (region.kind == Kind.PART):
        return Fault("kind and names disagree", f"{region.kind.value} with part category {region.part_category}")
    if region.kind == Kind.CLASS_AGNOSTIC and region.object_category is not None:
        return Fault("kind and names disagree", f"{region.kind.value} with object category {region.object_category}")
    return None


def _fault_of_parent(position: int, record: Record) -> Fault | None:
    parent = record.regions[position].parent
    if parent is None:
        return None
    if not 0 <= parent < len(record.regions) or parent == position or record.regions[parent].kind == Kind.PART:
        return Fault("parent is no object", f"parent {parent} among {len(record.regions)} regions")
    return None
