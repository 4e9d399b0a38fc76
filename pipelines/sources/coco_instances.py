"""One's own COCO json: images, `annotations` with masks or boxes, and `categories`, which are the vocabulary.

The json of each split lies where COCO, Roboflow, CVAT and Label Studio put it (`_places`); where there is one for all
images, or none for val, a share of its images is held out for val by their file names.  Images lie beside the json, or
in `images/`, `train/`, `train2017/`, ...

A category with `"part_of": "car"` is a part of the objects of the category of that name; `supercategory` says nothing
of parts, and is not read.  Categories of several objects may share a part's name: `{"id": 5, "name": "wheel",
"part_of": "car"}` beside `{"id": 6, "name": "wheel", "part_of": "bus"}` (PACO's `car:wheel` is that name, too).  A
part's annotation may name the annotation of its object (`"part_of": 17`); without that its object is the one that
covers most of it, if that is half of it or more.

Masks are polygons or run lengths; an annotation without `segmentation` teaches its `bbox`, one without `bbox` has that
of its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, ClassVar

import orjson
from pycocotools import mask as coco_mask

from pipelines.sources.categories import Category, categories_of
from pipelines.sources.coco_json import Document, add_segmentation, index_document, known_rows, possible_paths
from pipelines.sources.held_out import SPLIT_WORDS, OwnData, of_split
from pipelines.sources.json_lists import JsonLists
from pipelines.sources.regions import Regions
from pipelines.sources.source import Entry, Files, Index, Read
from pipelines.sources.stored_image import check_size, read_image
from pipelines.sources.values import OddValue, Row, as_box, as_int, as_is, as_row, as_text, take
from semsam.data.manifest import Vocabulary
from semsam.data.schema import SPLITS, Kind, Region
from semsam.setting_kinds import did_you_mean

_OF_SPLIT = (
    "annotations/instances_{word}2017.json",
    "annotations/instances_{word}.json",
    "annotations/{word}.json",
    "instances_{word}2017.json",
    "instances_{word}.json",
    "{word}.json",
    "{word}/_annotations.coco.json",  # Roboflow
    "{word}/annotations.json",
)
_OF_ALL = (
    "annotations.json",
    "instances.json",
    "result.json",  # Label Studio
    "_annotations.coco.json",
    "annotations/instances_default.json",  # CVAT
    "annotations/instances.json",
    "annotations/annotations.json",
)
_OF = ":"  # Between an object's name and its part's, as `categories_of` writes them.
_COVERED = 0.5  # Of a part, by the object that it is taken to be of.


@dataclass(frozen=True)
class CocoInstances(OwnData):
    """Objects, and parts that know their object."""

    options: ClassVar[tuple[str, ...]] = ("val_share", "annotations")

    dataset: str = "coco_instances"
    annotations: str = ""  # The json of all images, where it has another name than those that are looked for.

    def found_in(self, files: Files) -> CocoInstances:
        """The same with the names of the json's categories: those of train, then what val has beside them."""
        objects: dict[str, str] = {}  # As they are first written, by what is compared.
        pairs: dict[tuple[str, str], str] = {}
        for file in dict.fromkeys(self._file(files, split)[0] for split in SPLITS):
            _find_names(files, file, objects, pairs)
        parts = {part.lower(): part for part in reversed(pairs.values())}
        part_names = tuple(dict.fromkeys(parts[part] for _, part in pairs))
        place = {name: i for i, name in enumerate(objects)}
        part_place = {name.lower(): i for i, name in enumerate(part_names)}
        names = Vocabulary(
            tuple(objects.values()),
            part_names,
            (True,) * len(objects),
            tuple((place[one], part_place[part]) for one, part in pairs),
        )
        return replace(self, names=names)

    def index(self, files: Files, split: str) -> Index:
        file, is_of_all = self._file(files, split)
        document = Document(files, [file], categories_of(self.names), _native_name)

        def keep(images: Sequence[Any]) -> Sequence[Any]:
            if not is_of_all:
                return images
            are_kept = of_split([image.file_name for image in images], split, self.val_share)
            return [image for image, is_kept in zip(images, are_kept, strict=True) if is_kept]

        layouts = _layouts(file, split, is_of_all)
        optional = {"segmentation": as_is, "bbox": _box_or_none, "part_of": as_int}
        return index_document(
            files,
            document,
            split,
            layouts,
            {},
            self.allow_absent,
            more=lambda row: {"is_of_all": is_of_all},
            optional=optional,
            keep=keep,
        )

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        rows = orjson.loads(entry.annotations)
        layouts = _layouts(rows["file"], split, rows["is_of_all"])
        paths = possible_paths(files, entry, layouts, split, rows["file_name"])
        regions = Regions(entry.sample_id, read_image(files, paths, entry.sample_id, self.max_pixels))
        regions.file = f"{files.path}/{rows['file']}"
        check_size(regions.image, (rows["height"], rows["width"]), entry.sample_id)
        known = list(known_rows(regions, rows["annotations"], categories_of(self.names)))
        objects: dict[int, int] = {}  # The region of each annotation.
        for row, annotation_id, category in known:
            if category.part is None:
                found = _add(regions, row, annotation_id, category)
                if found is not None:
                    objects[row["id"]] = found
        for row, annotation_id, category in known:
            if category.part is not None:
                _add_part(regions, row, annotation_id, category, objects)
        return regions.read(self.dataset, split)

    def _file(self, files: Files, split: str) -> tuple[str, bool]:
        """The json with a split's images, and whether it has those of the other split as well.

        Raises `ValueError` naming the places where none was found.
        """
        if self.annotations:
            if not files.exists(self.annotations):
                raise ValueError(f"options.annotations: {files.path}/{self.annotations}: no such file")
            return self.annotations, True
        found = {one: next((name for name in _places(one) if files.exists(name)), "") for one in SPLITS}
        if found["train"]:
            return found[split] or found["train"], not found["val"]
        of_all = [name for name in _OF_ALL if files.exists(name)] or files.glob("*.json")
        if len(of_all) == 1 or (of_all and of_all[0] in _OF_ALL):
            return of_all[0], True
        if of_all:
            raise ValueError(f"{files.path}: which of {', '.join(of_all)}?  options.annotations=<name> says it")
        raise ValueError(
            f"{files.path}: found no COCO json: none of {', '.join(_OF_ALL)}, annotations/instances_train.json, "
            "train/_annotations.coco.json, nor any other *.json; options.annotations=<name> says where it lies"
        )


