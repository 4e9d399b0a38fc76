"""PartImageNet: `{train,val}.json` with polygons of parts, and images in one folder per ImageNet class.

Objects are not annotated.  The object region of an image is derived: the union of the parts of one kind of object.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from pycocotools import mask as coco_mask

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
from pipelines.sources.values import Row, as_is
from semsam.data.schema import Kind

_LAYOUTS = (
    "{split}/{prefix}/{name}",
    "images/{split}/{prefix}/{name}",
    "images/{split}/{name}",
    "{split}/{name}",
    "images/{file_name}",
    "{file_name}",
)


@dataclass(frozen=True)
class PartImageNet(Source):
    """Derived object regions, and after each the parts that it is made of."""

    dataset: str = "partimagenet"

    def index(self, files: Files, split: str) -> Index:
        places = [f"{split}.json", f"annotations/{split}.json", f"annotations/{split}/{split}.json"]
        document = Document(files, places, load_categories(self.dataset))
        return index_document(files, document, split, _LAYOUTS, {"segmentation": as_is}, self.allow_absent)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        rows = orjson.loads(entry.annotations)
        paths = possible_paths(files, entry, _LAYOUTS, split, rows["file_name"])
        regions = Regions(entry.sample_id, read_image(files, paths, entry.sample_id, self.max_pixels))
        regions.file = f"{files.path}/{rows['file']}"
        check_size(regions.image, (rows["height"], rows["width"]), entry.sample_id)
        by_object: dict[int, list[tuple[Row, str, Category]]] = {}
        for known in known_rows(regions, rows["annotations"], load_categories(self.dataset)):
            by_object.setdefault(known[2].object, []).append(known)
        for parts in by_object.values():
            _add_object(regions, parts)
        return regions.read(self.dataset, split)


SOURCE = PartImageNet()


def _add_object(regions: Regions, rows: list[tuple[Row, str, Category]]) -> None:
    """Add the union of the parts of one kind of object, and after it the parts."""
    found = Regions(regions.sample_id, regions.image)
    found.file = regions.file
    for row, annotation_id, category in rows:
        add_segmentation(found, row, annotation_id, Kind.PART, category)
    regions.dropped += found.dropped
    if not found.regions:
        return
    # A crowd of parts covers more than the parts, so it shapes the object only where there is nothing else.
    single = [part for part in found.regions if not part.is_crowd]
    size = [regions.image.height, regions.image.width]
    counts = coco_mask.merge([{"size": size, "counts": part.rle} for part in single or found.regions])["counts"]
    whole = Category(rows[0][2].object, None, rows[0][2].thing)
    name = load_categories(PartImageNet.dataset).vocabulary.objects[whole.object]
    parent = regions.add_rle(counts, f"derived/{name}", Kind.DERIVED, whole, is_crowd=not single)
    regions.regions += [part._replace(parent=parent) for part in found.regions]
