"""Reading below a root, local and on S3, gives the same answers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

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
def bucket() -> Iterator[str]:
    """The content in a bucket of a server in this process."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="files")
        for key, data in CONTENT.items():
            client.put_object(Bucket="files", Key=f"data/{key}", Body=data)
        yield "s3://files/data/coco_panoptic/"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "s3":
        return open_root(request.getfixturevalue("bucket"))
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
