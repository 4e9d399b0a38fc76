"""Names: as the text encoder reads them, and those of all datasets side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import orjson

from semsam.config import settings
from semsam.data.manifest import Vocabulary
from semsam.data.sample import NOT_ANNOTATED
from semsam.setting_kinds import did_you_mean

Category = TypeVar("Category", int, np.ndarray)

# What COCO's panoptic names end in where several older classes were merged into one.
_SUFFIXES = ("-merged", "-other", "-stuff")

# Sentences that a name is put into.  Training draws one per step and evaluation averages over all, so that a class is
# known by its name and not by the words around it.
TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "one {}",
    "this is a {}",
    "there is a {}",
    "there is a {} here",
    "here we see a {}",
    "look at the {}",
    "a photo of a {}",
    "a photo with a {} in it",
    "a picture of the {}",
    "an image that shows a {}",
    "a snapshot of a {}",
    "a close view of a {}",
    "a {} seen from nearby",
    "a {} seen from far away",
    "a {} seen from above",
    "a {} seen from below",
    "a {} seen from the side",
    "a {} seen from behind",
    "the front of a {}",
    "a small {}",
    "a tiny {} in the distance",
    "a large {}",
    "a {} that fills the picture",
    "a {} at the edge of the picture",
    "a {} in the middle of the picture",
    "a {} in the background",
    "a {} in the foreground",
    "a {} that is partly hidden",
    "a {} behind something else",
    "part of a {}",
    "a whole {}",
    "several {}",
    "many {} together",
    "a single {}",
    "two {} next to each other",
    "a {} among other things",
    "a row of {}",
    "a blurred photo of a {}",
    "a sharp photo of a {}",
    "a dark photo of a {}",
    "a {} in bright light",
    "a {} in the shade",
    "a {} at night",
    "a {} by day",
    "a {} outdoors",
    "a {} indoors",
    "a {} in the street",
    "a {} in a room",
    "a {} in the countryside",
    "a {} in a city",
    "a grainy photo of a {}",
    "a low resolution photo of a {}",
    "a detailed photo of a {}",
    "a black and white photo of a {}",
    "a colourful photo of a {}",
    "a {} against a plain background",
    "a {} in a crowded scene",
    "an old {}",
    "a new {}",
    "a clean {}",
    "a dirty {}",
    "a plain {}",
    "an unusual {}",
    "a typical {}",
    "my {}",
    "somebody's {}",
    "a drawing of a {}",
    "a painting of a {}",
    "a sketch of a {}",
    "a scene with a {}",
    "the outline of a {}",
    "the region covered by the {}",
    "a segment labelled {}",
    "pixels that belong to a {}",
    "an object known as {}",
    "something called {}",
    "what people call a {}",
)


def clean_name(name: str) -> str:
    """A name as one would say it: lower case, blanks for underscores, without the endings of COCO's merged classes."""
    name = name.replace("_", " ").lower().strip()
    while name.endswith(_SUFFIXES):
        name = name[: name.rindex("-")]
    return " ".join(name.split())


@settings
class Withheld:
    """Names of a dataset that are never taught, to see later whether the model knows them all the same.

    Their regions teach masks and boxes, and what else they are called.
    """

    objects: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()  # (object, part) whose names are taught, but never together.


# Checkpoints remember the order of all names; a dataset that came later stands behind these.
_SEVEN = ("sa1b", "coco_panoptic", "objects365", "ade20k", "pascal_part", "paco", "partimagenet")
_ORDER = {dataset: place for place, dataset in enumerate(_SEVEN)}


