"""What the datasets with one big COCO-like json share: parsing it, cutting it up by image, and its masks.

An `Entry` made here carries the rows of its image as compact JSON: `file_name`, `height`, `width`, and `annotations`
whose `category` is a position in `Categories.all` (null for an unknown id) beside the keys that the source asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from pycocotools import mask as coco_mask

from pipelines.files import Files, find_file
from pipelines.sources.categories import Categories, Category
from pipelines.sources.json_lists import JsonLists, Row
from pipelines.sources.regions import Regions, finite
from pipelines.sources.source import BadSample, Entry, Index, Rejected
from semsam.data import rle
from semsam.data.schema import Kind

_FARTHEST = 1e5  # No image is as large; the rasteriser's memory grows with the length of an edge.


class Document:
    """A COCO-like json at one of several places: its images, its annotations, and what its category ids mean."""

    def __init__(self, files: Files, places: Sequence[str], categories: Categories) -> None:
        path = find_file(files, places)
        self.path = f"{files.root}/{path}"
        self._lists = JsonLists(files.read_bytes(path), self.path)
        self._positions = categories.positions_of_ids(self._rows("categories", ("id", "name")))
        self.images = list(self._rows("images", ("id", "file_name", "height", "width")))

    def first_images(self) -> tuple[list[Row], list[Rejected]]:
        """The image rows without those whose id has come before."""
        first: dict[Any, Row] = {}
        rejected = []
        for row in self.images:
            if row["id"] in first:
                rejected.append(
                    Rejected("duplicate image id", sample_id(row["id"]), f"{self.path}: {row['file_name']}")
                )
            first.setdefault(row["id"], row)
        return list(first.values()), rejected

    def annotations(self, keep: Sequence[str], inner: str | None = None) -> dict[Any, bytearray]:
        """The annotations of each image id, with the keys `keep` and `category`: JSON rows separated by commas.

        With `inner`, the rows lie in a list of that name in each annotation (panoptic `segments_info`).  JSON, because
        27 million rows as dicts do not fit into many a machine's memory.
        """
        by_image: dict[Any, bytearray] = {}
        for annotation in self._rows("annotations", ("image_id", inner) if inner else ("image_id",)):
            rows = by_image.setdefault(annotation["image_id"], bytearray())
            for row in annotation[inner] if inner else [annotation]:
                rows += b"," if rows else b""
                rows += orjson.dumps({key: row[key] for key in keep if key in row} | self._category(row))
        return by_image

    def positions(self, native_ids: Iterable[int]) -> list[int]:
        """Where in `Categories.all` the known ones among these category ids are."""
        return sorted(self._positions[i] for i in native_ids if i in self._positions)

    def _category(self, row: Row) -> Row:
        native = row.get("category_id")
        if native in self._positions:
            return {"category": self._positions[native]}
        return {"category": None, "category_id": native}

    def _rows(self, name: str, required: Sequence[str]) -> Iterator[Row]:
        for i, row in enumerate(self._lists.rows(name)):
            for key in required:
                if key not in row:
                    raise ValueError(f"{self.path}: {name}[{i}] has no {key!r}")
            yield row


def pack(values: Row, **lists: bytearray) -> bytes:
    """The JSON of an entry: `values`, and lists whose rows are JSON already."""
    fragments = {name: orjson.Fragment(b"[" + rows + b"]") for name, rows in lists.items()}
    return bytes(memoryview(orjson.dumps(values | fragments)))


def index_document(
    files: Files,
    document: Document,
    split: str,
    layouts: Sequence[str],
    keep: Sequence[str],
    keep_image: Sequence[str] = (),
) -> Index:
    """One entry per image of the document; `layouts` are the places where its images may lie (see `image_paths`)."""
    rows, rejected = document.first_images()
    annotations = document.annotations(keep)
    layouts = _order_layouts(files, layouts, split, rows)
    entries = []
    for row in rows:
        short = {key: row[key] for key in ("file_name", "height", "width", *keep_image) if key in row}
        path = image_paths(layouts, split, row["file_name"])[0]
        packed = pack(short, annotations=annotations.pop(row["id"], bytearray()))
        entries.append(Entry(sample_id(row["id"]), path, packed))
    rejected += orphans(annotations, document.path)
    return Index(sorted(entries, key=lambda entry: entry.sample_id), rejected)


def orphans(image_ids: Iterable[Any], path: str) -> list[Rejected]:
    """The images that have annotations but are not listed."""
    return [Rejected("annotations of an image that is not listed", sample_id(i), path) for i in image_ids]


def image_paths(layouts: Sequence[str], split: str, file_name: str) -> list[str]:
    """Where an image may lie: `layouts` with {split}, {file_name}, its last part {name}, the folder {folder} it is in,
    the folder {release} above that, and the {prefix} of its name up to "_" (ImageNet's class)."""
    parts = ["", "", *file_name.split("/")]
    values = {
        "split": split,
        "file_name": file_name,
        "name": parts[-1],
        "folder": parts[-2],
        "release": parts[-3],
        "prefix": parts[-1].partition("_")[0],
    }
    return list(dict.fromkeys(layout.format(**values) for layout in layouts))


def possible_paths(entry: Entry, layouts: Sequence[str], split: str, file_name: str) -> list[str]:
    """The entry's own path, then all others where its image may lie."""
    return list(dict.fromkeys([entry.image, *image_paths(layouts, split, file_name)]))


def sample_id(native: int | str) -> str:
    """The id as text that sorts as the ids do: integers are padded to 12 digits."""
    return f"{native:012d}" if isinstance(native, int) else str(native)


def known_rows(regions: Regions, rows: Sequence[Row], categories: Categories) -> Iterator[tuple[Row, str, Category]]:
    """Each row with its annotation id and category; the others are dropped as "unknown category"."""
    for row in rows:
        if row["category"] is None:
            regions.drop("unknown category", f"annotation {row.get('id')}: category id {row.get('category_id')}")
        else:
            yield row, str(row.get("id")), categories.all[row["category"]]


def add_segmentation(
    regions: Regions, row: Row, annotation_id: str, kind: Kind, category: Category, parent: int | None = None
) -> int | None:
    """Add a row's `segmentation` (polygons, run lengths, or RLE string) with its native area and crowd flag.

    Raises `BadSample` "RLE size differs from image"; drops "empty mask", "broken polygon" and "broken RLE".
    """
    try:
        counts = _counts(row.get("segmentation"), regions)
    except ValueError as error:
        regions.drop(str(error), f"annotation {annotation_id}")
        return None
    is_crowd = bool(row.get("iscrowd", 0))
    return regions.add_rle(
        counts, annotation_id, kind, category, area=row.get("area"), parent=parent, is_crowd=is_crowd
    )


def rle_counts(segmentation: Mapping[str, Any], regions: Regions) -> bytes:
    """The counts of an RLE object, strings unchanged.

    Raises `BadSample` when it is of another size than the image, and `ValueError` ("broken RLE").
    """
    height, width = regions.image.height, regions.image.width
    if list(segmentation.get("size", ())) != [height, width]:
        detail = f"RLE {segmentation.get('size')}, image [{height}, {width}]"
        raise BadSample("RLE size differs from image", regions.sample_id, detail)
    counts = segmentation.get("counts")
    try:
        if isinstance(counts, str):
            return counts.encode("ascii")
        return rle.encode_counts(np.array(counts, np.int64))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("broken RLE") from None


def _counts(segmentation: Any, regions: Regions) -> bytes:
    """COCO counts of one mask.  Raises `ValueError` with the reason to drop it by."""
    if isinstance(segmentation, dict):
        return rle_counts(segmentation, regions)
    if not isinstance(segmentation, list):
        raise ValueError("empty mask")
    # Two points or fewer enclose nothing; and pycocotools would take four numbers for a box.
    polygons = [p for p in segmentation if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
    if not polygons:
        raise ValueError("empty mask")
    for value in itertools.chain.from_iterable(polygons):
        if finite(value) is None or abs(value) > _FARTHEST:
            raise ValueError("broken polygon")
    pieces = coco_mask.frPyObjects(polygons, regions.image.height, regions.image.width)
    counts: bytes = coco_mask.merge(pieces)["counts"]
    return counts


def _order_layouts(files: Files, layouts: Sequence[str], split: str, rows: Sequence[Row]) -> list[str]:
    """The layouts with the one in use first, as far as a few images can tell."""
    for row in rows[:8]:
        for layout in layouts:
            if files.exists(image_paths([layout], split, row["file_name"])[0]):
                return [layout, *(other for other in layouts if other != layout)]
    return list(layouts)
