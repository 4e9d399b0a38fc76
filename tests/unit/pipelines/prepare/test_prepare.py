"""What preparing says of images before any of them is opened, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.prepare import DatasetSettings, PrepareJob, split_tasks
from pipelines.prepare.prepare import IndexSummary, _read_indexes, _tell_of_ids
from pipelines.prepare.shard_writer import SplitTask
from semsam.config import parse_config
from tests.unit.pipelines.sources.conftest import make_native

IDS = ["000000000003", "000000000007"]


@pytest.fixture
def tasks(tmp_path: Path) -> Callable[..., list[SplitTask]]:
    """The val splits of COCO and PACO, which hold the same two images."""
    for dataset in ("coco_panoptic", "paco"):
        make_native(tmp_path / dataset, dataset)

    def make(**settings: Any) -> list[SplitTask]:
        datasets = {
            name: {"root": str(tmp_path / name), "splits": ["val"], **settings} for name in ("coco_panoptic", "paco")
        }
        return split_tasks(parse_config(PrepareJob, {"datasets": datasets, "output": str(tmp_path / "out")}, "test"))

    return make


def summary_of(task: SplitTask) -> IndexSummary:
    summary = next(_read_indexes({0: task}))
    assert isinstance(summary, IndexSummary)
    return summary


def test_images_that_two_datasets_share_are_listed_for_exclude(
    tasks: Callable[..., list[SplitTask]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tasks()
    _tell_of_ids(both, [summary_of(task) for task in both])
    listed = tmp_path / "out" / "shared" / "coco_panoptic-val--paco-val.txt"
    assert listed.read_text().split() == IDS
    assert f"share 2 images; to leave them out: datasets.paco.exclude={listed}" in capsys.readouterr().out
    assert DatasetSettings("x", exclude=str(listed)).excluded() == tuple(IDS)


def test_excluded_images_are_counted_and_in_the_manifests_options(
    tasks: Callable[..., list[SplitTask]], capsys: pytest.CaptureFixture[str]
) -> None:
    both = tasks(exclude=[3, "8"])
    summaries = [summary_of(task) for task in both]
    for summary in summaries:
        assert (summary.num_entries, summary.dropped.counts) == (1, {"excluded by its id": 1})
    assert both[0].options.exclude == ("000000000003", "000000000008")
    _tell_of_ids(both, summaries)
    assert "paco: 1 ids to exclude are in none of its splits (e.g. 000000000008)" in capsys.readouterr().out


def test_an_excluded_image_changes_what_shards_are_made_from(tasks: Callable[..., list[SplitTask]]) -> None:
    vocabulary = tasks()[0].source.vocabulary()
    task = tasks()[0]
    others = (
        tasks(exclude=[3])[0],
        replace(task, source=replace(task.source, version=99)),
        replace(task, source=replace(task.source, max_pixels=5)),
    )
    assert len({one.fingerprint(vocabulary) for one in (task, *others)}) == 4
    assert task.fingerprint(vocabulary) == tasks()[0].fingerprint(vocabulary)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": "/nowhere/ids.txt"}, r"^datasets\.coco_panoptic\.exclude: .*/nowhere/ids\.txt: no such file"),
        ({"max_pixels": 0}, "max_pixels"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_by_name(
    tasks: Callable[..., list[SplitTask]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tasks(**settings)


def test_a_dataset_without_one_kind_of_annotation_says_so(tmp_path: Path) -> None:
    native = make_native(tmp_path / "coco", "coco_panoptic")
    (native.root / "annotations/instances_val2017.json").unlink()
    job = {"datasets": {"coco_panoptic": {"root": str(native.root), "splits": ["val"]}}, "output": str(tmp_path)}
    [task] = split_tasks(parse_config(PrepareJob, job, "test"))
    assert summary_of(task).absent == ("instances",)
