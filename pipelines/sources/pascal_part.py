"""PASCAL-Part: `Annotations_Part/*.mat` for the images of VOC 2010.

Objects and parts are both kept, with the exact pixels of the .mat files.  The parts have 30 names: left and right,
upper and lower ones share a name, numbers are dropped (wheel_2), and what the 93 object-part pairs do not contain (a
frontside, a chainwheel) is dropped and counted; `raw_parts` in the vocabulary file lists every raw name.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipelines.sources import mat_files
from pipelines.sources.categories import Category, load_categories
from pipelines.sources.regions import Regions
from pipelines.sources.source import BadSample, Entry, Files, Index, Read, Rejected, Source, find_file
from pipelines.sources.stored_image import check_size, read_image
from semsam.data.schema import Kind

_VOC_FOLDERS = ("VOCdevkit/VOC2010/", "VOC2010/", "")


@dataclass(frozen=True)
class PascalPart(Source):
    """Objects with the parts that each is made of."""

    dataset: str = "pascal_part"

    def index(self, files: Files, split: str) -> Index:
        path = find_file(files, [f"{folder}ImageSets/Main/{split}.txt" for folder in _VOC_FOLDERS])
        folder = path.removesuffix(f"ImageSets/Main/{split}.txt")
        names = _names(files, path)
        mats = set(files.glob("Annotations_Part/*.mat"))
        entries, rejected = [], []
        for name in sorted(names):
            again = Rejected("duplicate image id", name, f"{files.path}/{path}: {names[name]} lines")
            rejected += [again] * (names[name] - 1)
            mat = f"Annotations_Part/{name}.mat"
            if mat in mats:
                entries.append(Entry(name, f"{folder}JPEGImages/{name}.jpg"))
            else:
                rejected.append(Rejected("missing .mat", name, f"{files.path}/{mat}"))
        return Index(entries, rejected)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id, self.max_pixels))
        path = f"Annotations_Part/{entry.sample_id}.mat"
        regions.file = f"{files.path}/{path}"
        for position, thing in enumerate(_objects(files, path, entry.sample_id)):
            _add_object(regions, thing, position)
        return regions.read(self.dataset, split)


SOURCE = PascalPart()


def _names(files: Files, path: str) -> Counter[str]:
    """How often each image is in the list of a split."""
    try:
        lines = files.read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{files.path}/{path}: {error}") from None
    return Counter(line.split()[0] for line in lines if line.strip())


def _objects(files: Files, path: str, sample_id: str) -> list[Any]:
    """The objects of a .mat file: records of class_ind, mask, and parts (part_name, mask)."""
    try:
        annotated = mat_files.struct_rows(mat_files.load_variable(files.read(path), "anno"), ("objects",))
        if len(annotated) != 1:
            raise ValueError(f"{len(annotated)} rows of anno instead of one")
        return mat_files.struct_rows(annotated[0]["objects"], ("class_ind", "mask", "parts"))
    except (ValueError, FileNotFoundError) as error:
        raise BadSample("broken .mat", sample_id, f"{files.path}/{path}: {error}") from None


def _add_object(regions: Regions, thing: Any, position: int) -> None:
    """Add an object and its parts; their annotation ids are `position` and `position/part_name`."""
    parts = _parts(regions, thing["parts"], position)
    category, class_ind = _object_category(thing["class_ind"])
    if category is None:
        for _ in [thing, *parts]:
            regions.drop("unknown category", f"object {position}: class_ind {class_ind}")
        return
    parent = _add_mask(regions, thing["mask"], str(position), Kind.INSTANCE, category)
    for part in parts:
        _add_part(regions, part, position, category, parent)


def _add_part(regions: Regions, part: Any, position: int, category: Category, parent: int | None) -> None:
    try:
        raw_name = mat_files.text(part["part_name"])
    except ValueError as error:
        regions.drop("broken part name", f"object {position}: {error}")
        return
    part_category = _part_category(category, raw_name)
    if part_category is None:
        regions.drop("part without category", f"{_object_name(category)}: {raw_name}")
    else:
        _add_mask(regions, part["mask"], f"{position}/{raw_name}", Kind.PART, part_category, parent)


def _add_mask(
    regions: Regions, value: Any, annotation_id: str, kind: Kind, category: Category, parent: int | None = None
) -> int | None:
    try:
        mask = mat_files.mask(value)
    except ValueError as error:
        regions.drop("broken mask", f"annotation {annotation_id}: {error}")
        return None
    check_size(regions.image, mask.shape, regions.sample_id)
    return regions.add_mask(mask, annotation_id, kind, category, parent=parent)


def _parts(regions: Regions, value: Any, position: int) -> list[Any]:
    try:
        return [] if mat_files.is_empty(value) else mat_files.struct_rows(value, ("part_name", "mask"))
    except ValueError as error:
        regions.drop("broken parts", f"object {position}: {error}")
        return []


def _object_category(value: Any) -> tuple[Category | None, int | str]:
    """The category of a class_ind, None for an unknown one, and the number or what is there instead."""
    try:
        class_ind = mat_files.whole_number(value)
    except ValueError as error:
        return None, str(error)
    return load_categories(PascalPart.dataset).objects_by("id").get(class_ind), class_ind


def _part_category(category: Category, raw_name: str) -> Category | None:
    categories = load_categories(PascalPart.dataset)
    names = categories.document["raw_parts"].get(_object_name(category), {})
    name = names.get(re.sub(r"_\d+$", "", raw_name))
    if name is None:
        return None
    return Category(category.object, categories.vocabulary.parts.index(name), category.thing)


def _object_name(category: Category) -> str:
    return load_categories(PascalPart.dataset).vocabulary.objects[category.object]
