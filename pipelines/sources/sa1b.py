"""SA-1B: `sa_*.jpg` beside `sa_*.json`, in one folder or in subfolders such as `sa_000000/`.

There is no official split.  If the root has folders `train/` and `val/`, they are the split; otherwise an image belongs
to val when a hash of its id falls into the share `val_share`, which is the same for ever and for every copy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipelines.sources.coco_json import add_segmentation, annotation_values, sample_id
from pipelines.sources.json_lists import parse_json
from pipelines.sources.regions import Regions
from pipelines.sources.source import BadSample, Entry, Files, Index, Read, Rejected, Source
from pipelines.sources.stored_image import check_size, read_image
from pipelines.sources.values import OddValue, as_is, as_list, as_row, as_size, as_text, take
from semsam.data.schema import Kind


@dataclass(frozen=True)
class Sa1b(Source):
    """Class-agnostic masks, about a hundred per image; the RLE strings are stored as they are."""

    dataset: str = "sa1b"
    train_long_side: int = 1024
    val_share: float = 0.001

    def index(self, files: Files, split: str) -> Index:
        has_folders = bool(files.glob("val/*"))
        paths = files.glob(f"{split}/**/sa_*" if has_folders else "**/sa_*")  # One walk through 22 million files.
        annotated = {path.removesuffix(".json") for path in paths if path.endswith(".json")}
        if not annotated:
            raise ValueError(f"{files.path}: found no sa_*.json")
        entries: dict[str, Entry] = {}
        rejected = []
        for path in paths:
            stem, _, ending = path.rpartition(".")
            key = _key(stem)
            if ending not in ("json", "jpg") or (not has_folders and self._is_val(key) != (split == "val")):
                continue
            if ending == "json" and entries.setdefault(key, Entry(key, f"{stem}.jpg")).image != f"{stem}.jpg":
                rejected.append(Rejected("duplicate image id", key, f"{files.path}/{path}"))
            if ending == "jpg" and stem not in annotated:
                rejected.append(Rejected("missing annotation file", key, f"{files.path}/{stem}.json"))
        return Index([entries[key] for key in sorted(entries)], rejected)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id, self.max_pixels))
        document = _annotation_file(files, entry)
        regions.file = f"{files.path}/{_json_of(entry)}"
        try:
            image, rows = take(document, "image", as_row), take(document, "annotations", as_list)
            size = take(image, "height", as_size), take(image, "width", as_size)
            name = PurePosixPath(take(image, "file_name", as_text, entry.image)).name
        except OddValue as fault:
            raise BadSample("broken annotation file", entry.sample_id, f"{regions.file}: {fault}") from None
        if name != PurePosixPath(entry.image).name:
            raise BadSample("annotation file of another image", entry.sample_id, f"{regions.file}: it is of {name!r}")
        check_size(regions.image, size, entry.sample_id)
        seen: set[int] = set()
        for position, row in enumerate(rows):
            _add_mask(regions, position, row, seen)
        return regions.read(self.dataset, split)

    def _is_val(self, key: str) -> bool:
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        return number < self.val_share * 2**64


SOURCE = Sa1b()


def _key(stem: str) -> str:
    name = stem.rpartition("/")[2].removeprefix("sa_")
    return sample_id(int(name) if name.isdecimal() else name)


def _add_mask(regions: Regions, position: int, row: object, seen: set[int]) -> None:
    """Add the mask of an annotation, unless its id is among those `seen` before."""
    try:
        values = annotation_values(row, {"segmentation": as_is})
    except OddValue as fault:
        regions.drop(f"annotations: unusable {fault.field}", f"annotations[{position}]: {fault}")
        return
    if values["id"] in seen:
        regions.drop("duplicate annotation id", f"annotation {values['id']}")
        return
    seen.add(values["id"])
    add_segmentation(regions, values, str(values["id"]), Kind.CLASS_AGNOSTIC)


def _json_of(entry: Entry) -> str:
    return entry.image.removesuffix(".jpg") + ".json"


def _annotation_file(files: Files, entry: Entry) -> Any:
    """The parsed json beside the image: one bad file among millions is a bad sample, not the end of the job."""
    path = _json_of(entry)
    try:
        return parse_json(files.read(path), f"{files.path}/{path}")
    except (ValueError, FileNotFoundError) as error:
        raise BadSample("broken annotation file", entry.sample_id, str(error)) from None
