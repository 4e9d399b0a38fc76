"""A dataset is a source file, a vocabulary file and a row of the router: one more comes from a folder of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from semsam.data.images import encode_jpeg
from tests.conftest import ROOT

SOURCE = '''
from dataclasses import dataclass

import numpy as np

from pipelines.sources.categories import load_categories
from pipelines.sources.regions import Regions
from pipelines.sources.source import Entry, Index, Source
from pipelines.sources.stored_image import read_image
from semsam.data.schema import Kind


@dataclass(frozen=True)
class Corners(Source):
    """Photos whose upper left quarter is a corner."""

    dataset: str = "corners"
    train_long_side: int = 16

    def index(self, files, split):
        return Index([Entry(path.removesuffix(".jpg"), path) for path in files.glob("*.jpg")])

    def read(self, files, split, entry):
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id))
        mask = np.zeros((regions.image.height, regions.image.width), bool)
        mask[: len(mask) // 2, : mask.shape[1] // 2] = True
        regions.add_mask(mask, "0", Kind.INSTANCE, load_categories(self.dataset).all[0])
        return regions.read(self.dataset, split)


SOURCE = Corners()
'''
VOCABULARY = {"objects": [{"id": 1, "name": "corner", "thing": True}], "parts": [], "object_parts": []}
SCRIPT = """
import sys
from jobs.evaluate import EvaluateJob
from jobs.generate import GenerateJob
from jobs.prepare import PrepareJob, split_tasks
from pipelines.prepare.shard_writer import write_shard
from pipelines.sources import SOURCES
from semsam.config import parse_config
from semsam.data.training_sample import SampleSettings, training_sample
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.router import TABLE, Row, route

photos, output = sys.argv[1:]
job = parse_config(PrepareJob, {"datasets": {"corners": {"root": photos, "splits": ["train"]}}, "output": output}, "x")
[task] = split_tasks(job)
part, _ = write_shard(task, 0, task.source.index(task.files, "train").entries)
assert (part.report.shard.rows, part.report.num_regions) == (2, 2), part
from pipelines.prepare.shard_writer import make_record
record = make_record(task, task.source.vocabulary(), task.source.index(task.files, "train").entries[0]).record
assert max(record.height, record.width) == 16
TABLE["corners"] = Row(masks=True, generic=True, objects=True, parts=False)
joint = JointVocabulary.of({"corners": task.source.vocabulary(), "paco": SOURCES["paco"].vocabulary()})
settings = parse_config(SampleSettings, {"augmentation": {"crop_size": 32, "scale_min": 1, "scale_max": 1}}, "x")
lesson = route(training_sample(record, 0, 0, settings), joint)
assert lesson.objects.names.tolist() == [joint.objects.index("corner")] and lesson.objects.teaches.all()
parse_config(EvaluateJob, {"datasets": ["corners"]}, "x")
parse_config(GenerateJob, {"images": photos, "vocabulary": "corners"}, "x")
print("learnt", len(SOURCES))
"""


@pytest.mark.slow
def test_a_further_dataset_is_two_files_of_ones_own_and_a_row(tmp_path: Path) -> None:
    import numpy as np

    package, photos = tmp_path / "mine" / "pipelines", tmp_path / "photos"
    for folder in (package / "sources", package / "categories", photos):
        folder.mkdir(parents=True)
    (package / "sources" / "corners.py").write_text(SOURCE)
    (package / "categories" / "corners.json").write_text(json.dumps(VOCABULARY))
    for name in ("a", "b"):
        (photos / f"{name}.jpg").write_bytes(encode_jpeg(np.full((24, 32, 3), 99, np.uint8)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "mine")])}
    command = [sys.executable, "-c", SCRIPT, str(photos), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1:] == ["learnt 11"], done.stderr
