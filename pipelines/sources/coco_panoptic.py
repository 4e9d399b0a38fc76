"""COCO 2017 with panoptic annotations, in its release layout:

    annotations/panoptic_{train,val}2017.json    annotations/instances_{train,val}2017.json
    panoptic_{train,val}2017/*.png               {train,val}2017/*.jpg

A record holds the panoptic segments, which are trained on, and the instances, on which AP is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from jaxtyping import Int64

from pipelines.files import Files
from pipelines.sources.categories import load_categories
from pipelines.sources.coco_json import Document, add_segmentation, known_rows, orphans, pack, sample_id
from pipelines.sources.regions import Regions, masks_of
from pipelines.sources.source import Entry, Index, Read, Rejected
from pipelines.sources.stored_image import check_size, read_image, read_map
from semsam.data.images import MAX_PIXELS, decode_rgb_map
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind


@dataclass(frozen=True)
class CocoPanoptic:
    """Segments with the exact pixels of the PNGs, and instances from polygons or run lengths."""

    dataset: str = "coco_panoptic"
    version: int = 1
    train_long_side: int = 0
    allow_absent: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS

    def vocabulary(self) -> Vocabulary:
        return load_categories(self.dataset).vocabulary

    def index(self, files: Files, split: str) -> Index:
        categories = load_categories(self.dataset)
        panoptic = Document(files, [f"annotations/panoptic_{split}2017.json"], categories)
        images, rejected = panoptic.first_images()
        segments = panoptic.annotations(("id", "iscrowd", "area"), inner="segments_info")
        document = Document(files, [f"annotations/instances_{split}2017.json"], categories)
        instances = document.annotations(("id", "iscrowd", "area", "segmentation"))
        pngs = self._pngs(files, split)
        entries = []
        for row in images:
            key, png = sample_id(row["id"]), row["file_name"].rpartition(".")[0] + ".png"
            short = {name: row[name] for name in ("height", "width")}
            if row["id"] not in segments:
                rejected.append(Rejected("missing panoptic annotation", key, f"{panoptic.path}: {row['file_name']}"))
            elif png not in pngs:
                rejected.append(Rejected("missing panoptic PNG", key, f"{files.root}/panoptic_{split}2017/{png}"))
            else:
                lists = {"segments": segments[row["id"]], "instances": instances.get(row["id"], bytearray())}
                packed = pack(short | {"png": pngs[png]}, **lists)
                entries.append(Entry(key, f"{split}2017/{row['file_name']}", packed))
        rejected += orphans(segments.keys() - {row["id"] for row in images}, panoptic.path)
        return Index(sorted(entries, key=lambda entry: entry.sample_id), rejected)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        rows = orjson.loads(entry.annotations)
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id, self.max_pixels))
        check_size(regions.image, (rows["height"], rows["width"]), entry.sample_id)
        self._add_segments(regions, rows["segments"], _segment_ids(files, rows["png"], regions))
        for row, annotation_id, category in known_rows(regions, rows["instances"], load_categories(self.dataset)):
            add_segmentation(regions, row, annotation_id, Kind.INSTANCE, category)
        return regions.read(self.dataset, split)

    def _add_segments(self, regions: Regions, rows: list[dict[str, Any]], ids: Int64[np.ndarray, "h w"]) -> None:
        masks = dict(masks_of(ids))
        listed = {row["id"] for row in rows}
        for row, annotation_id, category in known_rows(regions, rows, load_categories(self.dataset)):
            mask = masks.get(row["id"])
            if mask is None:
                regions.drop("empty mask", f"segment {annotation_id} has no pixel")
            else:
                is_crowd = bool(row.get("iscrowd", 0))
                regions.add_mask(mask, annotation_id, Kind.PANOPTIC, category, is_crowd=is_crowd)
        for unlisted in masks.keys() - listed:
            regions.drop("segment not in json", f"segment {unlisted}: {masks[unlisted].sum()} pixels")

    def _pngs(self, files: Files, split: str) -> dict[str, str]:
        """The path of each PNG by its name: half-unzipped folders are a common accident, and one listing shows it.

        The zip files lie in `annotations/`, where some copies have unzipped them.
        """
        folder = f"panoptic_{split}2017/*.png"
        paths = files.glob(folder) or files.glob(f"annotations/{folder}")
        return {path.rpartition("/")[2]: path for path in paths}


SOURCE = CocoPanoptic()


def _segment_ids(files: Files, path: str, regions: Regions) -> Int64[np.ndarray, "h w"]:
    """The segment of each pixel: red + 256 green + 65536 blue; 0 is void."""
    pixels = read_map(files, path, decode_rgb_map, regions.image, regions.sample_id, "broken panoptic PNG")
    ids: Int64[np.ndarray, "h w"] = pixels.astype(np.int64) @ np.array([1, 256, 65536])
    return ids
