"""Reading below a root, local and on S3, gives the same answers."""

from __future__ import annotations

import pickle
from pathlib import Path

import boto3
import pytest

from pipelines.files import Files, find_file, open_root

CONTENT = {
    "coco_panoptic/annotations/a.json": b"{}",
    "coco_panoptic/sa_1.json": b"1",
    "coco_panoptic/sa_1.jpg": b"",
    "coco_panoptic/deep/deeper/sa_2.json": b"2",
    "coco_panoptic/name with [brackets]/sa_3.json": b"3",
    "coco/train2017/x.jpg": b"x",
}


@pytest.fixture(scope="module")
def content(bucket: str) -> str:
    """The URI of the content on S3."""
    client = boto3.client("s3")
    for key, data in CONTENT.items():
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"data/{key}", Body=data)
    return f"{bucket}/data/coco_panoptic/"


@pytest.fixture(params=["local", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "s3":
        return open_root(request.getfixturevalue("content"))
    for name, data in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return open_root(str(tmp_path / "coco_panoptic"))


def test_read_bytes_and_exists(files: Files) -> None:
    assert files.read_bytes("deep/deeper/sa_2.json") == b"2"
    assert files.exists("sa_1.jpg")
    assert files.exists("annotations")
    assert not files.exists("sa_9.jpg")
    with pytest.raises(FileNotFoundError):
        files.read_bytes("sa_9.jpg")


def test_a_path_may_lead_to_a_neighbouring_folder(files: Files) -> None:
    assert files.read_bytes("../coco/train2017/x.jpg") == b"x"


def test_glob_lists_sorted_paths_below_the_root(files: Files) -> None:
    assert files.glob("*.json") == ["sa_1.json"]
    assert files.glob("annotations/*.json") == ["annotations/a.json"]
    assert files.glob("**/sa_*.json") == [
        "deep/deeper/sa_2.json",
        "name with [brackets]/sa_3.json",
        "sa_1.json",
    ]
    assert files.glob("deep/**/sa_*.json") == ["deep/deeper/sa_2.json"]
    assert files.glob("nowhere/**/*.json") == []


def test_files_pickle(files: Files) -> None:
    again = pickle.loads(pickle.dumps(files))
    assert again.root == files.root
    assert again.read_bytes("sa_1.json") == b"1"


def test_find_file_names_every_place_it_looked(files: Files) -> None:
    assert find_file(files, ["no.json", "sa_1.json"]) == "sa_1.json"
    with pytest.raises(ValueError, match=r"found none of no\.json, neither\.json"):
        find_file(files, ["no.json", "neither.json"])


def test_a_root_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        open_root(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="expected a local folder or s3://"):
        open_root("gs://bucket/data")
