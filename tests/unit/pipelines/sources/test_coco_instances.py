"""Somebody's own COCO json: where it lies, its names, its parts, its masks and boxes, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.sources.coco_instances import SOURCE, CocoInstances
from pipelines.sources.source import BadSample, Read
from pipelines.toy.layouts import LAYOUTS
from semsam.data import rle
from semsam.data.images import decode_jpeg, encode_jpeg
from semsam.data.schema import Kind
from semsam.storage import existing_folder

CATEGORIES = [
    {"id": 70, "name": "Car", "supercategory": "vehicle"},
    {"id": "3", "name": "bus"},
    {"id": 12, "name": "wheel", "part_of": "car"},
    {"id": 90071992547409920, "name": "bus:Wheel", "part_of": "bus"},
]
CAR = {"id": 1, "image_id": 5, "category_id": 70, "bbox": [0, 0, 20, 10]}
CAR["segmentation"] = [[0, 0, 20, 0, 20, 10, 0, 10]]  # type: ignore[assignment]


def write(root: Path, name: str = "annotations.json", images: int = 1, **lists: Any) -> Path:
    """A json of images 5, 6, ... of 24 x 32 pixels, which lie in `images/`."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(5, 5 + images):
        (root / "images" / f"{i}.jpg").write_bytes(encode_jpeg(np.full((24, 32, 3), 99, np.uint8)))
        rows.append({"id": i, "file_name": f"{i}.jpg", "height": 24, "width": 32})
    document = {"images": rows, "annotations": [CAR], "categories": CATEGORIES} | lists
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(document))
    return root


def found(root: Path, source: CocoInstances = SOURCE) -> CocoInstances:
    return source.found_in(existing_folder(str(root)))


def read(root: Path, source: CocoInstances = SOURCE) -> Read:
    """The only image, wherever it has come."""
    source, files = found(root, source), existing_folder(str(root))
    [(split, entry)] = [(split, one) for split in ("train", "val") for one in source.index(files, split).entries]
    return source.read(files, split, entry)


def square(x1: int, y1: int, x2: int, y2: int) -> list[list[int]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def part(number: int, x: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 5, "category_id": 12, "segmentation": square(x, 4, x + 4, 8)} | more


def test_the_names_are_those_of_the_json(tmp_path: Path) -> None:
    names = found(write(tmp_path)).vocabulary()
    assert (names.objects, names.parts) == (("Car", "bus"), ("wheel",))
    assert names.object_parts == ((0, 0), (1, 0))
    assert names.things == (True, True)


def test_of_two_images_of_one_name_each_split_has_its_own(tmp_path: Path) -> None:
    for split, grey in (("train", 50), ("val", 200)):
        write(tmp_path, f"annotations/instances_{split}2017.json")
        (tmp_path / f"{split}2017").mkdir()
        (tmp_path / f"{split}2017" / "5.jpg").write_bytes(encode_jpeg(np.full((24, 32, 3), grey, np.uint8)))
    (tmp_path / "images" / "5.jpg").unlink()
    files = existing_folder(str(tmp_path))
    source = SOURCE.found_in(files)
    greys = []
    for split in ("train", "val"):
        [entry] = source.index(files, split).entries
        greys.append(decode_jpeg(source.read(files, split, entry).record.image).mean())
    assert greys == pytest.approx([50, 200], abs=3)


def test_a_dataset_without_parts_has_none(tmp_path: Path) -> None:
    names = found(write(tmp_path, categories=CATEGORIES[:2])).vocabulary()
    assert (names.parts, names.object_parts) == ((), ())


def test_a_part_knows_its_object_by_annotation_or_by_place(tmp_path: Path) -> None:
    other = CAR | {"id": 2, "segmentation": square(8, 0, 32, 12)}
    rows = [part(10, 2), part(11, 14, part_of=1), part(12, 26), CAR, other]
    done = read(write(tmp_path, annotations=rows))
    by_id = {region.annotation_id: region for region in done.record.regions}
    parents = {one: done.record.regions[by_id[one].parent].annotation_id for one in ("10", "11", "12")}
    assert parents == {"10": "1", "11": "1", "12": "2"}
    assert {by_id[one].kind for one in parents} == {Kind.PART}
    assert done.dropped == ()


@pytest.mark.parametrize(
    ("more", "why"), [({}, "no object covers half of it"), ({"part_of": 99}, "no such object: 99")]
)
def test_a_part_without_its_object_stays_and_is_counted(tmp_path: Path, more: dict[str, int], why: str) -> None:
    done = read(write(tmp_path, annotations=[CAR, part(10, 26, **more)]))
    assert done.record.regions[1].parent is None
    assert [(one.reason, why in one.detail) for one in done.dropped] == [("part without its object", True)]


def test_a_box_teaches_where_there_is_no_mask_and_a_mask_has_its_box(tmp_path: Path) -> None:
    mask = rle.encode(np.pad(np.ones((4, 6), bool), ((2, 18), (3, 23))))
    runs = {"size": [24, 32], "counts": rle.decode_counts(mask).tolist()}
    rows = [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 2, 5, 6], "segmentation": []},
        {"id": 2, "image_id": 5, "category_id": 70, "segmentation": runs, "bbox": []},
        {"id": 3, "image_id": 5, "category_id": 70, "segmentation": runs | {"counts": mask.decode()}, "iscrowd": 1},
        {"id": 4, "image_id": 5, "category_id": 12, "bbox": [3, 3, 3, 3]},
    ]
    done = read(write(tmp_path, annotations=rows))
    first, second, third, last = done.record.regions
    assert (first.rle, first.box_xyxy, first.area) == (None, (1, 2, 6, 8), 30)
    assert second.rle == third.rle == mask
    assert second.box_xyxy == (3, 2, 9, 6)
    assert (second.is_crowd, third.is_crowd) == (False, True)
    assert (last.rle, last.parent, last.kind) == (None, 1, Kind.PART)  # Of the car that is no crowd.


