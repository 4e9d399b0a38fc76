"""ADE20K: class and instance PNGs to panoptic segments and instances."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.sources import SOURCES
from pipelines.sources.source import REASONS_BY_DESIGN, BadSample, Read
from semsam.data import rle
from semsam.data.schema import Kind
from semsam.storage import existing_folder

VOCABULARY = SOURCES["ade20k"].vocabulary()


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as png:
        return np.array(png).astype(np.int64)


def read_real(samples_dir: Path, split: str, name: str) -> Read:
    source = replace(SOURCES["ade20k"], allow_absent=("instances",))
    files = existing_folder(str(samples_dir / "ade20k/ADEChallengeData2016"))
    entry = next(entry for entry in source.index(files, split).entries if entry.sample_id == name)
    return source.read(files, split, entry)


@pytest.mark.samples
@pytest.mark.parametrize("name", ["ADE_train_00016869", "ADE_train_00016964"])
def test_real_train_regions_have_the_exact_pixels_of_both_pngs(samples_dir: Path, name: str) -> None:
    root = samples_dir / "ade20k/ADEChallengeData2016"
    read = read_real(samples_dir, "train", name)
    classes = pixels(root / f"annotations/training/{name}.png")
    instances = pixels(root / f"annotations_instance/training/{name}.png")
    covered = np.zeros(classes.shape, np.int64)
    for region in read.record.regions:
        mask = rle.decode(region.rle or b"", *classes.shape)
        if region.is_thing:
            red, green = map(int, region.annotation_id.split("/"))
            expected = (instances[..., 0] == red) & (instances[..., 1] == green)
            assert (classes[mask] == (region.object_category or 0) + 1).all()
        else:
            expected = classes == int(region.annotation_id)
            assert region.object_category == int(region.annotation_id) - 1
        assert np.array_equal(mask, expected)
        assert region.area == expected.sum()
        covered += mask if region.kind is Kind.PANOPTIC else 0
    assert np.array_equal(covered, classes > 0)
    assert read.dropped == ()
    things = [region for region in read.record.regions if region.is_thing]
    num_instances = len(np.unique(instances[..., 0] * 256 + instances[..., 1])) - 1
    assert [region.kind for region in things].count(Kind.INSTANCE) == num_instances
    assert [region.kind for region in things].count(Kind.PANOPTIC) == num_instances


@pytest.mark.samples
@pytest.mark.parametrize("name", ["ADE_val_00000001", "ADE_val_00000003"])
def test_real_images_without_instance_png_keep_their_classes(samples_dir: Path, name: str) -> None:
    read = read_real(samples_dir, "val", name)
    classes = pixels(samples_dir / f"ade20k/ADEChallengeData2016/annotations/validation/{name}.png")
    values = [value for value in np.unique(classes).tolist() if value]
    assert [r.reason for r in read.dropped] == ["no instance PNG"]
    assert "no instance PNG" in REASONS_BY_DESIGN
    for region, value in zip(read.record.regions, values, strict=True):
        assert np.array_equal(rle.decode(region.rle or b"", *classes.shape), classes == value)
        assert (region.kind, region.object_category) == (Kind.PANOPTIC, value - 1)
        assert region.is_thing == region.is_crowd == VOCABULARY.things[value - 1]


def write_maps(native: Any, classes: Any, red: Any, green: Any) -> None:
    native.png("annotations/validation/ADE_val_00000003.png", classes)
    native.png("annotations_instance/validation/ADE_val_00000003.png", np.stack([red, green, red * 0], axis=2))


def test_instances_lie_over_stuff_and_touching_ones_stay_apart(write_native: Any) -> None:
    native = write_native("ade20k")
    classes, red, green = np.ones((3, 24, 32), np.int64) * [[[3]], [[0]], [[0]]]  # Sky everywhere.
    red[5:9, 2:12], green[5:9, 2:7], green[5:9, 7:12] = 4, 1, 2  # Two persons, side by side.
    write_maps(native, classes, red, green)
    regions = native.read().record.regions
    names = [(r.kind.value, VOCABULARY.objects[r.object_category], r.area) for r in regions]
    assert names == [
        ("panoptic", "sky", 24 * 32 - 40),
        ("panoptic", "person", 20),
        ("panoptic", "person", 20),
        ("instance", "person", 20),
        ("instance", "person", 20),
    ]


def test_thing_pixels_without_an_instance_are_void_and_counted(write_native: Any) -> None:
    native = write_native("ade20k")
    classes = np.zeros((24, 32), np.int64)
    classes[:, :4] = 13
    write_maps(native, classes, classes * 0, classes * 0)
    read = native.read()
    assert read.record.regions == ()
    assert {r.reason for r in read.dropped} <= REASONS_BY_DESIGN
    detail = f"{native.root}/annotations/validation/ADE_val_00000003.png: class 13: 96 pixels"
    assert [(r.reason, r.detail) for r in read.dropped] == [("thing pixels without an instance", detail)]


def test_unknown_classes_are_dropped(write_native: Any) -> None:
    native = write_native("ade20k")
    classes, red, green = np.zeros((3, 24, 32), np.int64)
    classes[0, 0], red[1, 1] = 151, 101
    write_maps(native, classes, red, green)
    read = native.read()
    assert read.record.regions == ()
    name = "validation/ADE_val_00000003.png"
    assert [(r.reason, r.detail) for r in read.dropped] == [
        ("unknown category", f"{native.root}/annotations/{name}: class 151: 1 pixels"),
        ("unknown category", f"{native.root}/annotations_instance/{name}: instance class 101: 1 pixels"),
    ]


def test_an_image_without_class_png_is_rejected(write_native: Any) -> None:
    native = write_native("ade20k")
    native.path("annotations/validation/ADE_val_00000003.png").unlink()
    index = native.index()
    assert [(r.reason, r.sample_id) for r in index.rejected] == [("missing class PNG", "ADE_val_00000003")]
    assert len(index.entries) == 1


@pytest.mark.parametrize("folder", ["annotations", "annotations_instance"])
def test_a_broken_png_is_a_bad_sample(write_native: Any, folder: str) -> None:
    native = write_native("ade20k")
    native.path(f"{folder}/validation/ADE_val_00000003.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadSample) as caught:
        native.read()
    assert caught.value.rejected.reason == "broken annotation PNG"


def recoded(labels: np.ndarray, mode: str) -> Image.Image:
    """The labels of a grey PNG in another coding."""
    if mode == "I;16":
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.new("P", labels.shape[::-1])
    image.putdata(labels.ravel().tolist())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return image


@pytest.mark.parametrize("mode", ["P", "I;16"])
def test_class_pngs_of_a_palette_or_of_16_bits_hold_the_same_labels(write_native: Any, mode: str) -> None:
    native = write_native("ade20k")
    labels = np.arange(24 * 32).reshape(24, 32) % 151
    write_maps(native, labels, labels * 0, labels * 0)
    expected = native.read()
    assert len(expected.record.regions) == 50
    recoded(labels, mode).save(native.path("annotations/validation/ADE_val_00000003.png"))
    assert native.read() == expected


@pytest.mark.parametrize(
    ("folder", "mode"), [("annotations", "RGB"), ("annotations", "LA"), ("annotations_instance", "L")]
)
def test_pngs_of_another_coding_are_refused_by_name(write_native: Any, folder: str, mode: str) -> None:
    native = write_native("ade20k")
    path = native.path(f"{folder}/validation/ADE_val_00000003.png")
    Image.open(path).convert(mode).save(path)
    with pytest.raises(BadSample) as caught:
        native.read()
    assert caught.value.rejected.reason == "broken annotation PNG"
    assert f"{folder}/validation/ADE_val_00000003.png: " in caught.value.rejected.detail
    assert {"RGB": "this is RGB", "LA": "greyscale with alpha", "L": "this is greyscale"}[
        mode
    ] in caught.value.rejected.detail


def test_labels_beyond_a_byte_are_unknown_classes(write_native: Any) -> None:
    native = write_native("ade20k")
    path = native.path("annotations/validation/ADE_val_00000003.png")
    Image.fromarray(np.full((24, 32), 256 + 3, np.uint16)).save(path)
    dropped = native.read().dropped
    assert [r.reason for r in dropped] == ["unknown category"]
    assert dropped[0].detail.endswith("ADE_val_00000003.png: class 259: 708 pixels")


def remove_instances(native: Any, *numbers: int) -> None:
    for number in numbers:
        native.path(f"annotations_instance/validation/ADE_val_{number:08d}.png").unlink()


def test_a_split_without_any_instance_png_is_refused_unless_that_is_allowed(write_native: Any) -> None:
    native = write_native("ade20k")
    assert native.index().absent == ()
    remove_instances(native, 3, 7)
    message = r"2 of 2 images have no annotations_instance/validation/\*\.png.*allow_absent: \[instances\]"
    with pytest.raises(ValueError, match=message):
        native.index()
    native.source = replace(native.source, allow_absent=("instances",))
    assert native.index().absent == ("instances",)
    read = native.read()
    assert [(r.is_thing, r.is_crowd) for r in read.record.regions] == [(True, True)]
    assert {r.reason for r in read.dropped} == {"no instance PNG"} <= REASONS_BY_DESIGN


def test_a_single_missing_instance_png_is_counted_and_a_half_unpacked_folder_refused(write_native: Any) -> None:
    native = write_native("ade20k")
    remove_instances(native, 3)
    assert (len(native.index().entries), native.index().rejected, native.index().absent) == (2, [], ())
    assert [r.reason for r in native.read().dropped] == ["no instance PNG"]
    for number in (11, 12):
        for folder, suffix in (("images", "jpg"), ("annotations", "png")):
            one = native.path(f"{folder}/validation/ADE_val_{3:08d}.{suffix}")
            native.path(f"{folder}/validation/ADE_val_{number:08d}.{suffix}").write_bytes(one.read_bytes())
    with pytest.raises(ValueError, match="3 of 4 images have no annotations_instance"):
        native.index()


@pytest.mark.parametrize("kept", ["annotations", "annotations_instance"])
def test_pngs_without_an_image_are_counted(write_native: Any, kept: str) -> None:
    native = write_native("ade20k")
    for folder in ("images", "annotations", "annotations_instance"):
        path = native.path(f"{folder}/validation/ADE_val_00000003.{'jpg' if folder == 'images' else 'png'}")
        if folder != kept:
            os.remove(path)
    [rejected] = native.index().rejected
    assert (rejected.reason, rejected.sample_id) == ("missing image", "ADE_val_00000003")
    assert f"{kept}/validation/ADE_val_00000003.png" in rejected.detail


def test_a_folder_without_images_is_an_error(write_native: Any) -> None:
    native = write_native("ade20k")
    native.split = "train"
    with pytest.raises(ValueError, match=r"found no images/training/\*\.jpg"):
        native.index()
