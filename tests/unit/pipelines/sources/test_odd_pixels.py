"""PASCAL-Part's .mat files with odd fields, and annotation PNGs with ids that mean nothing: counted, like odd rows."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from tests.unit.pipelines.sources.memory import MemoryFiles, Outcome, load_folder, outcome_of

MAT = "Annotations_Part/2008_000003.mat"
REMOVED = object()


def inside(value: Any, dtype: Any = np.uint8, shape: tuple[int, ...] = (24, 32)) -> np.ndarray:
    mask = np.zeros(shape, dtype)
    mask[3:9, 2:12] = value
    return mask


VALUES: dict[str, Any] = {
    "removed": REMOVED,
    "empty array": np.zeros((0, 0)),
    "text": "word",
    "empty text": "",
    "digits": "15",
    "zero": 0,
    "another class": 9,
    "fraction": 15.5,
    "float": 15.0,
    "negative": -15,
    "huge": 1e300,
    "NaN": np.nan,
    "two numbers": np.array([[15, 9]]),
    "a cell": np.array([[15, "x"]], object),
    "a struct": {"x": 1},
    "mask of floats": inside(1.0, float),
    "mask of 255": inside(255),
    "mask of negatives": inside(-1, np.int16),
    "mask of NaN": inside(np.nan, float),
    "mask of fractions": np.linspace(0, 1, 24 * 32).reshape(24, 32),
    "complex mask": inside(1j, complex),
    "mask of nothing": inside(0),
    "mask on its side": inside(1, shape=(32, 24)),
    "mask of three dimensions": inside(1, shape=(24, 32, 3)),
}
# Changes of the record that nobody can see to be wrong.
MEANT = {
    ("class_ind", "another class"): "another class of the twenty",
    ("parts", "empty array"): "an object without parts",
}


def struct(*rows: dict[str, Any]) -> np.ndarray:
    """A struct array of the rows, whose fields are those of the first."""
    array = np.empty((1, len(rows)), [(name, object) for name in rows[0]] or [("none", object)])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.values()) or (0,)
    return array


def mat(fields: dict[str, Any]) -> bytes:
    """An Annotations_Part file of one object with one part; `fields` are all values by the place that they stand in."""

    def row(prefix: str, **more: Any) -> dict[str, Any]:
        own = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
        return {name: value for name, value in (more | own).items() if value is not REMOVED and "." not in name}

    thing = row("thing.", parts=struct(row("part.")))
    anno = row("anno.", objects=struct(thing))
    file = io.BytesIO()
    scipy.io.savemat(file, row("file.", anno=struct(anno)))
    return file.getvalue()


SOUND = {
    "anno.imname": "2008_000003",
    "thing.class": "person",
    "thing.class_ind": 15,
    "thing.mask": inside(1),
    "part.part_name": "lear",
    "part.mask": inside(1),
}
PLACES = [*SOUND, "thing.parts", "anno.objects", "file.anno"]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_odd_field_of_a_mat_is_read_as_meant_or_counted(write_native: Any, place: str) -> None:
    native = write_native("pascal_part")
    contents = load_folder(native.root)

    def outcome(fields: dict[str, Any]) -> Outcome:
        return outcome_of(native.source, MemoryFiles(contents | {MAT: mat(fields)}), "val")

    before = outcome(SOUND)
    assert (before.counted, len(before.reads[0].record.regions)) == ((), 2)
    faults = []
    for name, value in VALUES.items():
        try:
            after = outcome(SOUND | {place: copy.deepcopy(value) if value is not REMOVED else REMOVED})
        except Exception as error:  # What must never happen, listed with all else that went wrong.
            faults.append(f"{name}: a bare {error!r}")
            continue
        is_meant = (place.rpartition(".")[2], name) in MEANT
        if after.reads != before.reads and not after.counted and not is_meant:
            faults.append(f"{name}: the record changed and nothing was counted")
    assert faults == []


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rgb(red: int, green: int, blue: int) -> np.ndarray:
    return (inside(1)[..., None] * np.array([red, green, blue], np.uint8)).astype(np.uint8)


ADE, COCO = "validation/ADE_val_00000003.png", "panoptic_val2017/000000000003.png"
PNGS = {
    "a class past the last": ("ade20k", f"annotations/{ADE}", np.roll(inside(151), 12, axis=1)),
    "the highest class": ("ade20k", f"annotations/{ADE}", np.roll(inside(255), 12, axis=1)),
    "an instance of no class": ("ade20k", f"annotations_instance/{ADE}", rgb(0, 1, 0)),
    "an instance past the last class": ("ade20k", f"annotations_instance/{ADE}", rgb(101, 1, 0)),
    "instances nowhere": ("ade20k", f"annotations_instance/{ADE}", rgb(0, 0, 0)),
    "a segment of another id": ("coco_panoptic", COCO, rgb(5, 2, 0)),
    "the highest segment": ("coco_panoptic", COCO, rgb(255, 255, 255)),
    "segments nowhere": ("coco_panoptic", COCO, rgb(0, 0, 0)),
    "a map on its side": ("coco_panoptic", COCO, np.zeros((32, 24, 3), np.uint8)),
}


@pytest.mark.parametrize("name", PNGS)
def test_ids_in_pixels_that_mean_nothing_are_counted(write_native: Any, name: str) -> None:
    dataset, file, pixels = PNGS[name]
    native = write_native(dataset)
    contents = load_folder(native.root)
    assert file in contents
    outcome = outcome_of(native.source, MemoryFiles(contents | {file: png(pixels)}), "val")
    assert outcome.counted
    assert {rejected.sample_id for rejected in outcome.counted} == {
        "ADE_val_00000003" if dataset == "ade20k" else "000000000003"
    }
