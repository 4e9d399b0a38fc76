"""Writers of the seven native layouts: drawn scenes to files as each dataset's authors release them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
from jaxtyping import Bool, UInt8
from scipy.io import savemat

from pipelines.sources.categories import FOLDER
from pipelines.toy.names import OBJECT_NAMES, PART_NAMES, STUFF_NAMES
from pipelines.toy.scenes import Drawn, Scene
from semsam.data import rle
from semsam.data.images import encode_jpeg

Mask = Bool[np.ndarray, "h w"]


@dataclass
class Layout:
    """One dataset's split being written below `folder`; `faults` counts what was spoiled on purpose, by reason."""

    folder: Path
    split: str
    with_faults: bool
    scenes: list[Scene]
    faults: Counter[str] = field(default_factory=Counter)

    def numbered(self) -> Iterator[tuple[int, Scene]]:
        """The scenes from number 1 on."""
        return enumerate(self.scenes, start=1)

    def spoils(self, number: int, place: int) -> bool:
        """Whether the scene that is `place`-th from the end carries a fault: only train splits do."""
        return self.with_faults and self.split == "train" and number == len(self.scenes) - place

    def write_image(self, path: str, image: UInt8[np.ndarray, "h w 3"], broken: bool = False) -> None:
        """A JPEG; a broken one ends after two thirds of its bytes."""
        data = encode_jpeg(image)
        if broken:
            data = data[: len(data) * 2 // 3]
            self.faults["broken image"] += 1
        self.write(path, data)

    def write_png(self, path: str, pixels: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]) -> None:
        bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
        self.write(path, cv2.imencode(".png", bgr)[1].tobytes())

    def write_json(self, path: str, document: Any) -> None:
        self.write(path, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))

    def write(self, path: str, data: bytes) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def write_sa1b(layout: Layout) -> None:
    """One json per image; parts, objects, pairs of objects and ground, all without names."""
    for number, scene in layout.numbered():
        masks = [mask for drawn in scene.objects for mask in (drawn.mask, *(m for _, m in drawn.parts))]
        masks += [a.mask | b.mask for a, b in zip(scene.objects, scene.objects[1:], strict=False)]
        masks += [mask for _, mask in scene.stuff]
        height, width = scene.image.shape[:2]
        image_id = number + (0 if layout.split == "train" else 100_000)
        image = {"image_id": image_id, "width": width, "height": height, "file_name": f"sa_{image_id}.jpg"}
        rows = [_sa1b_row(mask, image_id * 1000 + i) for i, mask in enumerate(masks)]
        layout.write_image(f"{layout.split}/sa_{image_id}.jpg", scene.image, broken=layout.spoils(number, 0))
        layout.write_json(f"{layout.split}/sa_{image_id}.json", {"image": image, "annotations": rows})


