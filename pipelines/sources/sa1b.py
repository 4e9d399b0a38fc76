"""SA-1B: `sa_*.jpg` beside `sa_*.json`, in one folder or in subfolders such as `sa_000000/`.

There is no official split.  If the root has folders `train/` and `val/`, they are the split; otherwise an image belongs
to val when a hash of its id falls into the share `val_share`, which is the same for ever and for every copy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from pipelines.files import Files
from pipelines.sources.categories import load_categories
from pipelines.sources.coco_json import rle_counts, sample_id
from pipelines.sources.json_lists import parse_json
from pipelines.sources.regions import Regions
from pipelines.sources.source import BadSample, Entry, Index, Read, Rejected
from pipelines.sources.stored_image import check_size, read_image
from semsam.data.images import MAX_PIXELS
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind


@dataclass(frozen=True)
class Sa1b:
    """Class-agnostic masks, about a hundred per image; the RLE strings are stored as they are."""

    dataset: str = "sa1b"
    version: int = 1
    train_long_side: int = 1024
    allow_absent: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    val_share: float = 0.001

    def vocabulary(self) -> Vocabulary:
        return load_categories(self.dataset).vocabulary

    def index(self, files: Files, split: str) -> Index:
        has_folders = bool(files.glob("val/*"))
        paths = files.glob(f"{split}/**/sa_*.json" if has_folders else "**/sa_*.json")
        if not paths:
            raise ValueError(f"{files.root}: found no sa_*.json")
        entries: dict[str, Entry] = {}
        rejected = []
        for path in paths:
            name = path.rpartition("/")[2].removeprefix("sa_").removesuffix(".json")
            key = sample_id(int(name) if name.isdecimal() else name)
            if not has_folders and self._is_val(key) != (split == "val"):
                continue
            if key in entries:
                rejected.append(Rejected("duplicate image id", key, f"{files.root}/{path}"))
            entries.setdefault(key, Entry(key, path.removesuffix(".json") + ".jpg"))
        return Index([entries[key] for key in sorted(entries)], rejected)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id, self.max_pixels))
        document = _annotation_file(files, entry)
        try:
            height, width = document["image"]["height"], document["image"]["width"]
            rows = [(str(row["id"]), row["segmentation"], row.get("area")) for row in document["annotations"]]
        except (KeyError, TypeError) as error:
            raise BadSample("broken annotation file", entry.sample_id, f"no {error}") from None
        check_size(regions.image, (height, width), entry.sample_id)
        for annotation_id, segmentation, area in rows:
            try:
                counts = rle_counts(segmentation, regions)
            except ValueError as error:
                regions.drop(str(error), f"annotation {annotation_id}")
                continue
            regions.add_rle(counts, annotation_id, Kind.CLASS_AGNOSTIC, area=area)
        return regions.read(self.dataset, split)

    def _is_val(self, key: str) -> bool:
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        return number < self.val_share * 2**64


SOURCE = Sa1b()


def _annotation_file(files: Files, entry: Entry) -> Any:
    """The parsed json beside the image: one bad file among millions is a bad sample, not the end of the job."""
    path = entry.image.removesuffix(".jpg") + ".json"
    try:
        return parse_json(files.read_bytes(path), path)
    except (ValueError, FileNotFoundError) as error:
        raise BadSample("broken annotation file", entry.sample_id, str(error)) from None
