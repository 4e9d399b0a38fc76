"""COCO 2017: panoptic PNGs and json beside the instances' json.  Poles are void, as things without a category are."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.sources.categories import load_categories
from pipelines.toy.names import OBJECTS, STUFF, native_ids
from pipelines.toy.native_split import (
    ALL_CROWD,
    BROKEN,
    NO_ANNOTATIONS,
    SOME_CROWD,
    SPOILED,
    Mask,
    NativeSplit,
    polygon_area,
    polygons,
    run_lengths,
    xywh,
)
from pipelines.toy.scenes import Scene

_DATASET = "coco_panoptic"
_NO_CATEGORY = 12  # COCO's ids have gaps.


def write(native: NativeSplit) -> None:
    """Write one split."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for number, scene in native.numbered():
        image_id = 7 * number + (9 if native.split == "train" else 500_003)
        name = f"{image_id:012d}"
        native.write_image(f"{native.split}2017/{name}.jpg", scene.image, native.has(BROKEN, number))
        images.append(_image(image_id, scene))
        segments = _segments(native, number, scene)
        pixels = np.zeros(scene.size, np.int64)
        for segment, mask in segments:
            pixels[mask] = segment["id"]
        rgb = np.stack([pixels % 256, pixels // 256 % 256, pixels // 65536], axis=-1)
        native.write_png(f"panoptic_{native.split}2017/{name}.png", rgb.astype(np.uint8))
        rows = [segment for segment, _ in segments]
        annotations.append({"segments_info": rows, "file_name": f"{name}.png", "image_id": image_id})
        things = [_instance(s, mask, image_id) for s, mask in segments if s["category_id"] in _things()]
        instances += things
        _count(native, number, rows, things, has_void=bool((pixels == 0).any()))
        if native.has(SPOILED, number):
            instances.append(things[0] | {"id": things[0]["id"] + 1, "category_id": _NO_CATEGORY})
            rows.append(rows[0] | {"id": 1, "area": 0})
            native.drop_region("unknown category")
            native.drop_region("empty mask")
    for row, instance in enumerate(instances):
        instance["id"] = 1000 + row
    _write_json(native, "panoptic", images, annotations, with_stuff=True)
    _write_json(native, "instances", images, instances, with_stuff=False)


def _segments(native: NativeSplit, number: int, scene: Scene) -> list[tuple[dict[str, Any], Mask]]:
    """The segments of an image, each with its pixels."""
    if native.has(NO_ANNOTATIONS, number):
        return []
    ids, all_crowd, some_crowd = native_ids(_DATASET), native.has(ALL_CROWD, number), native.has(SOME_CROWD, number)
    named = [(OBJECTS[_DATASET].get(t.kind), scene.thing_mask(t)) for t in scene.things]
    found = [(ids[name], mask, all_crowd) for name, mask in named if name]
    if some_crowd:
        found[0] = (*found[0][:2], True)
    if not all_crowd:
        found += [(ids[STUFF[_DATASET][name]], mask, False) for name, mask in scene.stuff_masks()]
    segment_ids = native.rng.choice(2**24 - 2, len(found), replace=False) + 2
    return [
        (
            {
                "id": int(segment_id),
                "category_id": category,
                "iscrowd": int(is_crowd),
                "bbox": xywh(mask),
                "area": int(mask.sum()),
            },
            mask,
        )
        for segment_id, (category, mask, is_crowd) in zip(segment_ids, found, strict=True)
    ]


def _instance(segment: dict[str, Any], mask: Mask, image_id: int) -> dict[str, Any]:
    """The instance of a thing's segment: polygons, or run lengths for a crowd."""
    if segment["iscrowd"]:
        return segment | {"image_id": image_id, "segmentation": run_lengths(mask)}
    outlines = polygons(mask)
    area = sum(polygon_area(outline) for outline in outlines)
    bbox = [float(value) for value in segment["bbox"]]
    return segment | {"image_id": image_id, "segmentation": outlines, "area": area, "bbox": bbox}


def _count(
    native: NativeSplit, number: int, rows: list[dict[str, Any]], things: list[dict[str, Any]], has_void: bool
) -> None:
    if native.has(BROKEN, number):
        native.drop_image("broken image")
        return
    native.keep(len(rows) + len(things))
    native.note("image with void pixels", int(has_void))
    native.note("crowd segment", sum(row["iscrowd"] for row in rows))
    native.note("image of crowds alone", int(bool(rows) and all(row["iscrowd"] for row in rows)))


def _image(image_id: int, scene: Scene) -> dict[str, Any]:
    height, width = scene.size
    urls = {"coco_url": "", "flickr_url": "", "date_captured": "2013-11-14 11:18:45", "license": 1}
    return {"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": height, "width": width} | urls


def _write_json(
    native: NativeSplit, kind: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]], with_stuff: bool
) -> None:
    info = {"description": "toy world in the layout of COCO 2017", "version": "1.0", "year": 2017}
    licenses = [{"id": 1, "name": "none", "url": ""}]
    categories = _categories(with_stuff)
    document = {"info": info, "licenses": licenses, "images": images, "annotations": annotations}
    native.write_json(f"annotations/{kind}_{native.split}2017.json", document | {"categories": categories})


def _categories(with_stuff: bool) -> list[dict[str, Any]]:
    """The rows of a json's `categories`: 133 for panoptic segments, 80 for instances."""
    rows = []
    for row in load_categories(_DATASET).document["objects"]:
        category = {"supercategory": "toy", "id": row["id"], "name": row["name"]}
        if with_stuff:
            color = [row["id"] * 37 % 256, row["id"] * 101 % 256, row["id"] * 179 % 256]
            rows.append(category | {"color": color, "isthing": int(row["thing"])})
        elif row["thing"]:
            rows.append(category)
    return rows


def _things() -> set[int]:
    return {row["id"] for row in load_categories(_DATASET).document["objects"] if row["thing"]}
