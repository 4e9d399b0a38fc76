"""One's own semantic maps: a folder of images, and for each a PNG of the same stem whose pixels are labels.

Images lie in `images/`, label PNGs in `labels/`, `masks/` or `annotations/`; those of a split below `train/` and `val/`
in both, or the other way round (`train/images/`); without a split a share is held out for val by its file names.

The names of labels are in `names.json`, `{"0": "road", "7": "sky"}`, or in `names.txt`, a label and a name to a line.
Pixels of a label in the option `ignore` (255 unless it is said otherwise) belong to nothing; those of a label without a
name are counted.  Every label that an image has is one region of it, all its pixels, as stuff is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np
import orjson

from pipelines.sources.categories import Category
from pipelines.sources.held_out import SPLIT_WORDS, OwnData, of_split
from pipelines.sources.json_lists import parse_json
from pipelines.sources.regions import Regions, masks_of
from pipelines.sources.source import Entry, Files, Index, Read, Rejected, find_file
from pipelines.sources.stored_image import read_image, read_map
from semsam.config import Count
from semsam.data.images import decode_label_map
from semsam.data.manifest import Vocabulary
from semsam.data.schema import SPLITS, Kind

NAMES = ("names.json", "names.txt")
_IMAGES, _LABELS = ("images",), ("labels", "masks", "annotations")
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_LARGEST = 2**16 - 1  # Label that a grey PNG can hold.


@dataclass(frozen=True)
class LabelMaps(OwnData):
    """Semantic regions: of each image, and each label in it, one."""

    options: ClassVar[tuple[str, ...]] = ("val_share", "ignore")

    dataset: str = "label_maps"
    ignore: tuple[Count, ...] = (255,)
    labels: tuple[int, ...] = ()  # Of the names, in their order.

    def found_in(self, files: Files) -> LabelMaps:
        """The same with the names in the file of names."""
        file = find_file(files, NAMES)
        path, data = f"{files.path}/{file}", files.read(file)
        found = _from_json(data, path) if file.endswith(".json") else _from_text(data, path)
        found = {label: name for label, name in sorted(found.items()) if label not in self.ignore}
        if not found:
            raise ValueError(f"{path}: names no label, and regions are known by their names")
        first: dict[str, int] = {}
        for label, name in found.items():
            if first.setdefault(name.lower(), label) != label:
                raise ValueError(f"{path}: labels {first[name.lower()]} and {label} are both called {name!r}")
        names = Vocabulary(tuple(found.values()), (), (False,) * len(found))
        return replace(self, names=names, labels=tuple(found))

    def index(self, files: Files, split: str) -> Index:
        images, is_of_all = _of_split(files, _IMAGES, split)
        if not images:
            raise ValueError(f"{files.path}: found no images/*.jpg, images/train/*.jpg or train/images/*.jpg")
        labels, _ = _of_split(files, _LABELS, split, (".png",))
        found, rejected = sorted(images.items()), []
        if is_of_all:
            are_kept = of_split([stem for stem, _ in found], split, self.val_share)
            found = [one for one, is_kept in zip(found, are_kept, strict=True) if is_kept]
        else:  # Of all, a label's image may be of the other split.
            strangers = sorted(labels.keys() - images.keys())
            rejected = [Rejected("missing image", one, f"{files.path}: of {labels[one]}") for one in strangers]
        entries = []
        for stem, image in found:
            if stem in labels:
                entries.append(Entry(stem, image, orjson.dumps(labels[stem])))
            else:
                rejected.append(Rejected("missing label PNG", stem, f"{files.path}: of {image}"))
        return Index(entries, rejected)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        path = orjson.loads(entry.annotations)
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id, self.max_pixels))
        regions.file = f"{files.path}/{path}"
        labels = read_map(files, path, decode_label_map, regions.image, entry.sample_id, "broken label PNG")
        place = {label: i for i, label in enumerate(self.labels)}
        for shifted, mask in masks_of(np.where(np.isin(labels, self.ignore), 0, labels + 1)):  # 0 is left out.
            label = shifted - 1
            if label in place:
                category = Category(place[label], thing=False)
                regions.add_mask(mask, str(label), Kind.PANOPTIC, category)
            else:
                remedy = f"name it, or leave it out by options.ignore=[{label},255]"
                regions.drop("label without a name", f"label {label}: {mask.sum()} pixels; {remedy}")
        return regions.read(self.dataset, split)


SOURCE = LabelMaps()


def _of_split(
    files: Files, places: tuple[str, ...], split: str, suffixes: tuple[str, ...] = _SUFFIXES
) -> tuple[dict[str, str], bool]:
    """The files of a split by their stem, with the folders below that of the split; and whether they are of all."""
    by_split = {one: _stems(files, places, one, suffixes) for one in SPLITS}
    if by_split["train"]:
        return by_split[split] or by_split["train"], not by_split["val"]
    for place in places:
        if found := _below(files, place, suffixes):
            return found, True
    return {}, True


def _stems(files: Files, places: tuple[str, ...], split: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    for place in places:
        for word in SPLIT_WORDS[split]:
            if found := _below(files, f"{place}/{word}", suffixes) or _below(files, f"{word}/{place}", suffixes):
                return found
    return {}


def _below(files: Files, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    paths = [PurePosixPath(one) for one in files.glob(f"{folder}/**/*")]
    shown = [one for one in paths if one.suffix.lower() in suffixes and not one.name.startswith(".")]
    return {one.relative_to(folder).with_suffix("").as_posix(): one.as_posix() for one in shown}


def _from_json(data: bytes, path: str) -> Mapping[int, str]:
    rows = parse_json(data, path)
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: expected an object of names by label, such as {{'0': 'road'}}")
    return {_label(label, path): _name(name, f"{path}: {label}") for label, name in rows.items()}


def _from_text(data: bytes, path: str) -> Mapping[int, str]:
    found: dict[int, str] = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        label, _, name = line.strip().partition(" ")
        if label:
            where = f"{path}: line {number}"
            if found.setdefault(_label(label, where), _name(name, where)) != name.strip():
                raise ValueError(f"{where}: label {label} is {found[int(label)]!r} already")
    return found


def _label(text: str, where: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > _LARGEST:
        raise ValueError(f"{where}: {text!r} is no label: a whole number of at most {_LARGEST}, then comes its name")
    return int(text)


def _name(name: object, where: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: {name!r} is no name")
    return name.strip()
