"""PASCAL-Part: `Annotations_Part/*.mat` for the images of VOC 2010.

Objects and parts are both kept, with the exact pixels of the .mat files.  The parts have 30 names: left and right,
upper and lower ones share a name, numbers are dropped (wheel_2), and what the 93 object-part pairs do not contain (a
frontside, a chainwheel) is dropped and counted; `raw_parts` in the vocabulary file lists every raw name.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.io import loadmat

from pipelines.files import Files, find_file
from pipelines.sources.categories import Category, load_categories
from pipelines.sources.regions import Regions
from pipelines.sources.source import BadSample, Entry, Index, Read, Rejected
from pipelines.sources.stored_image import check_size, read_image
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind

_VOC_FOLDERS = ("VOCdevkit/VOC2010/", "VOC2010/", "")


@dataclass(frozen=True)
class PascalPart:
    """Objects with the parts that each is made of."""

    dataset: str = "pascal_part"
    version: int = 1
    train_long_side: int = 0
    allow_absent: tuple[str, ...] = ()

    def vocabulary(self) -> Vocabulary:
        return load_categories(self.dataset).vocabulary

    def index(self, files: Files, split: str) -> Index:
        path = find_file(files, [f"{folder}ImageSets/Main/{split}.txt" for folder in _VOC_FOLDERS])
        folder = path.removesuffix(f"ImageSets/Main/{split}.txt")
        lines = files.read_bytes(path).decode().splitlines()
        names = [line.split()[0] for line in lines if line.strip()]
        mats = set(files.glob("Annotations_Part/*.mat"))
        index = Index([])
        for name in sorted(set(names)):
            mat = f"Annotations_Part/{name}.mat"
            if mat in mats:
                index.entries.append(Entry(name, f"{folder}JPEGImages/{name}.jpg"))
            else:
                index.rejected.append(Rejected("missing .mat", name, f"{files.root}/{mat}"))
        return index

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id))
        path = f"Annotations_Part/{entry.sample_id}.mat"
        for position, thing in enumerate(_objects(files, path, entry.sample_id)):
            _add_object(regions, thing, position)
        return regions.read(self.dataset, split)


SOURCE = PascalPart()


def _objects(files: Files, path: str, sample_id: str) -> list[Any]:
    """The objects of a .mat file: records of class_ind, mask, and parts (part_name, mask)."""
    try:
        anno = loadmat(io.BytesIO(files.read_bytes(path)), variable_names=["anno"])["anno"]
        return list(anno[0, 0]["objects"].ravel())
    except Exception as error:  # scipy raises whatever its parser runs into: ValueError, TypeError, zlib.error, ...
        raise BadSample("broken .mat", sample_id, f"{files.root}/{path}: {error!r}") from None


def _add_object(regions: Regions, thing: Any, position: int) -> None:
    """Add an object and its parts; their annotation ids are `position` and `position/part_name`."""
    class_ind = int(thing["class_ind"].item())
    category = load_categories(PascalPart.dataset).objects_by("id").get(class_ind)
    parts = list(thing["parts"].ravel())  # An object without parts has an empty array of another shape.
    if category is None:
        for _ in [thing, *parts]:
            regions.drop("unknown category", f"object {position}: class_ind {class_ind}")
        return
    parent = regions.add_mask(_mask(thing, regions), str(position), Kind.INSTANCE, category)
    for part in parts:
        raw_name = str(part["part_name"].item())
        part_category = _part_category(category, raw_name)
        if part_category is None:
            regions.drop("part without category", f"{_object_name(category)}: {raw_name}")
        else:
            regions.add_mask(_mask(part, regions), f"{position}/{raw_name}", Kind.PART, part_category, parent=parent)


def _part_category(category: Category, raw_name: str) -> Category | None:
    categories = load_categories(PascalPart.dataset)
    names = categories.document["raw_parts"].get(_object_name(category), {})
    name = names.get(re.sub(r"_\d+$", "", raw_name))
    if name is None:
        return None
    return Category(category.object, categories.vocabulary.parts.index(name), category.thing)


def _object_name(category: Category) -> str:
    return load_categories(PascalPart.dataset).vocabulary.objects[category.object]


def _mask(row: Any, regions: Regions) -> Bool[np.ndarray, "h w"]:
    mask: Bool[np.ndarray, "h w"] = row["mask"] > 0
    check_size(regions.image, (mask.shape[0], mask.shape[-1]), regions.sample_id)
    return mask
