"""Generated masks as the results json that COCO's tools read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import orjson
import pyarrow as pa

from pipelines.generate.mask_files import MaskReport, read_masks
from pipelines.parts import Part
from semsam.storage import Folder

RESULTS_NAME = "coco_results.json"
IMAGES_NAME = "coco_images.json"
ANYTHING = "object"  # The only category where no names were given.


def write_coco_results(folder: Folder, parts: Sequence[Part[MaskReport]], categories: Mapping[str, int]) -> None:
    """Write `coco_results.json`, and `coco_images.json` with the images and categories that its ids stand for.

    A result's score is the predicted IoU, times the name's score where there is one, within [0, 1].  An image's id is
    its file name where all file names are different numbers, as in COCO, else its place in the order of the paths.
    """
    ids = image_ids([image for part in parts for image in _images(folder, part)])
    rows: list[dict[str, Any]] = []
    with folder.publishing(RESULTS_NAME) as draft, draft.open("wb") as stream:
        stream.write(b"[")
        separator = b"\n"
        for part in parts:
            for row in read_masks(folder, part).to_pylist():
                image_id = ids[row["image"]]
                size = [row["height"], row["width"]]
                rows.append({"id": image_id, "file_name": row["image"], "height": size[0], "width": size[1]})
                for mask in row["masks"]:
                    stream.write(separator + orjson.dumps(_result(mask, image_id, size, categories)))
                    separator = b",\n"
        stream.write(b"\n]\n")
    listed = [{"id": number, "name": name} for name, number in (categories or {ANYTHING: 1}).items()]
    document = {"images": rows, "categories": listed, "annotations": []}
    folder.write(IMAGES_NAME, orjson.dumps(document, option=orjson.OPT_INDENT_2))


def image_ids(images: Sequence[str]) -> dict[str, int]:
    """An id for each path of a photo."""
    stems = [PurePosixPath(image).stem for image in images]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    if len(set(numbers)) == len(images):
        return dict(zip(images, numbers, strict=True))
    return {image: place for place, image in enumerate(images, start=1)}


def _result(mask: Mapping[str, Any], image_id: int, size: list[int], categories: Mapping[str, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = mask["box_xyxy"]
    score = mask["iou_prediction"] * (1.0 if mask["object_name"] is None else mask["object_score"])
    return {
        "image_id": image_id,
        "category_id": 1 if mask["object_name"] is None else categories[mask["object_name"]],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": min(max(score, 0.0), 1.0),
        "segmentation": {"size": size, "counts": mask["rle"]},
    }


def _images(folder: Folder, part: Part[MaskReport]) -> list[str]:
    table: pa.Table = read_masks(folder, part)
    images: list[str] = table["image"].to_pylist()
    return images
