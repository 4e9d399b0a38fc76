"""PACO-LVIS: `annotations/paco_lvis_v1_*.json` with objects and parts in one list, images in COCO's folders."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.sources.categories import load_categories
from pipelines.toy.names import OBJECTS, PARTS, native_categories, native_ids
from pipelines.toy.native_split import (
    BROKEN,
    NO_ANNOTATIONS,
    SOME_CROWD,
    SPOILED,
    Mask,
    NativeSplit,
    compressed_rle,
    xywh,
)
from pipelines.toy.scenes import Scene

_DATASET = "paco"
_NO_CATEGORY = 4000

Row = dict[str, Any]


def write(native: NativeSplit) -> None:
    """Write one split."""
    images: list[Row] = []
    annotations: list[Row] = []
    for number, scene in native.numbered():
        image_id = 7 * number + (30 if native.split == "train" else 300_004)
        file_name = f"{native.split}2017/{image_id:012d}.jpg"
        is_broken = native.has(BROKEN, number)
        native.write_image(file_name, scene.image, is_broken)
        rows = [] if native.has(NO_ANNOTATIONS, number) else _rows(scene, image_id, 1 + len(annotations))
        if native.has(SOME_CROWD, number):
            lost = rows.pop(0)
            native.drop_region("part without its object", sum(row["obj_ann_id"] == lost["id"] for row in rows))
        images.append(_image(native, image_id, file_name, scene, rows))
        if is_broken:
            native.drop_image("broken image")
        else:
            native.keep(len(rows))
        if native.has(SPOILED, number):
            next_id = rows[-1]["id"] + 1
            nothing = {"segmentation": compressed_rle(np.zeros(scene.size, bool)), "area": 0, "bbox": [0, 0, 0, 0]}
            rows.append(rows[0] | {"id": next_id, "obj_ann_id": next_id, "category_id": _NO_CATEGORY})
            rows.append(rows[-2] | {"id": next_id + 1} | nothing)
            native.drop_region("unknown category")
            native.drop_region("empty mask")
        annotations += rows
    _write_json(native, images, annotations)


def _rows(scene: Scene, image_id: int, first_id: int) -> list[Row]:
    """The rows of the objects of an image, each followed by its parts."""
    ids = native_ids(_DATASET)
    rows: list[Row] = []
    for thing in scene.things:
        kind = OBJECTS[_DATASET].get(thing.kind)
        if kind is None:
            continue
        object_id = first_id + len(rows)
        rows.append(_row(scene.thing_mask(thing), object_id, object_id, ids[kind], image_id))
        for part, mask in scene.part_masks(thing, PARTS[_DATASET][thing.kind]):
            rows.append(_row(mask, first_id + len(rows), object_id, ids[f"{kind}:{part}"], image_id))
    return rows


def _row(mask: Mask, row_id: int, object_id: int, category: int, image_id: int) -> Row:
    return {
        "id": row_id,
        "bbox": xywh(mask),
        "area": int(mask.sum()),
        "category_id": category,
        "image_id": image_id,
        "segmentation": compressed_rle(mask),
        "attribute_ids": [],
        "dom_color_ids": [],
        "obj_ann_id": object_id,
        "unknown_color": 0,
        "unknown_pattern_marking": 0,
        "unknown_material": 0,
        "unknown_transparency": 0,
    }


def _image(native: NativeSplit, image_id: int, file_name: str, scene: Scene, rows: list[Row]) -> Row:
    """An image's row: which of the other categories were looked for in vain, and which found ones not marked fully."""
    height, width = scene.size
    present = {row["category_id"] for row in rows}
    absent = _categories_of_kinds() - present
    partly = [category for category in sorted(present) if native.rng.random() < 0.03]
    return {
        "id": image_id,
        "file_name": file_name,
        "height": height,
        "width": width,
        "license": 1,
        "neg_category_ids": sorted(absent),
        "not_exhaustive_category_ids": partly,
        "neg_category_ids_attrs": [],
        "not_exhaustive_category_ids_attrs": [],
    }


def _categories_of_kinds() -> set[int]:
    """The ids of what the toy world has, and of two things that it has not."""
    ids = native_ids(_DATASET)
    kinds = OBJECTS[_DATASET]
    pairs = {f"{kinds[kind]}:{part}" for kind, parts in PARTS[_DATASET].items() for part, _ in parts}
    return {ids[name] for name in [*kinds.values(), *pairs, "mug", "guitar"]}


def _write_json(native: NativeSplit, images: list[Row], annotations: list[Row]) -> None:
    parts = load_categories(_DATASET).document["parts"]
    categories = [
        {"supercategory": "PART" if ":" in name else "OBJECT", "id": i, "name": name}
        for i, name in native_categories(_DATASET)
    ]
    document = {
        "info": {"description": "toy world in the layout of PACO-LVIS v1"},
        "licenses": [{"id": 1, "name": "none", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": categories,
        "part_categories": [{"supercategory": "PART", "id": i, "name": name} for i, name in enumerate(parts)],
        "attributes": [],
        "attr_type_to_attr_idxs": {},
    }
    native.write_json(f"annotations/paco_lvis_v1_{native.split}.json", document)
