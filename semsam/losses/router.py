"""What may a sample teach?  One table, and one function that reads it together with what the sample leaves null."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from semsam.data.sample import NOT_ANNOTATED, Sample
from semsam.data.vocabularies import JointVocabulary


@dataclass(frozen=True)
class Row:
    """What the annotations of one dataset can teach at all."""

    masks: bool  # Masks and predicted IoU; without them a region teaches its box, and only a box may prompt for it.
    generic: bool  # The generic queries: every region is named and every unnamed place is a negative.
    objects: bool  # The object head.
    parts: bool  # The part head; a region that is no part is a negative for it.


TABLE = {
    "sa1b": Row(masks=True, generic=False, objects=False, parts=False),
    "coco_panoptic": Row(masks=True, generic=True, objects=True, parts=False),
    "ade20k": Row(masks=True, generic=True, objects=True, parts=False),
    "objects365": Row(masks=False, generic=True, objects=True, parts=False),
    "pascal_part": Row(masks=True, generic=True, objects=True, parts=True),
    "paco": Row(masks=True, generic=True, objects=True, parts=True),
    "partimagenet": Row(masks=True, generic=True, objects=True, parts=True),
    # Data of one's own.
    "coco_instances": Row(masks=True, generic=True, objects=True, parts=True),
    "label_maps": Row(masks=True, generic=True, objects=True, parts=False),
    "generated_masks": Row(masks=True, generic=False, objects=True, parts=False),
}
NOTHING = Row(masks=False, generic=False, objects=False, parts=False)


@dataclass(frozen=True)
class NameLesson:
    """What one sample teaches one head, of its `m` regions and of the `x` names of the joint vocabulary."""

    names: Int64[np.ndarray, " m"]  # Positions in the joint vocabulary; NOT_ANNOTATED where a region has no name.
    # Whether a query matched to the region learns at all; a region that teaches without a name is all-negative.
    teaches: Bool[np.ndarray, " m"]
    allowed: Bool[np.ndarray, " x"]  # Names about which the sample says anything: only these enter a loss.
    # Allowed names all of whose instances are marked: only these are negatives for an unmatched query.
    exhaustive: Bool[np.ndarray, " x"]


@dataclass(frozen=True)
class Lesson:
    """What one sample teaches."""

    generic: bool
    teaches_mask: Bool[np.ndarray, " m"]
    objects: NameLesson
    parts: NameLesson


def route(sample: Sample, vocabulary: JointVocabulary) -> Lesson:
    """What `sample` may teach; a padding sample (dataset "") and a region without annotation teach nothing.

    * A part carries two labels: the name of the object it belongs to (its own, else its parent's) and its bare name.
    * An object of a dataset with parts is a negative for the part head; a part without a name is not.
    * A name that is withheld is nobody's and no negative; of a pair that is, its regions learn neither name.
    * Federated datasets: an image speaks only of the names that were checked on it (and of those its regions bear).
      Among these, a name marked "not exhaustive" may have instances that nobody drew, so an unmatched query that finds
      one is not told that it is wrong; a query *matched* to a region of another name is, for that region is known.
      A part's bare name (a lid) is that of many pairs (a jar's, a bottle's), of which only some were checked: an
      unmatched query is told that it is wrong only where no object that may have such a part can have an unmarked one.
    """
    row = row_of(sample.dataset)
    regions = sample.regions
    objects, parts = regions.object_category.astype(np.int64), regions.part_category.astype(np.int64)
    has_parent = regions.parent >= 0
    unnamed = (objects < 0) & has_parent
    objects[unnamed] = objects[regions.parent[unnamed]]
    own_objects, own_parts = _own_names(sample.dataset, vocabulary, row)
    nothing = np.full_like(objects, NOT_ANNOTATED)
    object_names = vocabulary.object_index(sample.dataset, objects) if row.objects else nothing
    part_names = vocabulary.part_index(sample.dataset, parts) if row.parts else nothing
    allowed_objects = _allowed(len(vocabulary.objects), own_objects, sample.checked_objects, object_names)
    allowed_parts = _allowed(len(vocabulary.parts), own_parts, sample.checked_parts, part_names)
    is_hidden_part = _withhold(vocabulary, object_names, part_names)
    allowed_objects[list(vocabulary.withheld_objects)] = False
    allowed_parts[list(vocabulary.withheld_parts)] = False
    exhaustive = allowed_objects.copy()
    if row.objects and sample.not_exhaustive_objects is not None:
        exhaustive[own_objects.start + sample.not_exhaustive_objects.astype(np.int64)] = False
    exhaustive_parts = allowed_parts.copy()
    if own_parts and sample.checked_parts is not None:
        exhaustive_parts[_partly_marked(sample, vocabulary, objects, parts) + own_parts.start] = False
    is_unnamed_part = has_parent & (parts < 0)
    return Lesson(
        generic=row.generic,
        teaches_mask=regions.has_mask & row.masks,
        objects=NameLesson(object_names, object_names >= 0, allowed_objects, exhaustive),
        parts=NameLesson(part_names, ~(is_unnamed_part | is_hidden_part) & row.parts, allowed_parts, exhaustive_parts),
    )


def row_of(dataset: str) -> Row:
    """The dataset's row of the table; padding ("") teaches nothing."""
    if not dataset:
        return NOTHING
    if dataset not in TABLE:
        raise ValueError(f"{dataset}: no row in semsam.losses.router.TABLE says what this dataset teaches")
    return TABLE[dataset]


def _withhold(
    vocabulary: JointVocabulary, objects: Int64[np.ndarray, " m"], parts: Int64[np.ndarray, " m"]
) -> Bool[np.ndarray, " m"]:
    """Take away the names that are withheld; which of the regions thereby have a part's name no more."""
    pairs = np.array(vocabulary.withheld_pairs, np.int64).reshape(-1, 2)
    is_pair = ((objects[:, None] == pairs[:, 0]) & (parts[:, None] == pairs[:, 1])).any(axis=1)
    is_hidden_part = is_pair | np.isin(parts, vocabulary.withheld_parts)
    objects[is_pair | np.isin(objects, vocabulary.withheld_objects)] = NOT_ANNOTATED
    parts[is_hidden_part] = NOT_ANNOTATED
    return is_hidden_part


def _partly_marked(
    sample: Sample, vocabulary: JointVocabulary, objects: Int64[np.ndarray, " m"], parts: Int64[np.ndarray, " m"]
) -> Int64[np.ndarray, " p"]:
    """The part names of a federated sample of which something in the image may bear one that nobody drew.

    Of all objects that may have such a part each must be known to be absent, or be there with such a part and marked
    everywhere.
    """
    pairs = np.array(vocabulary.object_parts.get(sample.dataset, ()), np.int64).reshape(-1, 2)
    names = np.arange(vocabulary.num_objects[sample.dataset])
    is_there = np.isin(names, objects)
    is_known = is_there if sample.checked_objects is None else is_there | np.isin(names, sample.checked_objects)
    if sample.not_exhaustive_objects is not None:
        is_known &= ~np.isin(names, sample.not_exhaustive_objects)
    drawn = {(int(one), int(part)) for one, part in zip(objects, parts, strict=True) if part >= 0}
    has_part = np.array([tuple(pair) in drawn for pair in pairs.tolist()], bool)
    is_sure = is_known[pairs[:, 0]] & (~is_there[pairs[:, 0]] | has_part)
    found: Int64[np.ndarray, " p"] = np.unique(pairs[~is_sure, 1])
    return found


def _own_names(dataset: str, vocabulary: JointVocabulary, row: Row) -> tuple[range, range]:
    """Where the dataset's own object and part names stand in the joint vocabulary; empty for a head it cannot teach."""
    objects = parts = range(0)
    if row.objects:
        start = vocabulary.object_offset[dataset]
        objects = range(start, start + vocabulary.num_objects[dataset])
    if row.parts:
        start = vocabulary.part_offset[dataset]
        parts = range(start, start + vocabulary.num_parts[dataset])
    return objects, parts


def _allowed(
    size: int, own: range, checked: np.ndarray | None, present: Int64[np.ndarray, " m"]
) -> Bool[np.ndarray, " names"]:
    """The names of the joint vocabulary about which a sample says anything."""
    allowed = np.zeros(size, bool)
    if checked is None or not own:
        allowed[own.start : own.stop] = True
    else:
        allowed[own.start + checked.astype(np.int64)] = True
        allowed[present[present >= 0]] = True
    return allowed
