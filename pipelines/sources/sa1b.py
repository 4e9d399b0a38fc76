"""SA-1B: `sa_*.jpg` beside `sa_*.json`, in one folder or in subfolders such as `sa_000000/`.

There is no official split.  If the root has folders `train/` and `val/`, they are the split; otherwise an image belongs
to val when a hash of its id falls into the share `val_share`, which is the same for ever and for every copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from pipelines.sources.coco_json import add_segmentation, annotation_values, sample_id
from pipelines.sources.file_names import Rows, Stems, pieces, texts
from pipelines.sources.held_out import place_of
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
        return next(iter(self.indexes(files, (split,))))

    def indexes(self, files: Files, splits: Sequence[str]) -> Iterator[Index]:
        stems = Stems.of(files.walk(), "sa_", "jpg", "json", _key)  # One walk through 22 million files.
        has_folders = pc.any(pc.starts_with(stems.annotated, "val/")).as_py() or bool(files.glob("val/*"))
        if not has_folders:
            is_val = [self._are_val(pieces(one)) for one in (stems.annotated, stems.unannotated)]
        for split in splits:
            if has_folders:
                both = [pc.starts_with(one, f"{split}/") for one in (stems.annotated, stems.unannotated)]
                chosen = [np.asarray(one) for one in both]
            else:
                chosen = [one == (split == "val") for one in is_val]
            rows, alone = map(np.flatnonzero, chosen)
            if not len(rows if has_folders else stems.annotated):
                raise ValueError(f"{files.path}: found no sa_*.json")
            yield _index(files, stems, rows, alone)

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

    def _are_val(self, stems: Iterable[str]) -> Bool[np.ndarray, " stems"]:
        return np.fromiter((self._is_val(_key(stem)) for stem in stems), bool)

    def _is_val(self, key: str) -> bool:
        return place_of(key) < self.val_share * 2**64


SOURCE = Sa1b()


def _index(files: Files, stems: Stems, rows: Int64[np.ndarray, " r"], alone: Int64[np.ndarray, " a"]) -> Index:
    """The entries at some rows of the stems, and what is rejected: the same id again, and images alone."""
    groups = stems.groups[rows]
    is_again = np.zeros(len(rows), bool)
    is_again[1:] = groups[1:] == groups[:-1]
    for first in np.flatnonzero(is_again[1:] & ~is_again[:-1]).tolist():  # Of one id the first path is taken.
        last = first + 1
        while last < len(rows) and is_again[last]:
            last += 1
        rows[first:last] = rows[first:last][np.argsort(texts(stems.annotated, rows[first:last]))]

    def entries(some: Int64[np.ndarray, " s"]) -> list[Entry]:
        return [Entry(_key(stem), f"{stem}.jpg") for stem in texts(stems.annotated, some)]

    def rejected(some: Int64[np.ndarray, " s"]) -> list[Rejected]:
        again, missing = texts(stems.annotated, some[some >= 0]), texts(stems.unannotated, -1 - some[some < 0])
        return [
            *(Rejected("duplicate image id", _key(stem), f"{files.path}/{stem}.json") for stem in again),
            *(Rejected("missing annotation file", _key(stem), f"{files.path}/{stem}.json") for stem in missing),
        ]

    return Index(Rows(rows[~is_again], entries), Rows(np.concatenate([rows[is_again], -1 - alone]), rejected))


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
