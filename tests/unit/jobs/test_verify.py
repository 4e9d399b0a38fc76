"""`jobs.verify` finds what lies in a folder, reads all of it, and names what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.verify import VerifyJob, main, run, table
from semsam.data.shards import Split
from semsam.model.semantic_sam import SemanticSam
from tests.made_evaluation import write_answers
from tests.painted_shards import VOCABULARIES, write_painted_shards


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    write_painted_shards(folder / "shards", 4, {"pascal_part": VOCABULARIES["pascal_part"]})
    SemanticSam.untrained("debug").save(folder / "models" / "debug")
    return folder


def test_all_that_lies_below_a_folder_is_read(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(stored)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:-1]] == [
        ["ok", "model", f"{stored}/models/debug"],
        ["ok", "shards", f"{stored}/shards/pascal_part/train"],
    ]
    assert lines[1].endswith("pascal_part/train, 4 images in 2 shards")
    assert lines[-1] == "all 2 as they were written"


@pytest.mark.parametrize(
    "name", ["shards/pascal_part/train/shard-00001.arrow", "models/debug/model.safetensors", "models/debug/config.yaml"]
)
def test_what_is_damaged_is_named_beside_what_is_not(
    stored: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = stored / name
    data = path.read_bytes()
    path.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    try:
        with pytest.raises(ValueError, match="^1 of 2 damaged$"):
            main([f"folder={stored}", "threads=2"])
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("damaged")]
        assert str(path) in line
        assert sum("ok" in one.split()[0] for one in table(run(VerifyJob(str(stored)))).splitlines()) == 1
    finally:
        path.write_bytes(data)


def test_items_of_an_evaluation_are_read_as_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_painted_shards(tmp_path / "shards", 6, {"pascal_part": VOCABULARIES["pascal_part"]})
    items = tmp_path / "evaluation" / "items" / "pascal_part"
    write_answers(Split(str(tmp_path / "shards" / "pascal_part" / "train")), items, 4)
    main([str(tmp_path / "evaluation")])
    [line, last] = capsys.readouterr().out.splitlines()
    assert line.split()[:3] == ["ok", "items", str(items)]
    assert "answers to 4 images in " in line
    assert last == "all 1 as they were written"
    [path, *_] = items.glob("items-*.arrow")
    data = path.read_bytes()
    path.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    with pytest.raises(ValueError, match="^1 of 1 damaged$"):
        main([str(tmp_path / "evaluation")])
    assert str(path) in capsys.readouterr().out


def test_a_folder_with_nothing_to_look_at_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither shards, checkpoints, models, masks nor items"):
        run(VerifyJob(str(tmp_path)))
    with pytest.raises(ValueError, match="absent: no such folder"):
        run(VerifyJob(str(tmp_path / "absent")))
