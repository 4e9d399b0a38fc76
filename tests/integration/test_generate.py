"""Pools of model actors on a local cluster: masks that are resumed after a kill, the same from and to S3; faults."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import orjson
import pytest
from PIL import Image

from jobs import generate
from jobs.cluster import connect
from pipelines.generate.generate import Generated
from pipelines.generate.generate import generate as generate_masks
from pipelines.model_pool import Pool
from pipelines.sources.source import Files
from semsam.config import parse_config
from semsam.storage import Folder

pytestmark = [
    pytest.mark.cluster,
    # Ray Data's own defaults use what it calls deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "image_size": {"short_side": 32, "max_long_side": 64},
    "masks": {"points_per_side": 2, "min_iou": -10, "min_stability": 0, "max_overlap": 1},
    "objects": ["car", "dog"],
    "parts": ["wheel"],
    "images_per_file": 2,
    "max_rejected": 0.2,
    "num_actors": 1,
}


@pytest.fixture(scope="module", autouse=True)
def ray_connection(bucket: str) -> Iterator[None]:
    """One cluster for all tests; it inherits the bucket's address."""
    with connect(num_cpus=2):
        yield


def write_photos(folder: Path, count: int, size: tuple[int, int] = (40, 60)) -> Path:
    """Numbered photos, the second of which is broken."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(file, "JPEG")
        data = file.getvalue()
        (folder / f"{number:06d}.jpg").write_bytes(data[: len(data) // 2] if number == 2 else data)
    return folder


def job(images: Path | str, output: Path | str, **changes: Any) -> generate.GenerateJob:
    return parse_config(
        generate.GenerateJob, SETTINGS | {"images": str(images), "output": str(output)} | changes, "test"
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.name != "manifest.json"}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.glob("masks-*"))}


def test_masks_of_a_folder_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 7)
    first = generate.run(job(photos, tmp_path / "out", coco_results=True))
    assert (first.num_images, len(first.files), first.rejected) == (6, 4, {"not a readable image": 1})
    assert first.num_masks > 6
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("generate: 7/7 images, ") for line in lines)
    assert lines[-1] == f"{first.num_masks} masks in 6 images, 1 images rejected"
    before = identities(tmp_path / "out")
    assert generate.run(job(photos, tmp_path / "out")) == first
    assert identities(tmp_path / "out") == before


@pytest.mark.slow
def test_from_s3_to_s3_gives_the_files_of_a_local_disk_and_makes_what_is_missing(tmp_path: Path, bucket: str) -> None:
    photos = write_photos(tmp_path / "photos", 5)
    client = boto3.Session().client("s3")
    for path in photos.iterdir():
        client.put_object(Bucket="bucket", Key=f"photos/{path.name}", Body=path.read_bytes())
    local = generate.run(job(photos, tmp_path / "out"))
    remote_job = job(f"{bucket}/photos", f"{bucket}/out")
    remote = generate.run(remote_job)
    assert [file.sha256 for file in remote.files] == [file.sha256 for file in local.files]

    def listed() -> dict[str, Any]:
        objects = client.list_objects_v2(Bucket="bucket", Prefix="out/masks-")["Contents"]
        return {one["Key"]: one["LastModified"] for one in objects}

    before = listed()
    client.delete_object(Bucket="bucket", Key="out/masks-00001.json")
    assert generate.run(remote_job) == remote
    assert {key for key, made in listed().items() if made != before[key]} <= {
        "out/masks-00001.json",
        "out/masks-00001.parquet",
    }
    assert set(listed()) == set(before)


@pytest.mark.slow
def test_a_fault_of_the_storage_says_which_file_met_it(tmp_path: Path) -> None:
    class Fails(Folder):
        def read(self, path: str) -> bytes:
            raise ConnectionError(f"{path}: the line is dead")

    with pytest.raises(RuntimeError, match=r"masks-0000\d\.parquet: ConnectionError: 00000\d\.jpg: the line is dead"):
        generate_from(Fails(str(write_photos(tmp_path / "photos", 3))), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_a_killed_worker_costs_its_file_a_second_try_and_nothing_else(tmp_path: Path) -> None:
    flag = tmp_path / "killed"

    class KillsOnce(Folder):
        def read(self, path: str) -> bytes:
            if path == "000003.jpg" and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(path)

    photos = write_photos(tmp_path / "photos", 6)
    generated = generate_from(KillsOnce(str(photos)), tmp_path / "out")
    assert flag.exists()
    assert (generated.num_images, len(generated.files)) == (5, 3)


@pytest.mark.slow
def test_a_photo_that_kills_every_worker_is_left_out_and_named(tmp_path: Path) -> None:
    class Kills(Folder):
        def read(self, path: str) -> bytes:
            if path == "000003.jpg":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(path)

    files = Kills(str(write_photos(tmp_path / "photos", 6)))
    generated = generate_from(files, tmp_path / "out", max_rejected=0.5)
    assert generated.rejected == {"kills its worker": 1, "not a readable image": 1}
    rejected = orjson.loads((tmp_path / "out" / "rejected.json").read_bytes())
    assert [one["image"] for one in rejected["kills its worker"]] == ["000003.jpg"]
    with pytest.raises(ValueError, match="2 of 6 images are unusable"):
        generate_from(files, tmp_path / "strict")


def generate_from(files: Files, output: Path, **changes: Any) -> Generated:
    task = generate.generate_task(job(files.path, output, **changes))
    return generate_masks(replace(task, files=files), Pool(1), 10.0)