def write_coco_panoptic(layout: Layout) -> None:
    """Panoptic PNG and json beside instances as polygons; a crowd, a void border, an image without instances."""
    ids = {row["name"]: row["id"] for row in _categories("coco_panoptic")["objects"]}
    split = f"{layout.split}2017"
    images, panoptic_rows, instance_rows = [], [], []
    for number, scene in layout.numbered():
        height, width = scene.image.shape[:2]
        name = f"{number + (0 if layout.split == 'train' else 500_000):012d}"
        image = {"id": int(name), "file_name": f"{name}.jpg", "height": height, "width": width}
        pixels = np.zeros((height, width), np.int64)
        segments = []
        is_empty = layout.spoils(number, 2)
        all_crowd = layout.spoils(number, 3)
        drawn = [] if is_empty else list(scene.objects)
        named = [(OBJECT_NAMES["coco_panoptic"][d.name], d.mask, True) for d in drawn]
        named += [] if all_crowd else [(STUFF_NAMES["coco_panoptic"][n], m, False) for n, m in scene.stuff]
        for i, (category, mask, is_thing) in enumerate(named):
            mask = mask.copy()
            mask[:2] = False  # Void: the upper border belongs to no segment.
            if not mask.any():
                continue
            segment_id = 1_000 * (i + 1) + number % 997
            pixels[mask] = segment_id
            crowd = int(is_thing and (all_crowd or (i == 0 and number % 17 == 5)))
            segments.append(_coco_row(mask, ids[category], segment_id, crowd))
            if is_thing:
                row = _coco_row(mask, ids[category], int(name) * 100 + i, crowd) | {"image_id": int(name)}
                row["segmentation"] = _uncompressed(mask) if crowd else _polygons(mask)
                instance_rows.append(row)
        images.append(image)
        panoptic_rows.append({"image_id": int(name), "file_name": f"{name}.png", "segments_info": segments})
        layout.write_image(f"{split}/{name}.jpg", scene.image, broken=layout.spoils(number, 0))
        rgb = np.stack([pixels % 256, pixels // 256 % 256, pixels // 65536], -1).astype(np.uint8)
        layout.write_png(f"panoptic_{split}/{name}.png", rgb)
    if layout.with_faults and layout.split == "train" and instance_rows:
        instance_rows.append(instance_rows[0] | {"id": 999_999_999, "category_id": 4_000})
        layout.faults["unknown category"] += 1
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    panoptic = {"images": images, "annotations": panoptic_rows, "categories": categories}
    layout.write_json(f"annotations/panoptic_{split}.json", panoptic)
    instances = {"images": images, "annotations": instance_rows, "categories": categories}
    layout.write_json(f"annotations/instances_{split}.json", instances)


def write_objects365(layout: Layout) -> None:
    """Boxes only, as floats, some past the image's border and one wholly outside it."""
    rows_of = _categories("objects365")["objects"]
    ids = {row["name"]: row["id"] for row in rows_of}
    rng = np.random.default_rng(365)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, scene in layout.numbered():
        height, width = scene.image.shape[:2]
        image_id = number + (0 if layout.split == "train" else 700_000)
        name = f"objects365_v2_{image_id:08d}.jpg"
        images.append(
            {
                "id": image_id,
                "file_name": f"images/v2/patch0/{name}",
                "height": height,
                "width": width,
                "license": 5,
                "url": "",
            }
        )
        for drawn in scene.objects:
            x1, y1, x2, y2 = (
                _box(drawn.mask) + rng.uniform(-1.5, 1.5, 4)
            ).tolist()  # Drawn by hand, past the border at times.
            rows.append(
                _objects365_row(len(rows) + 1, image_id, ids[OBJECT_NAMES["objects365"][drawn.name]], x1, y1, x2, y2)
            )
        if layout.spoils(number, 1):
            rows.append(_objects365_row(len(rows) + 1, image_id, 1, width + 5, 3, width + 20, 9))
            layout.faults["empty box"] += 1
        layout.write_image(f"{layout.split}/patch0/{name}", scene.image, broken=layout.spoils(number, 0))
    categories = [{"name": row.get("native", row["name"]), "id": row["id"]} for row in rows_of]
    document = {"images": images, "annotations": rows, "categories": categories, "licenses": []}
    layout.write_json(f"annotations/zhiyuan_objv2_{layout.split}.json", document)


def write_ade20k(layout: Layout) -> None:
    """ADEChallengeData2016: a class PNG and an instance PNG per image; a border of ignored pixels."""
    rows = {row["name"]: row for row in _categories("ade20k")["objects"]}
    folder = {"train": "training", "val": "validation"}[layout.split]
    for number, scene in layout.numbered():
        height, width = scene.image.shape[:2]
        name = f"ADE_{layout.split}_{number:08d}"
        classes = np.zeros((height, width), np.uint8)
        instances = np.zeros((height, width, 3), np.uint8)
        for stuff, mask in scene.stuff:
            classes[mask] = rows[STUFF_NAMES["ade20k"][stuff]]["id"]
        for i, drawn in enumerate(scene.objects, start=1):
            row = rows[OBJECT_NAMES["ade20k"][drawn.name]]
            classes[drawn.mask] = row["id"]
            instances[drawn.mask] = (row["instance_id"], i, 0)
        classes[:, :2], instances[:, :2] = 0, 0
        layout.write_image(f"images/{folder}/{name}.jpg", scene.image, broken=layout.spoils(number, 0))
        layout.write_png(f"annotations/{folder}/{name}.png", classes)
        layout.write_png(f"annotations_instance/{folder}/{name}.png", instances)


def write_pascal_part(layout: Layout) -> None:
    """VOC 2010 with a .mat per image; objects whose class has no parts there (chair, boat) have an empty array."""
    ids = {row["name"]: row["id"] for row in _categories("pascal_part")["objects"]}
    names = []
    for number, scene in layout.numbered():
        name = f"{2008 if layout.split == 'train' else 2010}_{number:06d}"
        names.append(name)
        layout.write_image(f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg", scene.image, broken=layout.spoils(number, 0))
        objects = [_mat_object(drawn, ids) for drawn in scene.objects]
        kind = np.dtype([(key, object) for key in ("class", "class_ind", "mask", "parts")])
        anno = np.zeros((1, 1), np.dtype([("imname", object), ("objects", object)]))
        anno[0, 0] = (name, np.array(objects, kind).reshape(1, -1))
        path = layout.folder / "Annotations_Part" / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"anno": anno}, do_compression=True)
        _remove_mat_date(path)
    text = "".join(f"{name}\n" for name in names)
    layout.write(f"VOCdevkit/VOC2010/ImageSets/Main/{layout.split}.txt", text.encode())


def write_paco(layout: Layout) -> None:
    """Objects and parts in one list, federated: what was looked for and not found, what is not marked everywhere."""
    categories = _categories("paco")
    objects = {row["name"]: row["id"] for row in categories["objects"]}
    pairs = {(row["object"], row["part"]): row["id"] for row in categories["object_parts"]}
    rng = np.random.default_rng(1196)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, scene in layout.numbered():
        height, width = scene.image.shape[:2]
        image_id = number + (0 if layout.split == "train" else 300_000)
        file_name = f"{layout.split}2017/{image_id:012d}.jpg"
        present = {objects[OBJECT_NAMES["paco"][d.name]] for d in scene.objects}
        absent = rng.permutation(sorted(set(objects.values()) - present))[:25]
        images.append(
            {
                "id": image_id,
                "file_name": file_name,
                "height": height,
                "width": width,
                "neg_category_ids": absent.tolist(),
                "not_exhaustive_category_ids": sorted(present)[:1] if number % 11 == 0 else [],
            }
        )
        for drawn in scene.objects:
            name = OBJECT_NAMES["paco"][drawn.name]
            object_id = len(rows) + 1
            if layout.spoils(number, 1) and drawn is scene.objects[0]:
                object_id = 0  # A part whose object has no row.
            else:
                rows.append(_paco_row(drawn.mask, object_id, image_id, objects[name], object_id))
            for part, mask in drawn.parts:
                if (drawn.name, part) in PART_NAMES["paco"]:
                    category = pairs[name, PART_NAMES["paco"][drawn.name, part]]
                    rows.append(_paco_row(mask, len(rows) + 1 + (object_id == 0), image_id, category, object_id))
        layout.write_image(file_name, scene.image, broken=layout.spoils(number, 0))
    document = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": r["id"], "name": r.get("native", r["name"])} for r in categories["objects"]]
        + [{"id": r["id"], "name": r.get("native", f"{r['object']}:{r['part']}")} for r in categories["object_parts"]],
        "part_categories": [{"id": i, "name": name} for i, name in enumerate(categories["parts"])],
    }
    layout.write_json(f"annotations/paco_lvis_v1_{layout.split}.json", document)