SOURCE = CocoInstances()


def _places(split: str) -> list[str]:
    return [place.format(word=word) for word in SPLIT_WORDS[split] for place in _OF_SPLIT]


def _layouts(file: str, split: str, is_of_all: bool) -> list[str]:
    """Where images may lie: below the json's own folder, the one above it, and the root; a split's own folders first.

    The other split's are left alone where it has a json of its own: both may have an image of one name.
    """
    parents = [str(one) for one in PurePosixPath(file).parents][:2]  # The root is ".".
    places = ["" if one == "." else one.replace("{", "{{").replace("}", "}}") + "/" for one in (*parents, ".")]
    others = [folder for one in SPLITS if one != split for folder in _folders(one)] if is_of_all else []
    folders = [*_folders(split), "", "images/", *others]
    names = ("{file_name}", "{name}")
    return list(dict.fromkeys(place + folder + name for name in names for place in places for folder in folders))


def _folders(split: str) -> list[str]:
    words = [*SPLIT_WORDS[split], f"{split}2017"]
    return [*(f"{word}/" for word in words), *(f"images/{word}/" for word in words)]


def _find_names(files: Files, file: str, objects: dict[str, str], pairs: dict[tuple[str, str], str]) -> None:
    """Add the names of a json's categories.  Raises `ValueError` for a `part_of` that is no object's name."""
    path = f"{files.path}/{file}"
    parts: list[tuple[str, str, str]] = []
    for i, row in enumerate(JsonLists(files.read(file), path).rows("categories")):
        try:
            take(row, "id", as_int)
            name, whole = _category(row)
        except OddValue as fault:
            if fault.field == "part_of":
                raise ValueError(f"{path}: categories[{i}].{fault}") from None
            continue  # The index counts it.
        if whole is None:
            objects.setdefault(name.lower(), name)
        else:
            parts.append((f"{path}: categories[{i}].part_of: {whole!r}", whole.lower(), name))
    wholes = {name.lower(): whole for _, whole, name in parts}
    for place, whole, name in parts:
        if whole not in objects and whole in wholes:
            raise ValueError(f"{place} is itself a part, of {wholes[whole]!r}; parts of parts are not read")
        if whole not in objects:
            raise ValueError(f"{place} is the name of no category{did_you_mean(whole, objects)}")
        if f"{whole}{_OF}{name.lower()}" in objects:
            raise ValueError(f"{place} has the part {name!r}, but {whole}{_OF}{name} is an object's name as well")
        pairs.setdefault((whole, name.lower()), name)
    if not objects:
        raise ValueError(f"{path}: the list 'categories' has no usable name, and regions are known by it")