@dataclass(frozen=True)
class JointVocabulary:
    """The object names and part names of several datasets, one dataset after the other: the seven first.

    A name that two datasets share is there twice: which samples may teach which entry is the router's business, and
    what one dataset calls a table another may call a desk.
    """

    objects: tuple[str, ...]
    parts: tuple[str, ...]
    object_offset: dict[str, int]  # Of each dataset's first name.
    part_offset: dict[str, int]
    num_objects: dict[str, int]
    num_parts: dict[str, int]
    # (object, part) that occur together, in each dataset's own categories.
    object_parts: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    # Positions of names that are never taught, and pairs of positions that are never taught together.
    withheld_objects: tuple[int, ...] = ()
    withheld_parts: tuple[int, ...] = ()
    withheld_pairs: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(vocabularies: Mapping[str, Vocabulary], withheld: Mapping[str, Withheld] | None = None) -> JointVocabulary:
        """The vocabulary of these datasets, in whatever order they are given.

        Raises `ValueError` for names to withhold that a dataset does not have, and for datasets that are not there.
        """
        objects: list[str] = []
        parts: list[str] = []
        object_offset, part_offset = {}, {}
        for dataset in sorted(vocabularies, key=lambda one: (_ORDER.get(one, len(_ORDER)), one)):
            object_offset[dataset], part_offset[dataset] = len(objects), len(parts)
            objects.extend(clean_name(name) for name in vocabularies[dataset].objects)
            parts.extend(clean_name(name) for name in vocabularies[dataset].parts)
        joint = JointVocabulary(
            objects=tuple(objects),
            parts=tuple(parts),
            object_offset=object_offset,
            part_offset=part_offset,
            num_objects={dataset: len(vocabularies[dataset].objects) for dataset in object_offset},
            num_parts={dataset: len(vocabularies[dataset].parts) for dataset in part_offset},
            object_parts={dataset: vocabularies[dataset].object_parts for dataset in part_offset},
        )
        return joint._without(withheld or {})

    def _without(self, withheld: Mapping[str, Withheld]) -> JointVocabulary:
        objects: set[int] = set()
        parts: set[int] = set()
        pairs: set[tuple[int, int]] = set()
        for dataset, names in withheld.items():
            where = f"data.withheld.{dataset}"
            if dataset not in self.object_offset:
                raise ValueError(f"{where}: not among the datasets {sorted(self.object_offset)}")
            first, count = self.object_offset[dataset], self.num_objects[dataset]
            of_object = {name: first + i for i, name in enumerate(self.objects[first : first + count])}
            first, count = self.part_offset[dataset], self.num_parts[dataset]
            of_part = {name: first + i for i, name in enumerate(self.parts[first : first + count])}
            objects |= {_position(of_object, name, f"{where}.objects") for name in names.objects}
            parts |= {_position(of_part, name, f"{where}.parts") for name in names.parts}
            pairs |= {
                (_position(of_object, one, f"{where}.pairs"), _position(of_part, part, f"{where}.pairs"))
                for one, part in names.pairs
            }
        return replace(
            self,
            withheld_objects=tuple(sorted(objects)),
            withheld_parts=tuple(sorted(parts)),
            withheld_pairs=tuple(sorted(pairs)),
        )

    def object_index(self, dataset: str, category: Category) -> Category:
        """Positions in `objects` of a dataset's own object categories; `NOT_ANNOTATED` stays what it is."""
        return _shift(category, self.object_offset[dataset], self.num_objects[dataset], f"{dataset} object")

    def part_index(self, dataset: str, category: Category) -> Category:
        """Positions in `parts` of a dataset's own part categories; `NOT_ANNOTATED` stays what it is."""
        return _shift(category, self.part_offset[dataset], self.num_parts[dataset], f"{dataset} part")

    def digest(self) -> str:
        """SHA-256 of the names and of which dataset each belongs to: a checkpoint remembers it."""
        names = [self.objects, self.parts, self.object_offset, self.part_offset]
        withheld = [self.withheld_objects, self.withheld_parts, self.withheld_pairs]
        return hashlib.sha256(orjson.dumps(names + withheld if any(withheld) else names)).hexdigest()


def _position(places: Mapping[str, int], name: str, where: str) -> int:
    found = places.get(clean_name(name))
    if found is None:
        raise ValueError(f"{where}: {name!r} is not a name of it{did_you_mean(clean_name(name), places)}")
    return found


def _shift(category: Category, offset: int, num: int, what: str) -> Category:
    indices = np.asarray(category)
    if ((indices < NOT_ANNOTATED) | (indices >= num)).any():
        raise ValueError(f"{what} category {indices[(indices < NOT_ANNOTATED) | (indices >= num)][0]} of {num} names")
    shifted = np.where(indices == NOT_ANNOTATED, NOT_ANNOTATED, indices + offset)
    return int(shifted) if isinstance(category, int) else shifted.astype(indices.dtype)
