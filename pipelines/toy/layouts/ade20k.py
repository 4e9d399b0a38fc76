"""ADE20K as ADEChallengeData2016: a class PNG and an instance PNG beside each image."""

from __future__ import annotations

import numpy as np

from pipelines.sources.categories import load_categories
from pipelines.toy.names import OBJECTS, STUFF, native_categories
from pipelines.toy.native_split import ALL_CROWD, BROKEN, NO_ANNOTATIONS, SPOILED, NativeSplit
from pipelines.toy.scenes import Scene
from semsam.data.images import decode_label_map

_DATASET = "ade20k"
_FOLDERS = {"train": "training", "val": "validation"}


def write(native: NativeSplit) -> None:
    """Write one split, and what both splits so far contain to `objectInfo150.txt`."""
    folder = _FOLDERS[native.split]
    for number, scene in native.numbered():
        name = f"{folder}/ADE_{native.split}_{number + 1:08d}"
        is_broken = native.has(BROKEN, number)
        native.write_image(f"images/{name}.jpg", scene.image, is_broken)
        classes, instances, num_segments, num_things = _label(native, number, scene)
        native.write_png(f"annotations/{name}.png", classes)
        if native.has(ALL_CROWD, number):
            # Without instances, things of one class cannot be told apart.
            native.drop_region("no instance PNG")
            native.note("image of crowds alone")
            native.keep(len(np.unique(classes[classes > 0])))
        else:
            native.write_png(f"annotations_instance/{name}.png", instances)
            if is_broken:
                native.drop_image("broken image")
                continue
            native.keep(num_segments + num_things)
            native.note("image with void pixels", int((classes == 0).any()))
    _write_object_info(native)


def _label(native: NativeSplit, number: int, scene: Scene) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Each pixel's class and its instance (red class, green number); how many segments and instances there are."""
    rows = {row["name"]: row for row in load_categories(_DATASET).document["objects"]}
    classes = np.zeros(scene.size, np.uint8)
    instances = np.zeros((*scene.size, 3), np.uint8)
    if native.has(NO_ANNOTATIONS, number):
        return classes, instances, 0, 0
    stuff = [] if native.has(ALL_CROWD, number) else scene.stuff_masks()
    if number % 8 == 7:
        stuff = stuff[:-1]  # Annotators left something out.
    for name, mask in stuff:
        classes[mask] = rows[STUFF[_DATASET][name]]["id"]
    num_things = 0
    for i, thing in enumerate(scene.things):
        row, mask = rows[OBJECTS[_DATASET][thing.kind]], scene.thing_mask(thing)
        classes[mask] = row["id"]
        if native.has(SPOILED, number) and i == 0:
            native.drop_region("thing pixels without an instance")
        else:
            num_things += 1
            instances[mask] = (row["instance_id"], num_things, 0)
    return classes, instances, len(stuff) + num_things, num_things


def _write_object_info(native: NativeSplit) -> None:
    pixels = np.zeros((2, 256), np.int64)
    images = np.zeros((2, 256), np.int64)
    for i, folder in enumerate(_FOLDERS.values()):
        for path in sorted(native.root.glob(f"annotations/{folder}/*.png")):
            classes = decode_label_map(path.read_bytes())
            counts = np.bincount(classes.reshape(-1), minlength=256)
            pixels[i] += counts
            images[i] += counts > 0
    ratio = pixels.sum(axis=0) / max(pixels.sum(), 1)
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    for value, name in native_categories(_DATASET):
        lines.append(f"{value}\t{ratio[value]:.4f}\t{images[0, value]}\t{images[1, value]}\t{name}")
    native.write("objectInfo150.txt", "\n".join(lines).encode())