def write_partimagenet(layout: Layout) -> None:
    """Polygons of parts, ids from 0, one folder per ImageNet class; degenerate polygons and rows of area 0."""
    categories = _categories("partimagenet")
    pairs = {(row["object"], row["part"]): row["id"] for row in categories["object_parts"]}
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, scene in layout.numbered():
        height, width = scene.image.shape[:2]
        image_id = number
        class_folder = f"n{1_440_764 + 1000 * (number % 7):08d}"
        name = f"{class_folder}_{number + (0 if layout.split == 'train' else 50_000)}.JPEG"
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for drawn in scene.objects:
            for part, mask in drawn.parts:
                if (drawn.name, part) not in PART_NAMES["partimagenet"]:
                    continue
                pair = (OBJECT_NAMES["partimagenet"][drawn.name], PART_NAMES["partimagenet"][drawn.name, part])
                polygons = _polygons(mask)
                if polygons:
                    row = _coco_row(mask, pairs[pair], len(rows) + 1, 0)
                    rows.append(row | {"image_id": image_id, "segmentation": polygons})
        if layout.spoils(number, 1):
            for polygon in ([3.0, 3.0], [3.0, 3.0, 9.0, 9.0]):
                row = {"id": len(rows) + 1, "image_id": image_id, "category_id": 0, "iscrowd": 0, "area": 0}
                rows.append(row | {"bbox": [3, 3, 0, 0], "segmentation": [polygon]})
                layout.faults["empty mask"] += 1
        layout.write_image(f"{layout.split}/{class_folder}/{name}", scene.image, broken=layout.spoils(number, 0))
    native = [
        {"id": row["id"], "name": row["native"], "supercategory": row["object"]} for row in categories["object_parts"]
    ]
    layout.write_json(f"{layout.split}.json", {"images": images, "annotations": rows, "categories": native})


