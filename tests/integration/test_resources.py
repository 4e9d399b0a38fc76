"""Jobs on a cluster with two CPUs and a logical GPU: what it has is used, what it lacks is refused or waited for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from jobs import cluster, generate, resources, train
from jobs.cluster import connect
from jobs.resources import actors
from semsam.model.semantic_sam import SemanticSam
from tests.painted_shards import VOCABULARIES, write_painted_shards

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    # Ray Data's own defaults use what it calls deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

CONFIGS = cluster.ROOT / "jobs" / "configs"


@pytest.fixture(scope="module", autouse=True)
def address() -> Iterator[str]:
    """Where the cluster is, for other processes; this one is connected to it."""
    path = cluster._with_root(os.environ.get("PYTHONPATH", ""))
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def write_photos(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def test_the_shipped_config_generates_masks_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SemanticSam.untrained("debug").save(tmp_path / "model")
    small = ["image_size.short_side=32", "image_size.max_long_side=64", "masks.points_per_side=2", "masks.min_iou=-10"]
    places = [f"images={write_photos(tmp_path / 'photos')}", f"output={tmp_path}/out", f"checkpoint={tmp_path}/model"]
    generate.main([str(CONFIGS / "generate.yaml"), *places, *small, "images_per_file=3"])
    assert capsys.readouterr().out.splitlines()[-1] == f"masks and manifest in {tmp_path}/out"
    assert len(list((tmp_path / "out").glob("masks-*.parquet"))) == 1


def test_an_evaluation_on_a_gpu_knows_where_relative_paths_lead(tmp_path: Path, address: str) -> None:
    write_painted_shards(tmp_path / "shards", 6, {"pascal_part": VOCABULARIES["pascal_part"]})
    command = [sys.executable, "-m", "jobs.evaluate", "data=shards", "output=out", "split=train", "untrained=true"]
    command += ["image_size.short_side=48", "image_size.max_long_side=64", "gpus_per_actor=0.5"]
    command += ["tracking.enabled=false", "pictures=1"]
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(cluster.ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1].startswith(f"pictures in {tmp_path}/out")
    assert (tmp_path / "out" / "pascal_part.png").is_file()


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        (
            train,
            [],
            "run.cpus_per_worker: no machine has 6 CPUs for 8 workers with 6 CPUs and 1 GPU each; machines: 1 with",
        ),
        (train, ["run.cpus_per_worker=1"], "run.num_workers: there is room for 1 of 8 workers"),
        (generate, ["gpus_per_actor=2"], "gpus_per_actor: no machine has 2 GPUs for 2 workers"),
        (
            generate,
            ["gpus_per_actor=0", "num_actors=3"],
            "num_actors: there is room for 2 of 3 workers with 1 CPU each",
        ),
    ],
)
def test_what_the_cluster_can_never_have_is_refused_at_once(job: object, arguments: list[str], message: str) -> None:
    config = "seven_swin_tiny.yaml" if job is train else "generate.yaml"
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"^{message}"):
        job.main([str(CONFIGS / config), *arguments])  # type: ignore[attr-defined]
    assert time.monotonic() - started < 15


def in_use() -> PlacementGroup:
    group = placement_group([{"CPU": 2}])
    assert group.wait(30)
    return group


def test_what_others_use_is_waited_for_and_no_longer_than_the_setting_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resources, "PROGRESS_INTERVAL", 0.5)
    others = in_use()
    message = (
        "wait_for_resources: waited 2 s until others end their work, and there is still no room for 2 workers with "
        r"1 CPU each \(num_actors\); 2 of 2 CPUs in use$"
    )
    with pytest.raises(ValueError, match=message), connect(actors(2, 0, 2.0)):
        raise AssertionError("nothing was waited for")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("waiting until others end their work: 2 workers with 1 CPU each; 2 of 2 CPUs in use")
    threading.Timer(2, remove_placement_group, [others]).start()
    with connect(actors(2, 0, 60.0)):
        assert "waiting until others" in capsys.readouterr().out
    remaining = in_use()  # What was reserved to see whether there is room has been given back.
    remove_placement_group(remaining)
