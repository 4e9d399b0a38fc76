"""What `jobs.prepare` makes of its settings, and what it refuses before any worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.prepare import PrepareJob, main, split_tasks, table
from semsam.config import ConfigError, config_values, parse_config
from semsam.data.manifest import Example, Manifest, Shard, Vocabulary


def parse(**values: Any) -> PrepareJob:
    return parse_config(PrepareJob, values, "test")


def test_train_images_of_sa1b_are_made_smaller_and_no_others(tmp_path: Path) -> None:
    datasets: dict[str, Any] = {name: {"root": str(tmp_path)} for name in ("sa1b", "coco_panoptic")}
    datasets["ade20k"] = {"root": str(tmp_path), "max_long_side": 512}
    tasks = split_tasks(parse(datasets=datasets, output=str(tmp_path / "out")))
    assert {task.name: task.options.max_long_side for task in tasks} == {
        "sa1b/train": 1024,
        "sa1b/val": 0,
        "coco_panoptic/train": 0,
        "coco_panoptic/val": 0,
        "ade20k/train": 512,
        "ade20k/val": 0,
    }
    assert tasks[0].output == f"{tmp_path}/out/sa1b/train"


def test_zero_keeps_the_pixels_of_sa1b(tmp_path: Path) -> None:
    job = parse(datasets={"sa1b": {"root": str(tmp_path), "splits": ["train"], "max_long_side": 0}})
    assert [task.options.max_long_side for task in split_tasks(job)] == [0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"datasets": {"sa1b": {"root": "x", "rot": 1}}}, "datasets.sa1b.rot: unknown setting"),
        ({"datasets": {"sa1b": {}}}, "datasets.sa1b.root: Field required"),
        ({"datasets": {"sa2b": {"root": "x"}}}, r"datasets: \['sa2b'\] not among .*; did you mean sa1b"),
        ({"datasets": {}}, "name at least one of"),
        ({"datasets": {"sa1b": {"root": "x", "splits": ["test"]}}}, "splits must be some of"),
        ({"datasets": {"sa1b": {"root": "x", "splits": []}}}, "splits must be some of"),
        ({"datasets": {"sa1b": {"root": "x", "splits": ["val", "val"]}}}, "splits must be some of"),
        (
            {"datasets": {"sa1b": {"root": "x", "max_rejected": 2}}},
            "max_rejected: must be less than or equal to 1, not 2",
        ),
        (
            {"datasets": {"sa1b": {"root": "x", "splits": ["val"], "max_long_side": 9}}},
            "max_long_side is for the train",
        ),
        (
            {"datasets": {"sa1b": {"root": "x"}}, "rows_per_shard": 0},
            "rows_per_shard: must be greater than or equal to 1, not 0",
        ),
        (
            {"datasets": {"sa1b": {"root": "x"}}, "jpeg_quality": 101},
            "jpeg_quality: must be less than or equal to 100, not 101",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**values)


def test_a_missing_root_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"datasets.sa1b.root: {tmp_path}/none: no such folder"):
        main([f"datasets.sa1b.root={tmp_path}/none"])


def test_a_submitted_job_refuses_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(
        ValueError, match="output: 'outputs/shards' is relative; a submitted job needs an absolute path"
    ):
        split_tasks(parse(datasets={"sa1b": {"root": str(tmp_path)}}))
    with pytest.raises(ValueError, match=r"datasets.sa1b.root: 'data' is relative"):
        split_tasks(parse(datasets={"sa1b": {"root": "data"}}, output=f"{bucket}/shards"))


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.arrow", "row_categories.arrow"])
def test_a_folder_with_files_of_others_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out" / "sa1b" / "train"
    folder.mkdir(parents=True)
    (folder / name).write_text('{"name": "an app"}')
    with pytest.raises(ValueError, match=f"^output: {folder} holds '{name}', which this job has not written"):
        main([f"datasets.sa1b.root={tmp_path}", f"output={tmp_path}/out"])


def test_shards_of_an_earlier_version_are_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "sa1b" / "train"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"schema_version": 1}')
    assert split_tasks(parse(datasets={"sa1b": {"root": str(tmp_path)}}, output=str(tmp_path / "out")))


def test_resolved_settings_read_back() -> None:
    job = parse(datasets={"sa1b": {"root": "s3://bucket/sa1b"}})
    assert parse_config(PrepareJob, config_values(job), "test") == job


def test_the_table_has_a_line_per_split_and_one_per_reason() -> None:
    manifest = Manifest(
        dataset="paco",
        split="train",
        source_root="/data",
        shards=(Shard("shard-00000.arrow", 9, 1, "", "", 0, 10),),
        num_samples=9,
        num_regions=70,
        dropped_samples={"broken image": 1},
        dropped_regions={},
        examples={"broken image": (Example("000000000007", "cut short"),)},
        vocabulary=Vocabulary(()),
        vocabulary_digest="",
        code_version="1",
        options={},
    )
    lines = table([manifest]).splitlines()
    assert lines[1].split() == ["paco", "train", "9", "70", "1", "images", "1,", "regions", "0"]
    assert lines[2] == "  images: 1 x broken image (e.g. 000000000007: cut short)"
