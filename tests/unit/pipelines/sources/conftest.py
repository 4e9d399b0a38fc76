"""Writes small datasets in their native layouts: two images of 24 x 32 pixels each, the second without regions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from jaxtyping import Bool
from PIL import Image

from pipelines.sources import SOURCES
from pipelines.sources.categories import load_categories
from pipelines.sources.source import Entry, Index, Read
from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.storage import existing_folder

HEIGHT, WIDTH = 24, 32


class Native:
    """A dataset's folder that a test writes and then reads with the dataset's source."""

    def __init__(self, root: Path, dataset: str, split: str = "val") -> None:
        self.root, self.dataset, self.split = root, dataset, split
        self.source = SOURCES[dataset]

    @staticmethod
    def rectangle(x1: int, y1: int, x2: int, y2: int) -> Bool[np.ndarray, "h w"]:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y1:y2, x1:x2] = True
        return mask

    @staticmethod
    def rle_object(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
        return {"size": list(mask.shape), "counts": rle.encode(mask).decode()}

    def edit(self, name: str, change: Callable[[Any], None]) -> None:
        """Change a json in place."""
        document = json.loads(self.path(name).read_text())
        change(document)
        self.json(name, document)

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def jpeg(self, name: str, height: int = HEIGHT, width: int = WIDTH) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        self.path(name).write_bytes(encode_jpeg(pixels))

    def png(self, name: str, pixels: Any) -> None:
        Image.fromarray(np.asarray(pixels, np.uint8)).save(self.path(name))

    def json(self, name: str, document: Any) -> None:
        self.path(name).write_text(json.dumps(document))

    def coco(self, name: str, annotations: list[dict[str, Any]], **more: Any) -> None:
        """A COCO-like json: two images with ids 7 and 3, and the vocabulary's native categories."""
        images = [{"id": i, "file_name": self.file_name(i), "height": HEIGHT, "width": WIDTH} for i in (7, 3)]
        document = load_categories(self.dataset).document
        rows = [*document["objects"], *document["object_parts"]]
        if self.dataset == "partimagenet":
            rows = document["object_parts"]  # The release has no ids for objects.
        categories = [{"id": row["id"], "name": row.get("native", row.get("name"))} for row in rows]
        annotations = [{"id": 100 + i, "image_id": 3} | row for i, row in enumerate(annotations)]
        self.json(name, {"images": images, "annotations": annotations, "categories": categories} | more)

    def file_name(self, image: int) -> str:
        names = {
            "objects365": f"images/v1/patch8/objects365_v1_{image:08d}.jpg",
            "paco": f"val2017/{image:012d}.jpg",
            "partimagenet": f"n0144076{image}_10029.JPEG",
        }
        return names.get(self.dataset, f"{image:012d}.jpg")

    def mat(self, name: str, objects: list[tuple[int, Any, list[tuple[str, Any]]]]) -> None:
        """An Annotations_Part file: objects of (class_ind, mask, parts of (part_name, mask))."""
        rows = np.empty((1, len(objects)), [(key, object) for key in ("class", "class_ind", "mask", "parts")])
        for i, (class_ind, mask, parts) in enumerate(objects):
            cells = np.empty((1, len(parts)) if parts else (0, 0), [("part_name", object), ("mask", object)])
            for j, (part_name, part_mask) in enumerate(parts):
                cells[0, j] = (part_name, np.asarray(part_mask, np.uint8))
            rows[0, i] = ("", class_ind, np.asarray(mask, np.uint8), cells)
        anno = np.empty((1, 1), [("imname", object), ("objects", object)])
        anno[0, 0] = (Path(name).stem, rows)
        scipy.io.savemat(self.path(name), {"anno": anno})

    def index(self) -> Index:
        return self.source.index(existing_folder(str(self.root)), self.split)

    def read(self, entry: Entry | int = 0) -> Read:
        """What the source makes of an entry, or of the entry at a position."""
        entry = self.index().entries[entry] if isinstance(entry, int) else entry
        return self.source.read(existing_folder(str(self.root)), self.split, entry)


