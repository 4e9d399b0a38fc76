"""The same few operations give the same answers on a local disk and on S3."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

from semsam import s3_objects, storage
from semsam.s3_objects import NoSuchBucketError
from semsam.storage import (
    Folder,
    NoSuchFileError,
    existing_folder,
    normal_path,
    open_filesystem,
    read_file,
    with_retries,
)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "s3":
        return Folder(f"{request.getfixturevalue('bucket')}/{request.node.name.partition('[')[0]}/train")
    return Folder(str(tmp_path / "not" / "yet" / "there"))


def test_what_is_published_reads_back(folder: Folder) -> None:
    with folder.publishing("a.json") as draft:
        draft.write_bytes(b"first")
    with folder.publishing("a.json") as draft:
        draft.write_bytes(b"second")
    assert folder.read("a.json") == b"second"
    assert folder.size("a.json") == 6
    assert folder.sha256("a.json") == hashlib.sha256(b"second").hexdigest()
    assert folder.names() == ["a.json"]


def test_what_is_not_there_is_none_and_can_be_removed(folder: Folder) -> None:
    assert folder.read_if_there("a.json") is None
    assert folder.size("a.json") is None
    assert folder.sha256("a.json") is None
    assert folder.names() == []
    folder.remove("a.json")


def test_a_removed_file_is_gone(folder: Folder) -> None:
    for name in ("a.json", "b.json"):
        with folder.publishing(name) as draft:
            draft.write_bytes(b"x")
    folder.remove("a.json")
    assert folder.names() == ["b.json"]


def test_a_failure_on_the_way_leaves_what_was_there(folder: Folder) -> None:
    with folder.publishing("a.json") as draft:
        draft.write_bytes(b"first")
    with pytest.raises(RuntimeError):
        _fail_half_way(folder)
    assert folder.read("a.json") == b"first"
    assert folder.names() == ["a.json"]


def _fail_half_way(folder: Folder) -> None:
    with folder.publishing("a.json") as draft:
        draft.write_bytes(b"half")
        raise RuntimeError


def test_what_is_appended_is_read_as_one(folder: Folder) -> None:
    assert folder.read_appended("log") == b""
    folder.append("log", b"1")
    folder.append("log", b"2")
    assert folder.read_appended("log") == b"12"
    folder.write_appended("log", b"0")
    folder.append("log", b"3")
    assert folder.read_appended("log") == b"03"


CONTENT = {
    "coco_panoptic/annotations/a.json": b"{}",
    "coco_panoptic/sa_1.json": b"1",
    "coco_panoptic/sa_1.jpg": b"",
    "coco_panoptic/deep/deeper/sa_2.json": b"2",
    "coco_panoptic/name with [brackets]/sa_3.json": b"3",
    "coco/train2017/x.jpg": b"x",
}


@pytest.fixture
def content(folder: Folder) -> Folder:
    for name, data in CONTENT.items():
        (folder / "data").write(name, data)
    return folder / "data"


def test_files_are_read_whole_and_in_ranges(content: Folder) -> None:
    files = content / "coco_panoptic"
    assert files.read("deep/deeper/sa_2.json") == b"2"
    assert read_file(f"{files.path}/sa_1.json") == b"1"
    assert files.exists("sa_1.jpg")
    assert files.is_there()
    assert not files.exists("annotations")
    assert not (content / "absent").is_there()
    file = files.open("annotations/a.json")
    assert (file.size, file.read_at(1, 1), file.read_at(9, 1)) == (2, b"}", b"}")
    assert files.folders() == ["annotations", "deep", "name with [brackets]"]


@pytest.mark.parametrize("name", ["sa_9.jpg", "sa_1.json/x", "absent/x"])
def test_a_missing_file_is_named_and_is_a_fault_that_a_user_can_mend(content: Folder, name: str) -> None:
    files = content / "coco_panoptic"
    for read in (files.read, files.open):
        with pytest.raises(NoSuchFileError, match=f"^{files.path}/{name}: no such file$") as caught:
            read(name)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, OSError)


def test_glob_lists_sorted_names_below_the_folder(content: Folder) -> None:
    files = content / "coco_panoptic"
    assert files.glob("*.json") == ["sa_1.json"]
    assert files.glob("annotations/*.json") == ["annotations/a.json"]
    assert files.glob("**/sa_*.json") == ["deep/deeper/sa_2.json", "name with [brackets]/sa_3.json", "sa_1.json"]
    assert files.glob("deep/**/sa_*.json") == ["deep/deeper/sa_2.json"]
    assert files.glob("nowhere/**/*.json") == []


def test_a_name_may_lead_to_a_neighbour_and_nowhere_else(content: Folder) -> None:
    files = Folder(f"{content.path}/coco_panoptic", [f"{content.path}/coco/"])
    assert pickle.loads(pickle.dumps(files)).read("../coco/train2017/x.jpg") == b"x"
    assert files.read(f"{content.path}/coco/train2017/x.jpg") == b"x"
    for name in ("../x.jpg", "../coco2/x.jpg", f"{content.path}/x.jpg", "a/../../coco_panoptic2/x"):
        with pytest.raises(ValueError, match="leads out of this folder"):
            files.read(name)
        with pytest.raises(ValueError, match="leads out of this folder"):
            files.remove(name)


def test_a_folder_to_read_from_has_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "paco").mkdir()
    (tmp_path / "coco").mkdir()
    for neighbour in ("../coco", f"{tmp_path}/coco/", "s3://bucket/coco"):
        folder = existing_folder(tmp_path / "paco", [neighbour])
        assert folder.neighbours[0].rpartition("/")[2] == "coco"
    assert existing_folder(f"{tmp_path}/paco", ["../coco"]).neighbours == (f"{tmp_path}/coco",)
    for path, neighbours in ((tmp_path / "absent", []), (tmp_path / "paco", ["../absent"])):
        with pytest.raises(ValueError, match="absent: no such folder"):
            existing_folder(path, neighbours)
    with pytest.raises(ValueError, match=r"expected a local path or s3://"):
        existing_folder("gs://bucket/data")


def test_a_folder_in_a_files_place_is_no_file(content: Folder) -> None:
    if content.is_local:
        with pytest.raises(NoSuchFileError, match="coco_panoptic: a folder, not a file"):
            content.read("coco_panoptic")


def test_a_folder_is_deleted_with_what_is_in_it(content: Folder) -> None:
    (content / "coco_panoptic").delete(first="sa_1.json")
    assert content.folders() == ["coco"]
    (content / "absent").delete()


def test_links_and_loops_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.json").touch()
    (tmp_path / "a" / "b" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "outside").symlink_to(tmp_path / "a")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert Folder(tmp_path).glob("**/*.json") == ["a/b/x.json"]


def test_paths_have_one_normal_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for path, normal in {
        "a/b/": f"{tmp_path}/a/b",
        "~/x": "/home/me/x",
        "/x//y/": "/x/y",
        "s3://bucket/a/b/": "s3://bucket/a/b",
        "s3://bucket": "s3://bucket",
        Path("a"): f"{tmp_path}/a",
    }.items():
        assert normal_path(path) == normal
    for path in ("gs://bucket/a", "", "a\0b", "s3://", "~nobody-of-that-name/x"):
        with pytest.raises(ValueError):
            normal_path(path)


def test_a_filesystem_for_other_libraries_reads_and_writes_the_same_files(folder: Folder) -> None:
    filesystem, path = pickle.loads(pickle.dumps(open_filesystem(f"{folder.path}/for/others")))
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/x") as stream:
        stream.write(b"12")
        stream.write(b"3")
    assert (folder / "for/others").read("x") == b"123"
    assert filesystem.get_file_info(f"{path}/x").size == 3
    assert filesystem.get_file_info([path, f"{path}/y"])[0].type == pa.fs.FileType.Directory
    assert filesystem.get_file_info(f"{path}/y").type == pa.fs.FileType.NotFound
    found = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
    assert [(info.base_name, info.size) for info in found] == [("x", 3)]
    with filesystem.open_input_stream(f"{path}/x") as stream:
        assert stream.read() == b"123"
    filesystem.delete_dir(path)
    assert not (folder / "for/others").is_there()


def failing(times: int, error: OSError) -> Callable[[], str]:
    left = [error] * times

    def attempt() -> str:
        if left:
            raise left.pop()
        return "done"

    return attempt


def test_an_outage_of_twenty_seconds_is_ridden_out(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    outage = OSError("AWS Error NETWORK_CONNECTION during GetObject operation")
    assert with_retries(failing(len(storage.BACKOFF), outage), "s3://bucket/x") == "done"
    assert 20 < sum(waited) < 60
    with pytest.raises(OSError, match=r"^s3://bucket/x: AWS Error NETWORK_CONNECTION"):
        with_retries(failing(len(storage.BACKOFF) + 1, outage), "s3://bucket/x")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        NoSuchBucketError("no such bucket at http://127.0.0.1:9000"),
    ],
)
def test_what_waiting_does_not_mend_is_raised_at_once_with_the_path(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(type(error), match=r"^/data/x: ") as caught:
        with_retries(failing(1, error), "/data/x")
    assert caught.value.errno == error.errno


def test_a_full_disk_leaves_no_half_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(s3_objects, "put", full)
    with pytest.raises(OSError, match=f"^{folder.path}/a.json: No space left on device"):
        folder.write("a.json", b"x")
    assert folder.sizes() == {}
    if folder.is_local:
        assert list(Path(folder.path).iterdir()) == []
