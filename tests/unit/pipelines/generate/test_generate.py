"""Files of masks, what is told of broken photos, and the settings of `jobs.generate`, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.ipc
import pyarrow.parquet
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from jobs.generate import GenerateJob, generate_task, names_of
from pipelines.generate.coco_results import image_ids, write_coco_results
from pipelines.generate.generate import Task, find_photos, generate
from pipelines.generate.mask_files import MaskReport, part_name, read_masks, write_masks
from pipelines.model_pool import Pool, load_predictor
from pipelines.parts import Part, find_part, sidecar_name
from semsam.automatic_masks import AutomaticMasks
from semsam.config import parse_config
from semsam.storage import Folder, existing_folder

MASKS = {"points_per_side": 2, "min_iou": -10, "min_stability": 0, "max_overlap": 1}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos in two folders, one broken, and files that are none of them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name, size in (("000007.jpg", (40, 60)), ("deeper/000012.PNG", (30, 30)), ("000003.png", (40, 60))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "000009.jpeg").write_bytes(b"no image")
    (folder / "._000007.jpg").write_bytes(b"a file system's own")
    (folder / "notes.txt").write_text("nothing to see")
    return folder


@pytest.fixture
def task(photos: Path, tmp_path: Path) -> Task:
    return new_task(photos, tmp_path / "out")


def new_task(photos: Path, output: Path, **changes: Any) -> Task:
    values: dict[str, Any] = {"images": str(photos), "output": str(output), "masks": MASKS, "objects": ["car", "dog"]}
    values |= {"image_size": {"short_side": 32, "max_long_side": 64}, "max_rejected": 0.25}
    return generate_task(parse_config(GenerateJob, values | changes, "test"))


def generator_of(task: Task) -> AutomaticMasks:
    predictor = load_predictor(task.options.model, task.options.image_size, task.options.prompt_style)
    predictor.set_vocabulary(task.options.objects, task.options.parts)
    return AutomaticMasks(predictor, task.options.masks)


def write(task: Task, images: list[str], position: int = 0) -> Part[MaskReport]:
    return write_masks(generator_of(task), task.options, task.files, images, task.output, position)[0]


def find_finished(folder: Folder, position: int, made_from: str) -> Part[MaskReport] | None:
    return find_part(folder, part_name(position), made_from, MaskReport)


def test_photos_are_found_in_the_order_of_their_paths(photos: Path) -> None:
    assert find_photos(existing_folder(str(photos))) == ["000003.png", "000007.jpg", "000009.jpeg", "deeper/000012.PNG"]


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_a_file_holds_a_row_per_photo_and_its_sidecar_what_was_rejected(
    photos: Path, tmp_path: Path, file_format: str
) -> None:
    task = new_task(photos, tmp_path / "out", file_format=file_format)
    images = find_photos(task.files)
    sidecar = write(task, images)
    path = tmp_path / "out" / f"masks-00000.{file_format}"
    table = pyarrow.parquet.read_table(path) if file_format == "parquet" else pyarrow.ipc.open_file(path).read_all()
    rows = table.to_pylist()
    assert [row["image"] for row in rows] == ["000003.png", "000007.jpg", "deeper/000012.PNG"]
    assert [(one.reason, one.sample_id) for one in sidecar.report.rejected] == [("not a readable image", "000009.jpeg")]
    assert sidecar.report.num_images == 3
    assert sidecar.report.num_masks == sum(len(row["masks"]) for row in rows) > 3
    generator = generator_of(task)
    for row in rows:
        expected = generator.of_image(photos / row["image"])
        assert (row["height"], row["width"]) == (expected.height, expected.width)
        assert [mask["rle"].encode() for mask in row["masks"]] == list(expected.rles)
        assert [mask["object_name"] for mask in row["masks"]] == list(expected.object_names)
        np.testing.assert_allclose([mask["box_xyxy"] for mask in row["masks"]], expected.boxes_xyxy)
        assert {mask["part_name"] for mask in row["masks"]} == {mask["part_score"] for mask in row["masks"]} == {None}
    assert find_finished(Folder(task.output), 0, sidecar.made_from) == sidecar
    assert read_masks(Folder(task.output), sidecar).equals(table)


def test_a_file_is_finished_for_the_photos_and_options_that_it_was_made_from(task: Task) -> None:
    images = find_photos(task.files)
    folder = Folder(task.output)
    made_from = task.options.fingerprint(task.files.path, images)
    assert find_finished(folder, 0, made_from) is None
    sidecar = write(task, images)
    assert find_finished(folder, 0, made_from) == sidecar
    for other in (
        task.options.fingerprint(task.files.path, images[1:]),
        task.options.fingerprint("elsewhere", images),
        replace(task.options, objects=("car", "cat")).fingerprint(task.files.path, images),
        replace(task.options, model_digest="0").fingerprint(task.files.path, images),
        replace(task.options, masks=replace(task.options.masks, min_iou=0.5)).fingerprint(task.files.path, images),
    ):
        assert find_finished(folder, 0, other) is None
    path = Path(task.output) / sidecar.files[0].name
    path.write_bytes(path.read_bytes()[:-1])
    assert find_finished(folder, 0, made_from) is None
    path.unlink()
    assert find_finished(folder, 0, made_from) is None
    Path(task.output, sidecar_name(part_name(0))).write_text("{")
    assert find_finished(folder, 0, made_from) is None


def test_masks_that_are_not_those_that_were_written_are_refused_by_name(task: Task) -> None:
    part = write(task, find_photos(task.files))
    path = Path(task.output) / part.files[0].name
    data = path.read_bytes()
    for changed in (data[:-1], data[:99] + bytes([data[99] ^ 1]) + data[100:]):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"masks-00000\.parquet: not the file that its sidecar means"):
            read_masks(Folder(task.output), part)


def test_the_same_photos_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    one, other = new_task(photos, tmp_path / "a"), new_task(photos, tmp_path / "b")
    images = find_photos(one.files)
    assert write(one, images) == write(other, images)
    assert (tmp_path / "a" / "masks-00000.parquet").read_bytes() == (
        tmp_path / "b" / "masks-00000.parquet"
    ).read_bytes()


def test_finished_files_need_no_worker_and_become_coco_results(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = new_task(photos, tmp_path / "out", images_per_file=2, coco_results=True)
    images = find_photos(task.files)
    files = [write(task, images[:2], 0), write(task, images[2:], 1)]
    (tmp_path / "out" / "masks-00002.parquet").write_text("of an earlier run")
    generated = generate(task, Pool(), 10.0)
    assert generated.files == tuple(file for part in files for file in part.files)
    assert generated.rejected == {"not a readable image": 1}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "coco_images.json",
        "coco_results.json",
        "manifest.json",
        *(f"masks-0000{i}.{kind}" for i in (0, 1) for kind in ("json", "parquet")),
        "rejected.json",
    ]
    rejected = json.loads((tmp_path / "out" / "rejected.json").read_text())
    assert [one["image"] for one in rejected["not a readable image"]] == ["000009.jpeg"]
    lines = capsys.readouterr().out.splitlines()
    assert "generate: 4 images in 2 files" in lines
    assert any(line.startswith("generate: 4/4 images, 0.0 images/s, 4 found done") for line in lines)
    assert any("1 x not a readable image (e.g. 000009.jpeg: broken image of 8 bytes" in line for line in lines)
    truth = COCO(str(tmp_path / "out" / "coco_images.json"))
    found = truth.loadRes(str(tmp_path / "out" / "coco_results.json"))
    assert sorted(truth.imgs) == [3, 7, 12]
    assert {c["name"]: c["id"] for c in truth.dataset["categories"]} == {"car": 1, "dog": 2}
    assert len(found.anns) == generated.num_masks
    row = read_masks(Folder(task.output), files[0]).to_pylist()[1]
    for annotation, mask in zip(found.imgToAnns[7], row["masks"], strict=True):
        assert coco_masks.area(annotation["segmentation"]) == mask["area"]
        np.testing.assert_allclose(coco_masks.toBbox(annotation["segmentation"]), annotation["bbox"])
        assert annotation["category_id"] == {"car": 1, "dog": 2}[mask["object_name"]]
        assert annotation["score"] == pytest.approx(min(max(mask["iou_prediction"] * mask["object_score"], 0), 1))


def test_masks_without_names_are_of_one_category(photos: Path, tmp_path: Path) -> None:
    task = new_task(photos, tmp_path / "out", objects=[], coco_results=True)
    write_coco_results(Folder(task.output), [write(task, ["000003.png"])], task.coco_categories or {})
    results = orjson.loads((tmp_path / "out" / "coco_results.json").read_bytes())
    assert {result["category_id"] for result in results} == {1}
    listed = orjson.loads((tmp_path / "out" / "coco_images.json").read_bytes())
    assert listed["categories"] == [{"id": 1, "name": "object"}]
    write_coco_results(Folder(task.output), [], {})
    assert orjson.loads((tmp_path / "out" / "coco_results.json").read_bytes()) == []


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["a/000139.jpg", "b/5.png"], [139, 5]),
        (["a/1.jpg", "b/1.png"], [1, 2]),
        (["dog.jpg", "7.png"], [1, 2]),
        (["²3.jpg"], [1]),
        ([], []),
    ],
)
def test_ids_are_file_names_where_those_are_different_numbers(images: list[str], expected: list[int]) -> None:
    assert list(image_ids(images).values()) == expected


def test_too_many_broken_photos_fail_the_job_and_are_listed(photos: Path, tmp_path: Path) -> None:
    task = replace(new_task(photos, tmp_path / "out"), max_rejected=0.2)
    write(task, find_photos(task.files))
    with pytest.raises(ValueError, match=r"1 of 4 images are unusable, more than max_rejected = 0\.2\n  1 x not a"):
        generate(task, Pool(), 10.0)
    assert (tmp_path / "out" / "rejected.json").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_folder_without_photos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ValueError, match=r"no image found \(\.bmp"):
        generate(new_task(tmp_path, tmp_path / "out"), Pool(), 10.0)


def test_a_photo_that_is_too_large_is_counted_by_that_reason(photos: Path, tmp_path: Path) -> None:
    part = write(new_task(photos, tmp_path / "out", max_pixels=1000), ["000003.png", "deeper/000012.PNG"])
    [rejected] = part.report.rejected
    assert (rejected.reason, rejected.sample_id) == ("image too large", "000003.png")
    assert "40 x 60 pixels" in rejected.detail
    assert part.report.num_images == 1


def test_a_photo_that_is_gone_or_closed_is_rejected(task: Task, photos: Path) -> None:
    sidecar = write(task, ["gone.png", "000003.png"])
    assert [(one.reason, one.sample_id) for one in sidecar.report.rejected] == [
        ("gone since it was listed", "gone.png")
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "images: Field required"),
        ({"images": "x", "vocabulary": "cocoa"}, "'cocoa' is not one of"),
        ({"images": "x", "vocabulary": "paco", "objects": ["car"]}, "either vocabulary or objects"),
        ({"images": "x", "objects": ["car", "car"]}, "different names"),
        ({"images": "x", "parts": [""]}, "none of them empty"),
        ({"images": "x", "images_per_file": 0}, "images_per_file: must be greater than or equal to 1"),
        ({"images": "x", "max_rejected": 2}, "max_rejected: must be less than or equal to 1"),
        ({"images": "x", "file_format": "csv"}, "file_format: must be 'arrow' or 'parquet'"),
        ({"images": "x", "masks": {"points_per_side": 0}}, "masks.points_per_side: must be greater than or equal to 1"),
    ],
)
def test_settings_without_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(GenerateJob, values, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"images": f"{p}/nowhere"}, "images: .*nowhere: no such folder"),
        (lambda p: {"checkpoint": f"{p}/nowhere"}, "nowhere is not a checkpoint"),
        (lambda p: {"masks": {"levels": [6]}}, r"masks\.levels \[6\]: the model's are 0 to 5"),
    ],
)
def test_what_is_not_there_is_refused_before_any_worker_starts(
    photos: Path, tmp_path: Path, change: Callable[[Path], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        new_task(photos, tmp_path / "out", **change(photos))


@pytest.mark.parametrize("name", ["manifest.json", "masks-00001.json", "coco_results.json", "rejected.json"])
def test_a_folder_with_files_of_others_is_refused_and_left_alone(photos: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"name": "an app"}')
    with pytest.raises(ValueError, match=f"^output: {tmp_path}/out holds '{name}', which this job has not written"):
        new_task(photos, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == '{"name": "an app"}'


def test_a_datasets_names_keep_its_ids() -> None:
    objects, parts, ids = names_of(GenerateJob(images="x", vocabulary="coco_panoptic"))
    assert dict(zip(objects, ids, strict=True))["toothbrush"] == 90
    assert len(objects) == len(ids) == len(set(ids)) > 120
    assert parts == ()
    objects, parts, _ = names_of(GenerateJob(images="x", vocabulary="partimagenet"))
    assert (len(objects), len(parts)) == (11, 13)


def test_another_model_has_another_digest(photos: Path, tmp_path: Path) -> None:
    first, same, other = (new_task(photos, tmp_path, seed=seed).options.model_digest for seed in (0, 0, 1))
    assert first == same != other
