"""From a record on disk to a sample for the model: decode, augment, atom map, prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from semsam.config import Positive, settings
from semsam.data import rle
from semsam.data.atoms import AtomMap
from semsam.data.augmentation import PADDING_GREY, AugmentationSettings, Geometry, random_geometry
from semsam.data.label_runs import TooManyAtomsError
from semsam.data.prompts import PromptSettings, make_prompts, no_prompts
from semsam.data.randomness import generator
from semsam.data.sample import NOT_ANNOTATED, Regions, Sample
from semsam.data.schema import Kind, Record, Region


@settings
class SampleSettings:
    """How a record becomes a sample."""

    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    # A table of labels x masks takes 0.1 MB for SA-1B and 20 MB for 300 overlapping blobs, but noise could fill the
    # memory.  Past this, masks are left out, those with the longest RLE first, and counted in the sample.
    max_table_bytes: Positive = 2**26


def training_sample(
    record: Record, index: int, seed: int, settings: SampleSettings, out: UInt8[np.ndarray, "3 s s"] | None = None
) -> Sample:
    """The sample at place `index` of the plan: all randomness is keyed by it and the seed.

    Its image is written to `out`, if that is given.

    Raises `ValueError`, naming the record, for a broken image and for masks that do not fit it.
    """
    size = settings.augmentation.crop_size
    scale_range = settings.augmentation.scale_range(record.dataset)
    rng = generator(seed, index, "augmentation")
    geometry = random_geometry(record.height, record.width, scale_range, settings.augmentation, rng)
    teaching = regions_to_train(record.regions)
    places, regions = list(teaching), list(teaching.values())
    try:
        image = geometry.view_jpeg(record.image, out)
        atoms, ignored, left_out = _atoms(record, regions, geometry, settings.max_table_bytes)
    except ValueError as error:
        raise ValueError(f"{record.dataset} {record.split} {record.sample_id}: {error}") from None
    has_mask = np.array([region.rle is not None for region in regions], bool)
    boxes = _boxes_xyxy(regions, has_mask, atoms, geometry)
    visible = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    atoms = atoms.keep_masks(visible)
    columns = _columns(
        {places[i]: regions[i] for i in visible.tolist()}, has_mask[visible], boxes[visible] / np.float32(size)
    )
    return Sample(
        index=index,
        dataset=record.dataset,
        sample_id=record.sample_id,
        image=image,
        atoms=atoms,
        regions=columns,
        prompts=make_prompts(atoms, columns, generator(seed, index, "prompts"), settings.prompts, size, size),
        checked_objects=_names(record.checked_objects),
        checked_parts=_names(record.checked_parts),
        not_exhaustive_objects=_names(record.not_exhaustive_objects),
        ignored=ignored,
        masks_left_out=left_out,
    )


def empty_sample(settings: SampleSettings, out: UInt8[np.ndarray, "3 s s"] | None = None) -> Sample:
    """Padding for a batch that is short of samples: grey, without regions, and counted nowhere.

    Its image is written to `out`, if that is given.
    """
    size = settings.augmentation.crop_size
    image = np.empty((3, size, size), np.uint8) if out is None else out
    image[:] = PADDING_GREY
    return Sample(
        index=-1,
        dataset="",
        sample_id="",
        image=image,
        atoms=AtomMap.from_rles([], size, size),
        regions=_columns({}, np.zeros(0, bool), np.zeros((0, 4), np.float32)),
        prompts=no_prompts(settings.prompts),
    )


def regions_to_train(regions: Sequence[Region]) -> dict[int, Region]:
    """The regions of a record that teach, by their place in it: no crowds, and of a panoptic record its segments only.

    The instances beside panoptic segments are the same objects once more; they are there for measuring AP.
    """
    is_panoptic = _is_panoptic(regions)
    return {i: r for i, r in enumerate(regions) if not r.is_crowd and (r.kind is Kind.PANOPTIC or not is_panoptic)}


def _is_panoptic(regions: Sequence[Region]) -> bool:
    return any(region.kind is Kind.PANOPTIC for region in regions)


def _crowds(record: Record) -> list[bytes]:
    """The masks of a record's crowds; of one that is a box alone, its box."""
    is_panoptic = _is_panoptic(record.regions)
    found = []
    for region in record.regions:
        if region.is_crowd and (region.kind is Kind.PANOPTIC or not is_panoptic):
            found.append(region.rle or _filled(region.box_xyxy, record.height, record.width))
    return found


