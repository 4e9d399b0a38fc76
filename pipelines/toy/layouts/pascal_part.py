"""PASCAL-Part: `Annotations_Part/*.mat` for images in the layout of VOC 2010."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import scipy.io

from pipelines.sources.categories import load_categories
from pipelines.toy.names import OBJECTS, PARTS, native_ids
from pipelines.toy.native_split import BROKEN, NO_ANNOTATIONS, SOME_CROWD, SPOILED, Mask, NativeSplit
from pipelines.toy.scenes import Scene, Thing

_DATASET = "pascal_part"
_VOC = "VOCdevkit/VOC2010"
# A .mat file starts with a text, in which MATLAB and scipy write the time.
_TEXT = b"MATLAB 5.0 MAT-file, Platform: GLNXA64, Created on: Wed Jul 30 16:01:58 2014".ljust(116)

NamedMasks = list[tuple[str, Mask]]


def write(native: NativeSplit) -> None:
    """Write one split, and the images of both splits so far to `trainval.txt`."""
    names, to_spoil = [], native.has(SPOILED, SPOILED)
    for number, scene in native.numbered():
        name = f"{'2008' if native.split == 'train' else '2010'}_{3 * number + 2:06d}"
        names.append(name)
        native.write_image(f"{_VOC}/JPEGImages/{name}.jpg", scene.image, native.has(BROKEN, number))
        things = [] if native.has(NO_ANNOTATIONS, number) else scene.things
        objects = [(OBJECTS[_DATASET].get(thing.kind), thing) for thing in things]
        annotated = [(kind, scene.thing_mask(thing), _parts(scene, thing)) for kind, thing in objects if kind]
        with_parts = next((i for i, (_, _, parts) in enumerate(annotated) if parts), None)
        # Not every kind of thing has parts here: the first image that can be spoiled is.
        if to_spoil and number >= SPOILED and number != BROKEN and with_parts is not None:
            to_spoil = False
            annotated[with_parts] = (*annotated[with_parts][:2], _one_column(annotated[with_parts][2]))
            native.note("part one pixel wide")
        if native.has(SOME_CROWD, number):
            annotated[0] = (*annotated[0][:2], [])
        native.write(f"Annotations_Part/{name}.mat", _mat(name, annotated))
        _count(native, number, annotated)
    native.write(f"{_VOC}/ImageSets/Main/{native.split}.txt", _lines(names))
    other = native.root / _VOC / "ImageSets/Main" / ("val.txt" if native.split == "train" else "train.txt")
    if other.exists():
        native.write(f"{_VOC}/ImageSets/Main/trainval.txt", _lines([*names, *other.read_text().split()]))


def _parts(scene: Scene, thing: Thing) -> NamedMasks:
    return scene.part_masks(thing, PARTS[_DATASET].get(thing.kind, ()))


def _one_column(parts: NamedMasks) -> NamedMasks:
    """The parts, the first of them cut down to one column of pixels."""
    name, mask = parts[0]
    column = np.arange(mask.shape[1]) == np.flatnonzero(mask.any(axis=0))[0]
    return [(name, mask & column), *parts[1:]]


def _mat(name: str, objects: list[tuple[str, Mask, NamedMasks]]) -> bytes:
    """A .mat file: `anno` with `imname` and `objects`, each of class, class_ind, mask and parts."""
    ids = native_ids(_DATASET)
    rows = _struct(("class", "class_ind", "mask", "parts"), len(objects))
    for i, (kind, mask, parts) in enumerate(objects):
        cells = _struct(("part_name", "mask"), len(parts))
        for j, (part, part_mask) in enumerate(parts):
            cells[0, j] = (part, part_mask.astype(np.uint8))
        rows[0, i] = (kind, np.uint8(ids[kind]), mask.astype(np.uint8), cells)
    anno = _struct(("imname", "objects"), 1)
    anno[0, 0] = (name, rows)
    file = io.BytesIO()
    scipy.io.savemat(file, {"anno": anno}, do_compression=True)
    return _TEXT + file.getvalue()[len(_TEXT) :]


def _struct(fields: tuple[str, ...], length: int) -> Any:
    """An empty MATLAB struct array; 1 x length, or 0 x 0."""
    return np.empty((1, length) if length else (0, 0), [(field, object) for field in fields])


def _count(native: NativeSplit, number: int, annotated: list[tuple[str, Mask, NamedMasks]]) -> None:
    if native.has(BROKEN, number):
        native.drop_image("broken image")
        return
    names = load_categories(_DATASET).document["raw_parts"]
    kept = len(annotated)
    for kind, _, parts in annotated:
        native.note("object without parts", int(not parts))
        for part, _ in parts:
            if names[kind][part.rstrip("_0123456789")] is None:
                native.drop_region("part without category")
            else:
                kept += 1
    native.keep(kept)


def _lines(names: list[str]) -> bytes:
    return "".join(f"{name}\n" for name in sorted(names)).encode()
