"""COCO 2017 with panoptic annotations, in its release layout:

    annotations/panoptic_{train,val}2017.json    annotations/instances_{train,val}2017.json
    panoptic_{train,val}2017/*.png               {train,val}2017/*.jpg

A record holds the panoptic segments, which are trained on, and the instances, on which AP is measured: with their own
areas and boxes, which are not quite those of their masks.  A copy without the instances' json is read all the same, and
its index says that it lacks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from jaxtyping import Int64

from pipelines.sources.categories import load_categories
from pipelines.sources.coco_json import (
    NOT_LISTED,
    Document,
    ListedImage,
    add_segmentation,
    known_rows,
    pack,
    sample_id,
)
from pipelines.sources.regions import Regions, masks_of
from pipelines.sources.source import Entry, Files, Index, Read, Rejected, Source
from pipelines.sources.stored_image import check_size, read_image, read_map
from pipelines.sources.values import OddValue, as_box, as_int, as_is, as_list, as_path, take
from semsam.data.images import decode_rgb_map
from semsam.data.schema import Kind

_PANOPTIC, _INSTANCES = "annotations/panoptic_{split}2017.json", "annotations/instances_{split}2017.json"


@dataclass(frozen=True)
class CocoPanoptic(Source):
    """Segments with the exact pixels of the PNGs, and instances from polygons or run lengths."""

    dataset: str = "coco_panoptic"
    version: int = 2
    image_ids: str = "coco"

    def index(self, files: Files, split: str) -> Index:
        panoptic = self._panoptic(files, split)
        images, annotations, pngs = panoptic.images(), _annotations(panoptic), self._pngs(files, split)
        instances = self._instances(files, split, panoptic, images)
        rejected, entries = panoptic.rejected, []
        for image in images:
            segments, png = annotations.pop(image.id, (None, ""))
            png = png or image.file_name.rpartition(".")[0] + ".png"
            if segments is None:
                detail = f"{panoptic.path}: {image.file_name}"
                rejected.append(Rejected("missing panoptic annotation", image.key, detail))
            elif png not in pngs:
                rejected.append(Rejected("missing panoptic PNG", image.key, f"{files.path}/panoptic_{split}2017/{png}"))
            else:
                lists = {"segments": segments, "instances": instances.get(image.id, bytearray())}
                packed = pack(image.to_row() | {"png": pngs[png]}, **lists)
                entries.append(Entry(image.key, f"{split}2017/{image.file_name}", packed))
        for image_id, (_, png) in annotations.items():
            rejected.append(Rejected(NOT_LISTED, sample_id(image_id), f"{panoptic.path}: {png}"))
        entries.sort(key=lambda entry: entry.sample_id)
        return Index(entries, rejected, panoptic.rejected_regions, () if instances else ("instances",))

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        rows = orjson.loads(entry.annotations)
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id, self.max_pixels))
        regions.file = f"{files.path}/{_PANOPTIC.format(split=split)}"
        check_size(regions.image, (rows["height"], rows["width"]), entry.sample_id)
        self._add_segments(regions, rows["segments"], _segment_ids(files, rows["png"], regions))
        regions.file = f"{files.path}/{_INSTANCES.format(split=split)}"
        for row, annotation_id, category in known_rows(regions, rows["instances"], load_categories(self.dataset)):
            add_segmentation(regions, row, annotation_id, Kind.INSTANCE, category)
        return regions.read(self.dataset, split)

    def _add_segments(self, regions: Regions, rows: list[dict[str, Any]], ids: Int64[np.ndarray, "h w"]) -> None:
        masks = dict(masks_of(ids))
        listed = {row["id"] for row in rows}
        for row, annotation_id, category in known_rows(regions, rows, load_categories(self.dataset)):
            mask = masks.get(row["id"])
            if row["id"] == 0:
                regions.drop("segment id 0 is void", f"category {category.object}")
            elif mask is None:
                regions.drop("empty mask", f"segment {annotation_id} has no pixel")
            else:
                regions.add_mask(mask, annotation_id, Kind.PANOPTIC, category, is_crowd=row["iscrowd"])
        for unlisted in masks.keys() - listed:
            regions.drop("segment not in json", f"segment {unlisted}: {masks[unlisted].sum()} pixels")

    def _panoptic(self, files: Files, split: str) -> Document:
        path, other_half = _PANOPTIC.format(split=split), _INSTANCES.format(split=split)
        if not files.exists(path):
            beside = "only" if files.exists(other_half) else "nor"
            raise ValueError(f"{files.path}: found no {path}, {beside} {other_half}; training needs the panoptic half")
        return Document(files, [path], load_categories(self.dataset))

    def _instances(
        self, files: Files, split: str, panoptic: Document, images: Sequence[ListedImage]
    ) -> dict[int, bytearray]:
        """The instances of each image, none where the copy has no json of them; all others are counted."""
        path = _INSTANCES.format(split=split)
        if not files.exists(path):
            return {}
        document = Document(files, [path], load_categories(self.dataset))
        instances, listed = document.annotations({"segmentation": as_is}, {"bbox": as_box}), document.image_ids()
        for image in images:
            if image.id not in listed:
                document.rejected_regions.append(
                    Rejected("image without instance annotations", image.key, document.path)
                )
        others = {key: instances.pop(key) for key in instances.keys() - {image.id for image in images}}
        document.reject_orphans({key: rows for key, rows in others.items() if key not in listed})
        of_other_images = {key: rows for key, rows in others.items() if key in listed}
        document.reject_orphans(of_other_images, "instance of an image without segments")
        panoptic.rejected_regions += document.rejected_regions
        return instances

    def _pngs(self, files: Files, split: str) -> dict[str, str]:
        """The path of each PNG by its name: half-unzipped folders are a common accident, and one listing shows it.

        The zip files lie in `annotations/`, where some copies have unzipped them.
        """
        folder = f"panoptic_{split}2017/*.png"
        paths = files.glob(folder) or files.glob(f"annotations/{folder}")
        return {path.rpartition("/")[2]: path for path in paths}


SOURCE = CocoPanoptic()


def _annotations(panoptic: Document) -> dict[int, tuple[bytearray, str]]:
    """The segments of each image as JSON rows, and the name of its PNG: empty where the annotation does not say."""
    found: dict[int, tuple[bytearray, str]] = {}
    for i, row in panoptic.rows("annotations"):
        where, rows = f"annotations[{i}]", bytearray()
        try:
            image, png = take(row, "image_id", as_int), take(row, "file_name", as_path, "")
            segments = take(row, "segments_info", as_list)
            if image in found:
                raise OddValue("image_id", f"{image} has an annotation already")
        except OddValue as fault:
            panoptic.reject("annotations", where, fault)
            continue
        found[image] = rows, png
        for j, segment in enumerate(segments):
            try:
                panoptic.append_row(rows, segment, {})
            except OddValue as fault:
                panoptic.reject("segments_info", f"{where}.segments_info[{j}]", fault, image)
    return found


def _segment_ids(files: Files, path: str, regions: Regions) -> Int64[np.ndarray, "h w"]:
    """The segment of each pixel: red + 256 green + 65536 blue; 0 is void."""
    pixels = read_map(files, path, decode_rgb_map, regions.image, regions.sample_id, "broken panoptic PNG")
    ids: Int64[np.ndarray, "h w"] = pixels.astype(np.int64) @ np.array([1, 256, 65536])
    return ids
