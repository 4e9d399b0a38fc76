"""An evaluation on a cluster: any division of the work gives the same numbers, and a deadly image is named."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.cluster import connect
from jobs.evaluate import EvaluateJob, Evaluation, run
from pipelines.model_pool import ModelReference
from semsam.config import parse_config
from semsam.model.semantic_sam import SemanticSam
from tests.painted_shards import VOCABULARIES, write_painted_shards

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("pascal_part", "objects365")
    return write_painted_shards(tmp_path_factory.mktemp("shards"), 7, {name: VOCABULARIES[name] for name in names})


def evaluate(shards: Path, output: Path, **changes: Any) -> Evaluation:
    values = {
        "data": str(shards),
        "split": "train",
        "output": str(output),
        "untrained": True,
        "image_size": {"short_side": 64, "max_long_side": 96},
        "pictures": 0,
        "num_actors": 1,
        "tracking": {"enabled": False},
    }
    return run(parse_config(EvaluateJob, values | changes, "test"))


def numbers(output: Path) -> bytes:
    stored = orjson.loads((output / "metrics.json").read_bytes())
    return orjson.dumps({name: value for name, value in stored.items() if name != "time"})


def test_any_division_of_the_work_gives_the_same_numbers(shards: Path, tmp_path: Path) -> None:
    with connect():
        for name, actors, rows in (("one", 1, 16), ("two", 2, 1), ("three", 2, 3)):
            evaluate(shards, tmp_path / name, num_actors=actors, rows_per_task=rows)
        assert numbers(tmp_path / "one") == numbers(tmp_path / "two") == numbers(tmp_path / "three")
        # What lies there is not answered again, whatever became of the numbers.
        (tmp_path / "two" / "metrics.json").unlink()
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("two/items/*/items-*")}
        evaluate(shards, tmp_path / "two", rows_per_task=1)
        assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("two/items/*/items-*")}
        # Fewer images: what earlier parts hold of the others goes.
        evaluate(shards, tmp_path / "two", rows_per_task=1, max_images=2)
        assert len(list(tmp_path.glob("two/items/pascal_part/*.arrow"))) == 2


def test_an_image_that_ends_every_actor_is_left_out_and_named(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(ModelReference):
        def load(self, device: str) -> SemanticSam:
            model = super().load(device)
            if "RAY_JOB_ID" in os.environ or os.environ.get("DRIVER") != str(os.getpid()):
                model.encode_image = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            return model

    monkeypatch.setenv("DRIVER", str(os.getpid()))
    monkeypatch.setattr("jobs.evaluate.ModelReference", Deadly)
    with connect():
        with pytest.raises(
            RuntimeError, match="^pascal_part items-00000: 1 images are left out, more than max_left_out = 0: pas"
        ):
            evaluate(shards, tmp_path / "out", datasets=["pascal_part"], max_images=1)
        found = evaluate(shards, tmp_path / "out", datasets=["pascal_part"], max_images=1, max_left_out=1)
        assert not any(name.startswith("one_click") for name in found.metrics)