def _write_sa1b(native: Native) -> None:
    for i, masks in ((3, [native.rectangle(2, 3, 12, 9)]), (7, [])):
        native.jpeg(f"val/sa_{i}.jpg")
        rows = [
            {"id": 100 + j, "segmentation": native.rle_object(m), "area": int(m.sum())} for j, m in enumerate(masks)
        ]
        image = {"image_id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"sa_{i}.jpg"}
        native.json(f"val/sa_{i}.json", {"image": image, "annotations": rows})


def _write_coco_panoptic(native: Native) -> None:
    for i in (3, 7):
        native.jpeg(f"val2017/{native.file_name(i)}")
        pixels = np.zeros((HEIGHT, WIDTH, 3))
        if i == 3:
            pixels[3:9, 2:12] = (5, 1, 0)  # Id 261.
        native.png(f"panoptic_val2017/{i:012d}.png", pixels)
    native.coco("annotations/panoptic_val2017.json", [])
    document = json.loads((native.root / "annotations/panoptic_val2017.json").read_text())
    segment = {"id": 261, "category_id": 1, "iscrowd": 0, "area": 60}
    document["annotations"] = [
        {"image_id": 3, "file_name": f"{3:012d}.png", "segments_info": [segment]},
        {"image_id": 7, "file_name": f"{7:012d}.png", "segments_info": []},
    ]
    native.json("annotations/panoptic_val2017.json", document)
    polygon = [[2, 3, 12, 3, 12, 9, 2, 9]]
    native.coco(
        "annotations/instances_val2017.json",
        [{"category_id": 1, "segmentation": polygon, "area": 60, "iscrowd": 0, "bbox": [2, 3, 10, 6]}],
    )


def _write_objects365(native: Native) -> None:
    native.jpeg("images/v1/patch8/objects365_v1_00000003.jpg")
    native.jpeg("images/v1/patch8/objects365_v1_00000007.jpg")
    row = {"category_id": 84, "bbox": [2, 3, 10, 6], "area": 60, "iscrowd": 0, "isfake": 0, "isreflected": 0}
    native.coco("zhiyuan_objv2_val.json", [row])


def _write_ade20k(native: Native) -> None:
    for i in (3, 7):
        native.jpeg(f"images/validation/ADE_val_{i:08d}.jpg")
        classes, instances = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH, 3))
        if i == 3:
            classes[3:9, 2:12], instances[3:9, 2:12] = 13, (4, 1, 0)  # A person.
        native.png(f"annotations/validation/ADE_val_{i:08d}.png", classes)
        native.png(f"annotations_instance/validation/ADE_val_{i:08d}.png", instances)


def _write_pascal_part(native: Native) -> None:
    native.path("VOCdevkit/VOC2010/ImageSets/Main/val.txt").write_text("2008_000007\n2008_000003\n")
    for i in (3, 7):
        native.jpeg(f"VOCdevkit/VOC2010/JPEGImages/2008_00000{i}.jpg")
    person = (15, native.rectangle(2, 3, 12, 9), [("lear", native.rectangle(2, 3, 3, 4))])
    native.mat("Annotations_Part/2008_000003.mat", [person])
    native.mat("Annotations_Part/2008_000007.mat", [])


def _write_paco(native: Native) -> None:
    native.jpeg(f"val2017/{3:012d}.jpg")
    native.jpeg(f"val2017/{7:012d}.jpg")
    mug, handle = native.rle_object(native.rectangle(2, 3, 12, 9)), native.rle_object(native.rectangle(2, 3, 3, 4))
    pairs = {row["native"]: row["id"] for row in load_categories("paco").document["object_parts"]}
    rows = [
        {"id": 100, "obj_ann_id": 100, "category_id": 708, "segmentation": mug, "area": 60},
        {"id": 101, "obj_ann_id": 100, "category_id": pairs["mug:handle"], "segmentation": handle, "area": 1},
    ]
    native.coco("annotations/paco_lvis_v1_val.json", rows)


def _write_partimagenet(native: Native) -> None:
    for i in (3, 7):
        native.jpeg(f"val/n0144076{i}/n0144076{i}_10029.JPEG")
    row = {"category_id": 9, "segmentation": [[2, 3, 12, 3, 12, 9, 2, 9]], "area": 60, "iscrowd": 0}
    native.coco("val.json", [row])


def _write_coco_instances(native: Native) -> None:
    for i in (3, 7):
        native.jpeg(f"val/{native.file_name(i)}")
    polygon = [[2, 3, 12, 3, 12, 9, 2, 9]]
    row = {"id": 100, "image_id": 3, "category_id": 5, "segmentation": polygon, "area": 60, "iscrowd": 0}
    native.json("annotations/instances_train.json", {"categories": [{"id": 5, "name": "mug"}]})
    native.json(
        "annotations/instances_val.json",
        {
            "images": [{"id": i, "file_name": native.file_name(i), "height": HEIGHT, "width": WIDTH} for i in (7, 3)],
            "annotations": [row],
            "categories": [{"id": 5, "name": "mug"}, {"id": 9, "name": "dog"}],
        },
    )


def _write_label_maps(native: Native) -> None:
    native.json("names.json", {"4": "road", "9": "sky"})
    for split, i in (("train", 1), ("val", 3), ("val", 7)):
        native.jpeg(f"images/{split}/{i:012d}.jpg")
        native.png(f"labels/{split}/{i:012d}.png", np.where(native.rectangle(2, 3, 12, 9) & (i != 7), 4, 255))


WRITERS: dict[str, Callable[[Native], None]] = {
    "sa1b": _write_sa1b,
    "coco_panoptic": _write_coco_panoptic,
    "objects365": _write_objects365,
    "ade20k": _write_ade20k,
    "pascal_part": _write_pascal_part,
    "paco": _write_paco,
    "partimagenet": _write_partimagenet,
    "coco_instances": _write_coco_instances,
    "label_maps": _write_label_maps,
}


@pytest.fixture(params=list(WRITERS))
def native(request: pytest.FixtureRequest, tmp_path: Path) -> Native:
    """Each dataset that needs no other folder in turn, written to a temporary one."""
    return make_native(tmp_path, request.param)


@pytest.fixture
def write_native(tmp_path: Path) -> Callable[[str], Native]:
    """Writes one dataset by name."""
    return lambda dataset: make_native(tmp_path, dataset)


def make_native(root: Path, dataset: str) -> Native:
    native = Native(root, dataset)
    WRITERS[dataset](native)
    native.source = native.source.found_in(existing_folder(str(root)))
    return native
