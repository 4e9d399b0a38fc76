"""What jobs.evaluate refuses before any worker starts, and where it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.evaluate import MARKER, EvaluateJob, _check_output, _with_stable_paths, main, run
from pipelines.evaluate.drawing import LOOKED_AT, draw
from pipelines.evaluate.item_files import ItemManifest
from semsam.config import parse_config
from semsam.data.shards import Split, open_split
from semsam.evaluation.dataset_numbers import measure_dataset
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor
from semsam.storage import Folder
from tests.painted_shards import VOCABULARIES, write_painted_shards


def parse(**values: Any) -> EvaluateJob:
    return parse_config(EvaluateJob, values, "test")


def test_a_checkpoint_is_named_or_none_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^checkpoint: name the folder to evaluate, or set untrained=true"):
        main([f"data={tmp_path}"])
    with pytest.raises(ValueError, match=f"{tmp_path}: no prepared dataset"):
        main([f"data={tmp_path}", "untrained=true"])


def test_paths_are_those_of_the_other_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    job = _with_stable_paths(parse(data="shards", output=f"{bucket}/out/", checkpoint="~/run"))
    assert (job.data, job.output, job.checkpoint) == (f"{tmp_path}/shards", f"{bucket}/out", f"{tmp_path}/run")


@pytest.mark.parametrize("setting", ["data", "output", "checkpoint"])
def test_a_path_that_cannot_be_meant_is_refused_by_its_setting(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"data": "/x", "output": "/x", "checkpoint": "/x"}
    with pytest.raises(ValueError, match=f"^{setting}: gs://x: expected a local path or s3://"):
        run(parse(**places | {setting: "gs://x"}))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValueError, match=f"^{setting}: 'here' is relative; a submitted job needs an absolute path"):
        run(parse(**places | {setting: "here"}))


def test_pictures_of_others_are_not_written_over(tmp_path: Path) -> None:
    write_painted_shards(tmp_path / "shards", 2, {"pascal_part": VOCABULARIES["pascal_part"]})
    output = tmp_path / "out"
    output.mkdir()
    (output / "pascal_part.png").write_text("a holiday")
    with pytest.raises(ValueError, match=f"^output: {output} holds 'pascal_part.png', which no evaluation has written"):
        run(parse(data=str(tmp_path / "shards"), output=str(output), split="train", untrained=True))
    (output / "pascal_part.png").unlink()
    (output / "pascal_part").mkdir()  # Where pictures of single images would go: a copy of the dataset, perhaps.
    with pytest.raises(ValueError, match=f"^output: {output} holds 'pascal_part', which no evaluation has written"):
        _check_output(Folder(output), ["pascal_part"])
    (output / MARKER).write_text("")
    _check_output(Folder(output), ["pascal_part"])


def test_pictures_of_a_dataset_without_masks_cost_a_bounded_number_of_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_painted_shards(tmp_path, 3 * LOOKED_AT, {name: VOCABULARIES[name] for name in ("objects365", "sa1b")})
    predictor = Predictor(SemanticSam.untrained("debug"), ImageSize(64, 64))
    read, record = [], Split.record
    monkeypatch.setattr(Split, "record", lambda split, row: read.append(row) or record(split, row))

    def drawn(dataset: str) -> list[str]:
        split = open_split(str(tmp_path), dataset, "train")
        nothing = ItemManifest(dataset, "train", "", split.manifest.vocabulary, {}, ())
        numbers = measure_dataset([], split.manifest.vocabulary)
        return list(draw(predictor, split, range(len(split)), Folder(str(tmp_path)), nothing, numbers, 2))

    assert drawn("objects365") == []
    assert len(set(read)) == len(read) == 2 * LOOKED_AT
    assert drawn("sa1b") == ["sa1b.png"]
