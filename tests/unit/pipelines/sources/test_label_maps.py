"""A folder of images with label PNGs: splits, names, ignored labels, and mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.sources.label_maps import SOURCE, LabelMaps
from pipelines.sources.source import BadSample
from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.schema import Kind
from semsam.storage import existing_folder

NAMES = '{"0": "grass", "3": "road", "300": "sky"}'


def labels() -> np.ndarray:
    pixels = np.zeros((24, 32), np.uint16)
    pixels[:4], pixels[4:8], pixels[20:, :5] = 300, 3, 255
    return pixels


def write(root: Path, place: str, count: int, pixels: np.ndarray | None = None, first: int = 0) -> Path:
    """Images below `place`, in which {} is `images` or `labels`."""
    for folder in ("images", "labels"):
        (root / place.format(folder)).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        photo = root / place.format("images") / f"photo {i}.JPG"
        photo.write_bytes(encode_jpeg(np.full((24, 32, 3), 99, np.uint8)))
        shown = Image.fromarray(labels() if pixels is None else pixels)
        shown.save(root / place.format("labels") / f"photo {i}.png")
    (root / "names.json").write_text(NAMES)
    return root


def found(root: Path, source: LabelMaps = SOURCE) -> LabelMaps:
    return source.found_in(existing_folder(str(root)))


def test_every_label_of_an_image_is_a_region_and_ignored_pixels_are_none(tmp_path: Path) -> None:
    root = write(tmp_path, "{}", 2)
    source, files = found(root), existing_folder(str(root))
    assert source.vocabulary().objects == ("grass", "road", "sky")
    read = source.read(files, "train", source.index(files, "train").entries[0])
    assert read.dropped == ()
    shown = {source.vocabulary().objects[one.object_category]: one for one in read.record.regions}
    assert {name: one.area for name, one in shown.items()} == {"sky": 128, "road": 128, "grass": 24 * 32 - 256 - 20}
    assert rle.decode(shown["road"].rle, 24, 32).tolist() == (labels() == 3).tolist()
    assert {(one.kind, one.is_thing) for one in read.record.regions} == {(Kind.PANOPTIC, False)}


@pytest.mark.parametrize(("place", "val"), [("{}/train", "{}/val"), ("train/{}", "valid/{}"), ("{}", "{}")])
def test_splits_are_folders_or_a_share_is_held_out(tmp_path: Path, place: str, val: str) -> None:
    write(tmp_path, place, 20)
    write(tmp_path, val, 5, first=20)
    source, files = found(tmp_path), existing_folder(str(tmp_path))
    train, held_out = ({one.sample_id for one in source.index(files, split).entries} for split in ("train", "val"))
    assert len(train | held_out) == 25
    assert not train & held_out
    assert len(held_out) == 5 if place != val else 1 <= len(held_out) <= 12


def test_names_in_a_text_file_and_palettes_are_understood(tmp_path: Path) -> None:
    root = write(tmp_path, "{}", 1, np.full((24, 32), 3, np.uint8))
    picture = Image.fromarray(np.full((24, 32), 3, np.uint8), "P")
    picture.putpalette([0, 0, 0, 9, 9, 9, 7, 7, 7, 200, 1, 2])
    picture.save(root / "labels" / "photo 0.png")
    (root / "names.json").unlink()
    (root / "names.txt").write_text("3 a wet road\n\n7 sky\n")
    source, files = found(root), existing_folder(str(root))
    assert source.vocabulary().objects == ("a wet road", "sky")
    [entry] = source.index(files, "val").entries
    assert [one.object_category for one in source.read(files, "val", entry).record.regions] == [0]


def test_a_label_without_a_name_is_counted_with_its_remedy(tmp_path: Path) -> None:
    root = write(tmp_path, "{}", 1, np.full((24, 32), 8, np.uint8))
    source, files = found(root), existing_folder(str(root))
    [entry] = source.index(files, "val").entries
    [dropped] = source.read(files, "val", entry).dropped
    assert dropped.reason == "label without a name"
    assert dropped.detail.endswith(
        "labels/photo 0.png: label 8: 768 pixels; name it, or leave it out by options.ignore=[8,255]"
    )
    ignoring = found(root, SOURCE.with_options({"ignore": [8, 255]}))
    assert ignoring.read(files, "val", entry).dropped == ()


def test_an_image_without_its_label_png_and_one_of_another_size_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path, "{}/train", 3)
    write(tmp_path, "{}/val", 1, first=3)
    (root / "labels/train/photo 1.png").unlink()
    (root / "images/train/photo 2.JPG").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "labels/train/photo 0.png")
    source, files = found(root), existing_folder(str(root))
    index = source.index(files, "train")
    assert {one.reason: one.sample_id for one in index.rejected} == {
        "missing image": "photo 2",
        "missing label PNG": "photo 1",
    }
    with pytest.raises(BadSample, match="image size differs from annotation"):
        source.read(files, "train", index.entries[0])


def test_a_colour_png_is_no_label_map(tmp_path: Path) -> None:
    root = write(tmp_path, "{}", 1, np.zeros((24, 32, 3), np.uint8))
    source, files = found(root), existing_folder(str(root))
    [entry] = source.index(files, "val").entries
    with pytest.raises(BadSample, match=r"broken label PNG: .*photo 0.png: a class PNG has one channel, this is RGB"):
        source.read(files, "val", entry)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("names.json", "[1]", "names.json: expected an object of names by label"),
        ("names.json", '{"road": 3}', "names.json: 'road' is no label: a whole number"),
        ("names.json", '{"3": 3}', "names.json: 3: 3 is no name"),
        ("names.json", '{"3": "road",}', "names.json: line 1, column "),
        ("names.json", '{"255": "void"}', "names.json: names no label"),
        ("names.json", '{"1": "road", "2": "Road"}', "names.json: labels 1 and 2 are both called 'Road'"),
        ("names.txt", "3 road\nroad 3", "names.txt: line 2: 'road' is no label"),
        ("names.txt", "3 road\n3 sky", "names.txt: line 2: label 3 is 'road' already"),
        ("names.txt", "3", "names.txt: line 1: '' is no name"),
        ("labels.csv", "", "found none of names.json, names.txt"),
    ],
)
def test_a_mistake_in_the_names_is_told_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    root = write(tmp_path, "{}", 1)
    (root / "names.json").unlink()
    (root / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}.*{message}"):
        found(root)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(NAMES)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: found no images/\*.jpg"):
        found(tmp_path).index(existing_folder(str(tmp_path)), "train")
