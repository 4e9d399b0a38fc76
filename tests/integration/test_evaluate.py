"""An evaluation on a cluster: any division of the work gives the same numbers, and a deadly image is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
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


def written(output: Path) -> dict[str, bytes]:
    """All that was answered, by the name of its file."""
    folder = output / "items"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def wait_for_actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes actors answer nothing before so many of them are there."""
    folder = tmp_path / "actors"

    def wait_for(count: int) -> None:
        started = folder / str(time.monotonic_ns())
        started.mkdir(parents=True)

        class Together(ModelReference):
            def load(self, device: str) -> SemanticSam:
                model = super().load(device)
                encode = model.encode_image

                def encode_together(*arguments: Any) -> Any:
                    deadline = time.monotonic() + 120
                    while len(list(started.iterdir())) < count:
                        assert time.monotonic() < deadline, f"{len(list(started.iterdir()))} of {count} actors"
                        time.sleep(0.05)
                    return encode(*arguments)

                if os.environ["DRIVER"] != str(os.getpid()):
                    (started / str(os.getpid())).touch()
                    model.encode_image = encode_together
                return model

        monkeypatch.setattr("jobs.evaluate.ModelReference", Together)

    monkeypatch.setenv("DRIVER", str(os.getpid()))
    return wait_for


def test_any_number_of_actors_writes_the_same_bytes(
    shards: Path, tmp_path: Path, wait_for_actors: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"rows_per_task": 1, "blind": str(tmp_path / "blind"), "progress_interval": 1e-3}
    with connect(num_cpus=4):
        for actors in (1, 3, 4):
            wait_for_actors(actors)
            evaluate(shards, tmp_path / str(actors), num_actors=actors, **settings)
            assert f", {actors} actor" in capsys.readouterr().out
    first = written(tmp_path / "1")
    assert len(first) == 2 * (2 * 7 + 1)
    for actors in ("3", "4"):
        assert written(tmp_path / actors) == first
        assert numbers(tmp_path / actors) == numbers(tmp_path / "1")


def test_a_pool_grows_as_far_as_the_cluster_goes_and_writes_the_same_bytes(
    shards: Path, tmp_path: Path, wait_for_actors: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"rows_per_task": 1, "blind": str(tmp_path / "blind"), "progress_interval": 1e-3}
    with connect(num_cpus=3):
        evaluate(shards, tmp_path / "fixed", **settings)
        assert ", 2 actors" not in capsys.readouterr().out
        wait_for_actors(3)
        evaluate(shards, tmp_path / "growing", num_actors=1, max_actors=64, **settings)
        assert ", 3 actors" in capsys.readouterr().out
    assert written(tmp_path / "growing") == written(tmp_path / "fixed")
    assert numbers(tmp_path / "growing") == numbers(tmp_path / "fixed")


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
