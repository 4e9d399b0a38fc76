"""SA-1B: `{train,val}/sa_*.jpg` beside `sa_*.json`.  Masks of parts, things, groups and stuff, none with a name."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from pipelines.toy.names import PARTS
from pipelines.toy.native_split import BROKEN, NO_ANNOTATIONS, Mask, NativeSplit, compressed_rle, xywh
from pipelines.toy.scenes import MIN_PIXELS, Scene


def write(native: NativeSplit) -> None:
    """Write one split."""
    for number, scene in native.numbered():
        image_id = number + (1 if native.split == "train" else 100_001)
        name = f"{native.split}/sa_{image_id}"
        is_broken = native.has(BROKEN, number)
        native.write_image(f"{name}.jpg", scene.image, is_broken)
        masks = [] if native.has(NO_ANNOTATIONS, number) else _masks(scene)
        height, width = scene.size
        rows = [_row(mask, image_id * 1000 + i, native.rng) for i, mask in enumerate(masks)]
        image = {"image_id": image_id, "width": width, "height": height, "file_name": f"sa_{image_id}.jpg"}
        native.write_json(f"{name}.json", {"image": image, "annotations": rows})
        if is_broken:
            native.drop_image("broken image")
        else:
            native.keep(len(rows))


def _masks(scene: Scene) -> list[Mask]:
    """Everything that can be told apart, on several levels: groups, things, large parts, small parts, stuff."""
    masks = [mask for _, mask in scene.stuff_masks()]
    for _, things in groupby(scene.things, key=lambda thing: thing.group):
        whole = [scene.thing_mask(thing) for thing in things]
        masks += [np.logical_or.reduce(whole), *whole]
    for thing in scene.things:
        several = [slots for _, slots in PARTS["pascal_part"].get(thing.kind, ()) if len(slots) > 1]
        masks += [scene.mask(thing.slots[slot] for slot in slots) for slots in several]
        masks += [scene.mask([label]) for label in thing.slots.values()]
    different = {mask.tobytes(): mask for mask in masks if mask.sum() >= MIN_PIXELS}
    return list(different.values())


def _row(mask: Mask, row_id: int, rng: np.random.Generator) -> dict[str, Any]:
    height, width = mask.shape
    x, y, w, h = xywh(mask)
    inside = np.flatnonzero(mask)
    row, column = divmod(int(rng.choice(inside)), width)
    is_crop = rng.random() < 0.3
    return {
        "bbox": [float(x), float(y), float(w - 1), float(h - 1)],  # Largest less smallest index, as there.
        "area": len(inside),
        "segmentation": compressed_rle(mask),
        "predicted_iou": float(rng.uniform(0.88, 1)),
        "point_coords": [[column + 0.5, row + 0.5]],
        "crop_box": [0.0, 0.0, float(width), float(height)] if not is_crop else [0, 0, width, height],
        "id": row_id,
        "stability_score": float(rng.uniform(0.92, 1)),
    }
