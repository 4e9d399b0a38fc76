"""SA-1B: class-agnostic masks whose strings stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.sources.sa1b import Sa1b
from pipelines.sources.source import BadSample, Rejected
from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.schema import Kind
from semsam.storage import existing_folder


@pytest.mark.samples
@pytest.mark.parametrize("name", ["sa_1", "sa_560", "sa_3032002"])
def test_real_rle_is_stored_bit_for_bit(samples_dir: Path, tmp_path: Path, name: str) -> None:
    data = (samples_dir / f"sa1b/annotation_records/{name}.json").read_bytes()
    document = json.loads(data)
    size = (document["image"]["height"], document["image"]["width"], 3)
    (tmp_path / f"{name}.json").write_bytes(data)
    (tmp_path / f"{name}.jpg").write_bytes(encode_jpeg(np.full(size, 128, np.uint8)))
    source, files = Sa1b(val_share=0), existing_folder(str(tmp_path))
    read = source.read(files, "train", source.index(files, "train").entries[0])
    assert read.dropped == ()
    for region, row in zip(read.record.regions, document["annotations"], strict=True):
        x, y, w, h = row["bbox"]
        assert region.rle == row["segmentation"]["counts"].encode()
        assert region.area == row["area"]
        assert region.annotation_id == str(row["id"])
        # The dataset's own boxes end on the last pixel instead of after it.
        assert region.box_xyxy == (x, y, x + w + 1, y + h + 1)
        assert (region.kind, region.object_category, region.part_category) == (Kind.CLASS_AGNOSTIC, None, None)


def write_names(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_hashed_split_is_complete_disjoint_and_the_same_in_subfolders(tmp_path: Path) -> None:
    write_names(tmp_path / "flat", [f"sa_{i}.json" for i in range(200)])
    write_names(tmp_path / "deep", [f"sa_{i % 3:06d}/sa_{i}.json" for i in range(200)])
    source = Sa1b(val_share=0.2)
    ids = {
        (place, split): [e.sample_id for e in source.index(existing_folder(str(tmp_path / place)), split).entries]
        for place in ("flat", "deep")
        for split in ("train", "val")
    }
    assert ids["flat", "val"] == ids["deep", "val"]
    assert ids["flat", "train"] == ids["deep", "train"]
    assert sorted(ids["flat", "train"] + ids["flat", "val"]) == [f"{i:012d}" for i in range(200)]
    assert 20 < len(ids["flat", "val"]) < 60


def test_folders_named_after_the_splits_are_the_split(tmp_path: Path) -> None:
    write_names(tmp_path, ["train/sa_000001/sa_11.json", "train/sa_2.json", "val/sa_3.json"])
    files = existing_folder(str(tmp_path))
    assert [entry.image for entry in Sa1b().index(files, "train").entries] == [
        "train/sa_2.jpg",
        "train/sa_000001/sa_11.jpg",
    ]
    assert [entry.image for entry in Sa1b().index(files, "val").entries] == ["val/sa_3.jpg"]


def test_the_same_id_in_two_folders_is_counted(tmp_path: Path) -> None:
    write_names(tmp_path, ["train/a/sa_2.json", "train/b/sa_2.json", "val/sa_3.json"])
    index = Sa1b().index(existing_folder(str(tmp_path)), "train")
    assert [entry.image for entry in index.entries] == ["train/a/sa_2.jpg"]
    assert [(r.reason, r.detail) for r in index.rejected] == [("duplicate image id", f"{tmp_path}/train/b/sa_2.json")]


def test_an_image_without_a_json_is_counted(tmp_path: Path) -> None:
    write_names(tmp_path, ["train/sa_2.json", "train/sa_2.jpg", "train/a/sa_5.jpg", "train/sa_6.txt", "val/sa_3.json"])
    index = Sa1b().index(existing_folder(str(tmp_path)), "train")
    assert [entry.image for entry in index.entries] == ["train/sa_2.jpg"]
    assert list(index.rejected) == [
        Rejected("missing annotation file", "000000000005", f"{tmp_path}/train/a/sa_5.json")
    ]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no sa_\*\.json"):
        Sa1b().index(existing_folder(str(tmp_path)), "train")


@pytest.mark.parametrize("content", ['{"image": ', "[]", '{"image": {}, "annotations": []}', '{"annotations": 3}'])
def test_a_broken_annotation_file_is_a_bad_sample(write_native: Any, content: str) -> None:
    native = write_native("sa1b")
    native.path("val/sa_3.json").write_text(content)
    with pytest.raises(BadSample) as caught:
        native.read()
    assert caught.value.rejected.reason == "broken annotation file"
    assert caught.value.rejected.sample_id == "000000000003"


def test_an_rle_of_another_size_is_a_bad_sample(write_native: Any) -> None:
    native = write_native("sa1b")
    other = native.rle_object(np.ones((32, 24), bool))
    native.edit("val/sa_3.json", lambda document: document["annotations"][0].update(segmentation=other))
    with pytest.raises(BadSample) as caught:
        native.read()
    assert caught.value.rejected.reason == "RLE size differs from image"


def test_a_polygon_and_run_lengths_are_masks_too_and_unusable_ones_leave_the_others(write_native: Any) -> None:
    native = write_native("sa1b")
    expected = native.read().record.regions[0]
    polygon, runs = [2, 3, 12, 3, 12, 9, 2, 9], rle.decode_counts(expected.rle).tolist()

    def change(document: Any) -> None:
        first = document["annotations"][0]
        masks = [[polygon], polygon, {"size": ["24", 32.0], "counts": runs}, "word", 5, {"size": [24, 32], "counts": 7}]
        document["annotations"] += [first | {"id": 200 + i, "segmentation": mask} for i, mask in enumerate(masks)]

    native.edit("val/sa_3.json", change)
    read = native.read()
    assert [r._replace(annotation_id="100") for r in read.record.regions] == [expected] * 4
    file = f"{native.root}/val/sa_3.json"
    assert [(r.reason, r.detail) for r in read.dropped] == [
        ("broken polygon", f"{file}: annotation 203: 'word' is no list"),
        ("broken polygon", f"{file}: annotation 204: 5 is no list"),
        ("broken RLE", f"{file}: annotation 205: 7 is no list"),
    ]


def test_a_json_of_another_image_is_a_bad_sample(write_native: Any) -> None:
    native = write_native("sa1b")
    first, second = native.path("val/sa_3.json"), native.path("val/sa_7.json")
    first_data, second_data = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_data)
    second.write_bytes(first_data)
    for position, other in ((0, "sa_7.jpg"), (1, "sa_3.jpg")):
        with pytest.raises(BadSample, match=f"annotation file of another image: .*it is of '{other}'"):
            native.read(position)


def test_an_empty_mask_is_dropped(write_native: Any) -> None:
    native = write_native("sa1b")
    empty = native.rle_object(np.zeros((24, 32), bool))
    native.edit("val/sa_3.json", lambda document: document["annotations"][0].update(segmentation=empty))
    read = native.read()
    assert [r.reason for r in read.dropped] == ["empty mask"]
    assert read.record.regions == ()
