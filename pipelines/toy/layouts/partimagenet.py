"""PartImageNet: `{train,val}.json` with polygons of parts, images in one folder per ImageNet class."""

from __future__ import annotations

from typing import Any

from pipelines.toy.names import OBJECTS, PARTS, native_categories, native_ids
from pipelines.toy.native_split import (
    BROKEN,
    NO_ANNOTATIONS,
    SOME_CROWD,
    SPOILED,
    NativeSplit,
    polygon_area,
    polygons,
    xywh,
)
from pipelines.toy.scenes import Scene, Thing

_DATASET = "partimagenet"
# An ImageNet class for each kind.
_FOLDERS = {
    "car": "n04285008",
    "dog": "n02099601",
    "bird": "n01530575",
    "bottle": "n02823428",
    "bicycle": "n03792782",
    "boat": "n04612504",
    "aeroplane": "n02690373",
}

Row = dict[str, Any]


def write(native: NativeSplit) -> None:
    """Write one split; every image shows one object, as ImageNet's do."""
    images: list[Row] = []
    annotations: list[Row] = []
    for number, scene in native.numbered():
        thing = next(thing for thing in scene.things if thing.kind in _FOLDERS)
        folder = _FOLDERS[thing.kind]
        file_name = f"{folder}_{number + (1 if native.split == 'train' else 20_001)}.JPEG"
        is_broken = native.has(BROKEN, number)
        native.write_image(f"{native.split}/{folder}/{file_name}", scene.image, is_broken)
        height, width = scene.size
        images.append({"id": number, "file_name": file_name, "width": width, "height": height})
        rows = [] if native.has(NO_ANNOTATIONS, number) else _rows(scene, thing, number)
        if native.has(SOME_CROWD, number):
            rows[0]["segmentation"] += [[4.0, 5.0], [4.0, 5.0, 9.0, 7.0]]
            native.drop_region("polygon of two points or fewer", times=2)
        if is_broken:
            native.drop_image("broken image")
        else:
            native.keep(len(rows) + bool(rows))  # The object is derived from its parts.
        if native.has(SPOILED, number):
            degenerate = [[[4.0, 5.0]], [[4.0, 5.0, 9.0, 7.0]]]
            rows += [rows[0] | {"segmentation": polygon, "area": 0} for polygon in degenerate]
            native.drop_region("empty mask")
            native.drop_region("empty mask")
        annotations += rows
    for i, row in enumerate(annotations):
        row["id"] = i
    categories = [
        {"id": i, "name": name, "supercategory": name.partition(" ")[0]} for i, name in native_categories(_DATASET)
    ]
    document = {"images": images, "annotations": annotations, "categories": categories}
    native.write_json(f"{native.split}.json", document)


def _rows(scene: Scene, thing: Thing, image_id: int) -> list[Row]:
    ids, kind = native_ids(_DATASET), OBJECTS[_DATASET][thing.kind]
    rows = []
    for part, mask in scene.part_masks(thing, PARTS[_DATASET][thing.kind]):
        outlines = polygons(mask)
        rows.append(
            {
                "id": 0,
                "image_id": image_id,
                "category_id": ids[f"{kind} {part}"],
                "bbox": xywh(mask),
                "area": sum(polygon_area(outline) for outline in outlines),
                "iscrowd": 0,
                "segmentation": outlines,
            }
        )
    return rows