def _filled(box_xyxy: tuple[float, float, float, float], height: int, width: int) -> bytes:
    mask = np.zeros((height, width), bool)
    x1, y1, x2, y2 = (max(round(corner), 0) for corner in box_xyxy)
    mask[y1:y2, x1:x2] = True
    return rle.encode(mask)


def _atoms(
    record: Record, regions: Sequence[Region], geometry: Geometry, max_table_bytes: int
) -> tuple[AtomMap, Bool[np.ndarray, " a"] | None, int]:
    """The atom map of the crop, which of its labels are void or crowd, and how many masks had to be left out of it.

    Void are the pixels of a panoptic record that no segment covers; what lies beyond the image is not.
    """
    rles = [region.rle for region in regions]
    crowds, is_panoptic = _crowds(record), _is_panoptic(record.regions)
    whole = [rle.encode_counts(np.array([0, record.height * record.width]))] if is_panoptic else []
    rows, cols = geometry.rows(), geometry.cols()
    left_out = 0
    while True:
        try:
            masks = [*rles, *crowds, *whole]
            atoms = AtomMap.from_rles(masks, record.height, record.width, rows, cols, max_table_bytes)
            if not crowds and not whole:
                return atoms, None, left_out
            return *_without_ignored(atoms, len(rles), bool(whole)), left_out
        except TooManyAtomsError:
            if crowds or whole:  # What teaches stays longest.
                crowds, whole = [], []
                continue
            by_length = sorted((j for j, one in enumerate(rles) if one is not None), key=lambda j: len(rles[j] or b""))
            if not by_length:
                raise
            # A quarter at a time: every try has to go through all runs of what is left, millions where it is noise.
            quarter = -(-len(by_length) // 4)
            for j in by_length[-quarter:]:
                rles[j] = None
                left_out += 1


def _without_ignored(
    atoms: AtomMap, num_regions: int, has_whole: bool
) -> tuple[AtomMap, Bool[np.ndarray, " a"] | None]:
    """The map of the regions alone, the labels of the crowds behind them, and void: what is the last mask's alone."""
    table = atoms.table
    crowds = table[:, num_regions : table.shape[1] - has_whole]
    ignored: Bool[np.ndarray, " a"] = np.asarray(crowds.any(axis=1))
    if has_whole:
        ignored |= table[:, -1] & ~table[:, :-1].any(axis=1)
    atoms = replace(atoms, table=np.ascontiguousarray(table[:, :num_regions]))
    return atoms, ignored if ignored.any() else None


def _boxes_xyxy(
    regions: Sequence[Region],
    has_mask: Bool[np.ndarray, " r"],
    atoms: AtomMap,
    geometry: Geometry,
) -> Float[np.ndarray, "r 4"]:
    """Boxes in the crop's pixels: tight around what is left of a mask, and without one the annotated box, cut.

    Of a box that keeps less than a pixel in either direction nothing is left to see, so it counts as outside.
    """
    boxes = atoms.boxes_xyxy()
    if has_mask.all():
        return boxes
    annotated = np.array([region.box_xyxy for region in regions if region.rle is None], np.float32)
    cut = geometry.boxes_xyxy(annotated)
    is_sliver = (cut[:, 2:] - cut[:, :2] < 1).any(1)
    boxes[~has_mask] = np.where(is_sliver[:, None], 0, cut)
    return boxes


def _columns(
    kept: Mapping[int, Region], has_mask: Bool[np.ndarray, " m"], boxes_xyxy: Float[np.ndarray, "m 4"]
) -> Regions:
    """The kept regions, given by their place in the record, as columns; parents that were not kept are -1."""
    regions = kept.values()
    new_index = {old: new for new, old in enumerate(kept)}
    return Regions(
        boxes_cxcywh=np.concatenate(
            [(boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1
        ),
        has_mask=has_mask,
        object_category=_or_minus_one(region.object_category for region in regions),
        part_category=_or_minus_one(region.part_category for region in regions),
        parent=_or_minus_one(new_index.get(-1 if r.parent is None else r.parent) for r in regions),
        is_thing=np.array([region.is_thing for region in regions], bool),
    )


def _or_minus_one(values: Iterable[int | None]) -> Int32[np.ndarray, " m"]:
    return np.array([NOT_ANNOTATED if value is None else value for value in values], np.int32)


def _names(indices: tuple[int, ...] | None) -> Int32[np.ndarray, " x"] | None:
    return None if indices is None else np.array(indices, np.int32)