def _category(row: object) -> tuple[str, str | None]:
    """A category's name, and of a part the name of its object: `part_of`.  Raises `OddValue`."""
    name = take(row, "name", as_text).strip()
    if as_row(row).get("part_of") is None:
        return name, None
    whole = take(row, "part_of", as_text).strip()
    if name.lower().startswith(f"{whole}{_OF}".lower()):  # As PACO writes it.
        name = name[len(whole) + 1 :].strip() or name
    return name, whole


def _native_name(row: object) -> str:
    name, whole = _category(row)
    return name if whole is None else f"{whole}{_OF}{name}"


def _box_or_none(value: object) -> list[float] | None:
    """Some tools write an empty list where they have no box."""
    return None if value == [] else as_box(value)


def _add(regions: Regions, row: Row, annotation_id: str, category: Category, parent: int | None = None) -> int | None:
    """Add the mask of an annotation, or its box where it has no mask."""
    kind = Kind.INSTANCE if category.part is None else Kind.PART
    if row["segmentation"] in (None, []) and row["bbox"] is not None:
        return regions.add_box(
            row["bbox"], annotation_id, kind, category, area=row["area"], is_crowd=row["iscrowd"], parent=parent
        )
    if kind is Kind.PART:
        row = row | {"bbox": None}  # A part's box is that of its mask.
    return add_segmentation(regions, row, annotation_id, kind, category, parent)


def _add_part(regions: Regions, row: Row, annotation_id: str, category: Category, objects: dict[int, int]) -> None:
    """Add a part, below its object where that is known."""
    place = _add(regions, row, annotation_id, category)
    if place is None:
        return
    parent, named = None, row["part_of"]
    if named is not None:
        parent = objects.get(named)
        if parent is not None and regions.regions[parent].object_category != category.object:
            parent = None
    else:
        parent = _object_of(regions, place, objects)
    if parent is None:
        wanted = "no object covers half of it" if named is None else f"no such object: {named}"
        regions.drop("part without its object", f"annotation {annotation_id}: {wanted}")
    regions.regions[place] = regions.regions[place]._replace(parent=parent)


def _object_of(regions: Regions, place: int, objects: dict[int, int]) -> int | None:
    """The object of the part's kind that covers most of it; None where none covers half of it."""
    part = regions.regions[place]
    fitting = [one for one in objects.values() if _may_have(regions.regions[one], part)]
    shares = [_covered(part, regions.regions[one], (regions.image.height, regions.image.width)) for one in fitting]
    best = max(zip(shares, fitting, strict=True), key=lambda one: one[0], default=(0.0, None))
    return best[1] if best[0] >= _COVERED else None


def _may_have(whole: Region, part: Region) -> bool:
    return whole.object_category == part.object_category and not whole.is_crowd


def _covered(part: Region, whole: Region, size: tuple[int, int]) -> float:
    """The share of a part that an object covers: of masks where both have one, otherwise of boxes."""
    if part.rle is not None and whole.rle is not None:
        masks = [[{"size": list(size), "counts": one.rle}] for one in (part, whole)]
        return float(coco_mask.iou(*masks, [1])[0, 0])  # As of a crowd: the union is the part.
    x1, y1, x2, y2 = part.box_xyxy
    u1, v1, u2, v2 = whole.box_xyxy
    shared = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
    return shared / ((x2 - x1) * (y2 - y1))
