"""What jobs.evaluate does without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.evaluate import LOOKED_AT, EvaluateJob, _draw
from semsam.data.shards import Split, open_split
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor
from tests.painted_shards import VOCABULARIES, write_painted_shards


def test_pictures_of_a_dataset_without_masks_cost_a_bounded_number_of_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_painted_shards(tmp_path, 3 * LOOKED_AT, {name: VOCABULARIES[name] for name in ("objects365", "sa1b")})
    predictor = Predictor(SemanticSam.untrained("debug"), ImageSize(64, 64))
    job = EvaluateJob(pictures=2)
    read, record = [], Split.record
    monkeypatch.setattr(Split, "record", lambda split, row: read.append(row) or record(split, row))
    assert _draw(job, "objects365", open_split(str(tmp_path), "objects365", "train"), predictor) is None
    assert len(set(read)) == len(read) == 2 * LOOKED_AT
    assert _draw(job, "sa1b", open_split(str(tmp_path), "sa1b", "train"), predictor) is not None
