"""Objects365 v2: `annotations/zhiyuan_objv2_*.json`, boxes alone, as floats and often past the border."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.toy.names import OBJECTS, native_categories, native_ids
from pipelines.toy.native_split import ALL_CROWD, BROKEN, NO_ANNOTATIONS, SPOILED, Mask, NativeSplit, xywh

_DATASET = "objects365"
_NO_CATEGORY = 366


def write(native: NativeSplit) -> None:
    """Write one split.

    The json says `images/v1/patch8/x.jpg`, while the files lie in `<split>/patch8/`.
    """
    ids = native_ids(_DATASET)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in native.numbered():
        image_id = number + (420_917 if native.split == "train" else 900_001)
        patch, file = f"patch{number % 3}", f"objects365_v1_{image_id:08d}.jpg"
        height, width = scene.size
        file_name = f"images/v1/{patch}/{file}"
        size = {"height": height, "width": width}
        images.append(size | {"id": image_id, "license": 5, "file_name": file_name, "url": ""})
        named = [(OBJECTS[_DATASET].get(thing.kind), scene.thing_mask(thing)) for thing in scene.things]
        if native.has(NO_ANNOTATIONS, number):
            named = []
        boxes = [(ids[name], _box(mask, native.rng)) for name, mask in named if name]
        is_crowd = native.has(ALL_CROWD, number)
        rows = [_row(box, image_id, category, is_crowd, native.rng) for category, box in boxes]
        native.note("box past the border", sum(_is_past_border(box, height, width) for _, box in boxes))
        native.note("image of crowds alone", int(is_crowd))
        if native.has(BROKEN, number):
            native.drop_image("missing image")
        else:
            native.write_image(f"{native.split}/{patch}/{file}", scene.image)
            native.keep(len(rows))
        if native.has(SPOILED, number):
            rows.append(_row([width + 4.5, 3.25, 20.5, 10.75], image_id, rows[0]["category_id"], False, native.rng))
            rows.append(rows[0] | {"category_id": _NO_CATEGORY})
            native.drop_region("empty box")
            native.drop_region("unknown category")
        annotations += rows
    for i, row in enumerate(annotations):
        row["id"] = 51 + i
    categories = [{"name": name, "id": i} for i, name in native_categories(_DATASET)]
    document = {"images": images, "annotations": annotations, "categories": categories, "licenses": []}
    native.write_json(f"annotations/zhiyuan_objv2_{native.split}.json", document)


def _box(mask: Mask, rng: np.random.Generator) -> list[float]:
    """A box (x, y, w, h) as drawn by hand: some of its edges are a pixel off, even past the image's border."""
    x, y, w, h = xywh(mask)
    x1, y1, x2, y2 = (np.array([x, y, x + w, y + h]) + rng.normal(0, 0.6, 4)).tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _is_past_border(box: list[float], height: int, width: int) -> bool:
    x, y, w, h = box
    return x < 0 or y < 0 or x + w > width or y + h > height


def _row(box: list[float], image_id: int, category: int, is_crowd: bool, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "id": 0,
        "iscrowd": int(is_crowd),
        "isfake": int(rng.random() < 0.05),
        "area": box[2] * box[3],
        "isreflected": int(rng.random() < 0.02),
        "bbox": box,
        "image_id": image_id,
        "category_id": category,
    }
