"""Objects365 v2: `zhiyuan_objv2_{train,val}.json`, boxes only.

The json says `images/v1/patch8/x.jpg`; copies have `patch8/x.jpg` in one place or another.  Three train images are
missing from every copy.  Drawn objects (`isfake`) and mirror images (`isreflected`) are ordinary boxes here.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from pipelines.sources.categories import load_categories
from pipelines.sources.coco_json import Document, index_document, known_rows, possible_paths
from pipelines.sources.regions import Regions
from pipelines.sources.source import Entry, Files, Index, Read, Source
from pipelines.sources.stored_image import check_size, read_image
from pipelines.sources.values import as_box
from semsam.data.schema import Kind

_LAYOUTS = (
    "{file_name}",
    "{split}/{file_name}",
    "{split}/{folder}/{name}",
    "images/{split}/{folder}/{name}",
    "images/{split}/{release}/{folder}/{name}",
    "images/{folder}/{name}",
    "{folder}/{name}",
)


@dataclass(frozen=True)
class Objects365(Source):
    """Boxes clipped to the image."""

    dataset: str = "objects365"

    def index(self, files: Files, split: str) -> Index:
        name = f"zhiyuan_objv2_{split}.json"
        places = [f"annotations/{name}", name, f"{split}/{name}"]
        document = Document(files, places, load_categories(self.dataset))
        return index_document(files, document, split, _LAYOUTS, {"bbox": as_box}, self.allow_absent)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        rows = orjson.loads(entry.annotations)
        paths = possible_paths(files, entry, _LAYOUTS, split, rows["file_name"])
        regions = Regions(entry.sample_id, read_image(files, paths, entry.sample_id, self.max_pixels))
        regions.file = f"{files.path}/{rows['file']}"
        check_size(regions.image, (rows["height"], rows["width"]), entry.sample_id)
        for row, annotation_id, category in known_rows(regions, rows["annotations"], load_categories(self.dataset)):
            regions.add_box(
                row["bbox"], annotation_id, Kind.INSTANCE, category, area=row["area"], is_crowd=row["iscrowd"]
            )
        return regions.read(self.dataset, split)


SOURCE = Objects365()
