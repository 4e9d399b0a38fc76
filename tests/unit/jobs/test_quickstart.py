"""What jobs.quickstart may delete."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.quickstart import FILES, FOLDER, main


@pytest.mark.parametrize("name", ["thesis.tex", "toy", ".hidden", "summary.json"])
def test_a_folder_of_other_peoples_files_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "toy" else (tmp_path / name).write_text("years of work")
    with pytest.raises(ValueError, match=rf"^output: {tmp_path} holds '{name}', and no quickstart has written there"):
        main([f"output={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_or_a_bucket_is_no_folder_for_a_quickstart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"output: {tmp_path}/file: Not a directory"):
        main([f"output={tmp_path}/file"])
    with pytest.raises(ValueError, match="output: s3://bucket/x: the quickstart needs a folder of this machine"):
        main(["output=s3://bucket/x"])


def test_a_submitted_quickstart_needs_an_absolute_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValueError, match="output: 'outputs/quickstart' is relative"):
        main([])


def test_an_earlier_quickstart_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    output = FOLDER.find(str(tmp_path / "new"))
    FOLDER.clear(output)
    for name in ("toy", "shards", "runs/toy"):
        (output / name).mkdir(parents=True)
    for name in FILES:
        (output / name).write_text("old")
    (output / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    (output / "trained").symlink_to(tmp_path / "elsewhere")
    FOLDER.clear(FOLDER.find(str(output)))
    assert sorted(path.name for path in output.iterdir()) == [FOLDER.marker, "notes.txt"]
    assert (tmp_path / "elsewhere" / "notes.txt").read_text() == "mine"


def test_a_home_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FOLDER.find("~/quickstart") == tmp_path / "quickstart"
