"""PACO-LVIS: `paco_lvis_v1_{train,val}.json`, with the images in COCO's folders (`train2017/x.jpg`).

The images may lie below the root, or below a neighbour that the settings name (`neighbours: [../coco]`).

Objects and parts are rows of one list; an object's `obj_ann_id` is its own id, a part's is its object's.  The dataset
is federated: an image speaks of the names that its rows bear and of its `neg_category_ids`, which were looked for and
not found; all others are unknown there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from pipelines.sources.categories import Category, load_categories
from pipelines.sources.coco_json import (
    Document,
    add_segmentation,
    index_document,
    known_rows,
    possible_paths,
)
from pipelines.sources.regions import Regions
from pipelines.sources.source import Entry, Files, Index, Read, Source
from pipelines.sources.stored_image import check_size, read_image
from pipelines.sources.values import Row, as_int, as_ints, as_is, take
from semsam.data.schema import Kind

_LAYOUTS = ("{file_name}", "images/{file_name}", "coco/{file_name}")


@dataclass(frozen=True)
class Paco(Source):
    """Objects, and parts that know their object."""

    dataset: str = "paco"
    image_ids: str = "coco"

    def index(self, files: Files, split: str) -> Index:
        name = f"paco_lvis_v1_{split}.json"
        document = Document(files, [f"annotations/{name}", name], load_categories(self.dataset))
        fields = {"segmentation": as_is, "obj_ann_id": as_int}
        more = partial(_listed_names, document)
        return index_document(files, document, split, _LAYOUTS, fields, self.allow_absent, more)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        rows = orjson.loads(entry.annotations)
        paths = possible_paths(files, entry, _LAYOUTS, split, rows["file_name"])
        regions = Regions(entry.sample_id, read_image(files, paths, entry.sample_id, self.max_pixels))
        regions.file = f"{files.path}/{rows['file']}"
        check_size(regions.image, (rows["height"], rows["width"]), entry.sample_id)
        for native in rows["unknown"]:
            regions.drop("listed name outside the vocabulary", f"category id {native}")
        known = list(known_rows(regions, rows["annotations"], load_categories(self.dataset)))
        ids = {row["id"] for row in rows["annotations"]}
        index_of_object: dict[int, int | None] = {}
        for row, annotation_id, category in known:
            if category.part is None:
                index_of_object[row["id"]] = add_segmentation(regions, row, annotation_id, Kind.INSTANCE, category)
        for row, annotation_id, category in known:
            if category.part is not None:
                # The object's row may be unusable; the part's own category still says what object it is of.
                parent = index_of_object.get(row["obj_ann_id"])
                add_segmentation(regions, row, annotation_id, Kind.PART, category, parent)
                if row["obj_ann_id"] not in ids:
                    regions.drop("part without its object", f"annotation {annotation_id}: no {row['obj_ann_id']}")
        return regions.read(self.dataset, split, **_checked(rows, [category for _, _, category in known]))


SOURCE = Paco()


def _listed_names(document: Document, row: Row) -> Row:
    """What an image's row says of names, as positions in `Categories.all`, and the ids of names that are not there."""
    absent: Sequence[int] = take(row, "neg_category_ids", as_ints, [])
    not_exhaustive: Sequence[int] = take(row, "not_exhaustive_category_ids", as_ints, [])
    return {
        "absent": document.positions(absent),
        "not_exhaustive": document.positions(not_exhaustive),
        "unknown": document.unknown([*absent, *not_exhaustive]),
    }


def _checked(rows: dict[str, Any], present: list[Category]) -> dict[str, tuple[int, ...]]:
    """The names that were looked for on this image, whether found or not, and those found but not marked everywhere."""
    all_categories = load_categories(Paco.dataset).all
    looked_for = present + [all_categories[i] for i in rows["absent"]]
    partly_marked = [all_categories[i] for i in rows["not_exhaustive"]]
    return {
        "checked_objects": tuple(sorted({c.object for c in looked_for if c.part is None})),
        "checked_parts": tuple(sorted({c.part for c in looked_for if c.part is not None})),
        "not_exhaustive_objects": tuple(sorted({c.object for c in partly_marked if c.part is None})),
    }
