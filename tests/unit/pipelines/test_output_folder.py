"""A file of an output folder is there whole or not at all, on a local disk as on S3."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipelines.output_folder import OutputFolder


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    if request.param == "s3":
        return OutputFolder(f"{request.getfixturevalue('bucket')}/{request.node.name.partition('[')[0]}/train")
    return OutputFolder(str(tmp_path / "not" / "yet" / "there"))


def test_what_is_published_reads_back(folder: OutputFolder) -> None:
    with folder.publishing("a.json") as draft:
        draft.write_bytes(b"first")
    with folder.publishing("a.json") as draft:
        draft.write_bytes(b"second")
    assert folder.read("a.json") == b"second"
    assert folder.size("a.json") == 6
    assert folder.sha256("a.json") == hashlib.sha256(b"second").hexdigest()
    assert folder.names() == ["a.json"]


def test_what_is_not_there_is_none_and_can_be_removed(folder: OutputFolder) -> None:
    assert folder.read("a.json") is None
    assert folder.size("a.json") is None
    assert folder.sha256("a.json") is None
    assert folder.names() == []
    folder.remove("a.json")


def test_a_removed_file_is_gone(folder: OutputFolder) -> None:
    for name in ("a.json", "b.json"):
        with folder.publishing(name) as draft:
            draft.write_bytes(b"x")
    folder.remove("a.json")
    assert folder.names() == ["b.json"]


def test_a_failure_on_the_way_leaves_what_was_there(folder: OutputFolder) -> None:
    with folder.publishing("a.json") as draft:
        draft.write_bytes(b"first")
    with pytest.raises(RuntimeError):
        _fail_half_way(folder)
    assert folder.read("a.json") == b"first"
    assert folder.names() == ["a.json"]


def _fail_half_way(folder: OutputFolder) -> None:
    with folder.publishing("a.json") as draft:
        draft.write_bytes(b"half")
        raise RuntimeError