WRITERS: dict[str, Callable[[Layout], None]] = {
    "sa1b": write_sa1b,
    "coco_panoptic": write_coco_panoptic,
    "objects365": write_objects365,
    "ade20k": write_ade20k,
    "pascal_part": write_pascal_part,
    "paco": write_paco,
    "partimagenet": write_partimagenet,
}


@cache
def _categories(dataset: str) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads((FOLDER / f"{dataset}.json").read_bytes())
    return document


def _box(mask: Mask) -> np.ndarray:
    return np.array(rle.box_xyxy(rle.encode(mask), *mask.shape))


def _xywh(mask: Mask) -> list[float]:
    x1, y1, x2, y2 = _box(mask).tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _compressed(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": rle.encode(mask).decode()}


def _uncompressed(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": rle.decode_counts(rle.encode(mask)).tolist()}


def _polygons(mask: Mask) -> list[list[float]]:
    """Outlines at pixel corners, as annotators would click them; outlines of fewer than three points are left out."""
    grown = np.kron(mask.astype(np.uint8), np.ones((2, 2), np.uint8))
    outlines, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((o[:, 0] + 0.5) / 2).reshape(-1).tolist() for o in outlines if len(o) >= 3]


def _coco_row(mask: Mask, category_id: int, row_id: int, iscrowd: int) -> dict[str, Any]:
    return {
        "id": row_id,
        "category_id": category_id,
        "iscrowd": iscrowd,
        "area": int(mask.sum()),
        "bbox": _xywh(mask),
    }


def _sa1b_row(mask: Mask, row_id: int) -> dict[str, Any]:
    x, y, w, h = _xywh(mask)
    ys, xs = np.nonzero(mask)
    return {
        "bbox": [x, y, w - 1, h - 1],  # SA-1B's width is the largest column less the smallest.
        "area": int(mask.sum()),
        "segmentation": _compressed(mask),
        "predicted_iou": 0.95,
        "point_coords": [[float(xs[len(xs) // 2]), float(ys[len(ys) // 2])]],
        "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
        "id": row_id,
        "stability_score": 0.97,
    }


def _objects365_row(
    row_id: int, image_id: int, category_id: int, x1: float, y1: float, x2: float, y2: float
) -> dict[str, Any]:
    return {
        "id": row_id,
        "iscrowd": 0,
        "isfake": 0,
        "area": (x2 - x1) * (y2 - y1),
        "isreflected": 0,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "image_id": image_id,
        "category_id": category_id,
    }


def _paco_row(mask: Mask, row_id: int, image_id: int, category_id: int, object_row: int) -> dict[str, Any]:
    row = _coco_row(mask, category_id, row_id, 0)
    return row | {
        "image_id": image_id,
        "segmentation": _compressed(mask),
        "attribute_ids": [],
        "obj_ann_id": object_row,
    }


def _mat_object(drawn: Drawn, ids: dict[str, int]) -> tuple[str, int, np.ndarray, np.ndarray]:
    name = OBJECT_NAMES["pascal_part"][drawn.name]
    counts: Counter[str] = Counter()
    rows = []
    for part, mask in drawn.parts:
        raw = PART_NAMES["pascal_part"].get((drawn.name, part))
        if raw is None:
            continue
        counts[raw] += 1
        label = f"{raw}_{counts[raw]}" if raw in ("wheel", "window", "door") else raw
        rows.append((label, mask.astype(np.uint8)))
    parts: np.ndarray = np.zeros((0, 0))
    if rows:
        parts = np.array(rows, np.dtype([("part_name", object), ("mask", object)])).reshape(1, -1)
    return name, ids[name], drawn.mask.astype(np.uint8), parts


def _remove_mat_date(path: Path) -> None:
    """Blank the creation date in the .mat header's text, so that the same world gives the same bytes."""
    data = path.read_bytes()
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + data[116:])


def scenes_needed(dataset: str) -> Sequence[str]:
    """The toy objects that a dataset can name; all of them for SA-1B, which names nothing."""
    return tuple(OBJECT_NAMES.get(dataset, OBJECT_NAMES["coco_panoptic"]))