def test_a_share_is_held_out_by_file_names_alone(tmp_path: Path) -> None:
    source, files = found(write(tmp_path, images=40)), existing_folder(str(tmp_path))
    train, val = ({one.sample_id for one in source.index(files, split).entries} for split in ("train", "val"))
    assert len(train | val) == 40
    assert not train & val
    assert 2 <= len(val) <= 16
    write(tmp_path, images=60)
    assert val <= {one.sample_id for one in source.index(files, "val").entries}
    with_more = found(tmp_path, source.with_options({"val_share": 0.9}))
    assert len(with_more.index(files, "val").entries) > 40


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("train.json", "val.json"),
    ],
)
def test_each_tool_s_own_place_is_found(tmp_path: Path, train: str, val: str) -> None:
    write(tmp_path, train, images=3)
    write(tmp_path, val, images=2, categories=[*CATEGORIES, {"id": 1, "name": "tram"}])
    source, files = found(tmp_path), existing_folder(str(tmp_path))
    assert [len(source.index(files, split).entries) for split in ("train", "val")] == [3, 2]
    assert source.vocabulary().objects == ("Car", "bus", "tram")
    assert source.read(files, "train", source.index(files, "train").entries[0]).record.regions


def test_images_of_one_name_in_both_splits_are_not_mixed_up(tmp_path: Path) -> None:
    for split, grey in (("train", 10), ("val", 200)):
        write(tmp_path, f"annotations/instances_{split}.json", images=1)
        (tmp_path / split).mkdir()
        (tmp_path / split / "5.jpg").write_bytes(encode_jpeg(np.full((24, 32, 3), grey, np.uint8)))
    (tmp_path / "images" / "5.jpg").unlink()
    source, files = found(tmp_path), existing_folder(str(tmp_path))

    def grey_of(split: str) -> int:
        [entry] = source.index(files, split).entries
        return int(decode_jpeg(source.read(files, split, entry).record.image).mean())

    assert (grey_of("train"), grey_of("val")) == (10, 200)
    (tmp_path / "val" / "5.jpg").unlink()
    with pytest.raises(BadSample, match="missing image"):
        grey_of("val")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (
            {"categories": [*CATEGORIES, {"id": 1, "name": "x", "part_of": "cart"}]},
            r"\[4\].part_of: 'cart' is the name",
        ),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "x", "part_of": "cart"}]}, "of no category; did you mean car"),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "x", "part_of": 70}]}, r"\[4\].part_of: 70 is no text"),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "x", "part_of": "wheel"}]}, r"itself a part, of '(car|bus)'"),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "car:wheel"}]}, "car:wheel is an object's name as well"),
        ({"categories": []}, "the list 'categories' has no usable name"),
        ({"categories": [{"id": 1}]}, "the list 'categories' has no usable name"),
    ],
)
def test_a_mistake_in_the_names_is_told_with_file_and_key(tmp_path: Path, lists: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/annotations.json: .*{message}"):
        found(write(tmp_path, **lists))


def test_a_folder_without_or_with_several_jsons_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(ValueError, match=rf"^{tmp_path}/empty: found no COCO json: none of annotations.json"):
        found(tmp_path / "empty")
    root = write(write(tmp_path / "two", "a.json"), "b.json")
    with pytest.raises(ValueError, match=r"two: which of a.json, b.json\?  options.annotations=<name> says it"):
        found(root)
    assert found(root, SOURCE.with_options({"annotations": "b.json"})).vocabulary().objects == ("Car", "bus")
    with pytest.raises(ValueError, match=r"options.annotations: .*/two/c.json: no such file"):
        found(root, SOURCE.with_options({"annotations": "c.json"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_shar": 1}, "val_shar: coco_instances has the options val_share, annotations; did you mean val_share?"),
        ({"val_share": 2}, "val_share: Input should be less than or equal to 1, not 2"),
        ({"annotations": 5}, "annotations: Input should be a valid string, not 5"),
    ],
)
def test_an_option_that_cannot_be_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SOURCE.with_options(values)


def test_the_seven_have_no_options() -> None:
    from pipelines.sources import SOURCES

    for dataset in LAYOUTS:
        with pytest.raises(ValueError, match=f"val_share: {dataset} has no options"):
            SOURCES[dataset].with_options({"val_share": 0.1})


@pytest.mark.samples
def test_coco_s_own_json_gives_its_annotations(samples_dir: Path) -> None:
    root = samples_dir / "coco_tiny"
    source, files = found(root), existing_folder(str(root))
    for split in ("train", "val"):
        document = json.loads((root / f"annotations/instances_{split}2017.json").read_text())
        index = source.index(files, split)
        reads = [source.read(files, split, entry) for entry in index.entries]
        assert len(reads) == len(document["images"]) == 45
        assert sum(len(one.record.regions) + len(one.dropped) for one in reads) == len(document["annotations"])
        assert sum(len(one.dropped) for one in reads) < 5
    assert len(source.vocabulary().objects) == len(document["categories"])
