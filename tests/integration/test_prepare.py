"""`jobs.prepare` on a local cluster: the same shards every time, also after it was killed, and faults that are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import orjson
import pytest
import ray

from jobs import prepare
from jobs.cluster import connect
from pipelines.prepare.prepare import prepare as prepare_splits
from pipelines.prepare.shard_writer import ShardOptions, SplitTask
from pipelines.sources import SOURCES
from pipelines.sources.sa1b import Sa1b
from pipelines.sources.source import Entry, Read
from pipelines.toy import ToySettings, write_toy_world
from pipelines.toy.layouts import LAYOUTS
from semsam.config import parse_config
from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.manifest import Manifest, Vocabulary
from semsam.data.row_categories import row_names
from semsam.data.schema import Kind
from semsam.data.shards import Split
from semsam.storage import existing_folder

pytestmark = [
    pytest.mark.cluster,
    # Ray Data's own defaults use what it calls deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 90, 130


@pytest.fixture(scope="module", autouse=True)
def ray_connection(bucket: str) -> Iterator[None]:
    """One cluster for all tests; it inherits the bucket's address."""
    with connect(num_cpus=2):
        yield


def write_sa1b(root: Path, train: int = 11, val: int = 3, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """An SA-1B folder; every image differs a little, so that rows in the wrong order would be seen."""
    mask = np.zeros(size, bool)
    mask[5:30, 10:50] = True
    segmentation = {"size": list(size), "counts": rle.encode(mask).decode()}
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        for number in range(1, count + 1):
            image[:8, :8] = number
            stem = root / split / f"sa_{number}"
            stem.with_suffix(".jpg").write_bytes(encode_jpeg(image))
            rows = [{"id": number, "area": int(mask.sum()), "segmentation": segmentation}]
            document = {"image": {"height": size[0], "width": size[1]}, "annotations": rows}
            stem.with_suffix(".json").write_bytes(orjson.dumps(document))
    return root


def job(root: Path, output: Path, name: str = "sa1b", dataset: dict[str, Any] | None = None, **changes: Any) -> Any:
    values = {"datasets": {name: {"root": str(root)} | (dataset or {})}, "output": str(output), "rows_per_shard": 4}
    return parse_config(prepare.PrepareJob, values | changes, "test")


def files_of(folder: Path, pattern: str = "**/*.arrow") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.glob("**/shard-*"))}


def test_every_image_becomes_a_row_in_the_order_of_the_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = prepare.run(job(write_sa1b(tmp_path / "sa1b"), tmp_path / "out"))
    assert [(m.dataset, m.split, m.num_samples, m.num_regions) for m in manifests] == [
        ("sa1b", "train", 11, 11),
        ("sa1b", "val", 3, 3),
    ]
    split = Split(str(tmp_path / "out" / "sa1b" / "train"))
    split.verify()
    assert split.rows_of_shard == (4, 4, 3)
    assert [split.record(i).sample_id for i in range(11)] == [f"{i:012d}" for i in range(1, 12)]
    assert split.manifest == manifests[0]
    expected = {"rows_per_shard": 4, "max_long_side": 1024, "jpeg_quality": 92, "exclude": []}
    assert expected.items() <= manifests[0].options.items()
    assert manifests[0].options["source"]["version"] == SOURCES["sa1b"].version
    assert manifests[1].options["max_long_side"] == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("prepare: 14/14 images, ") for line in lines)
    assert "sa1b            train           11          11       3  nothing" in lines


def test_two_runs_give_the_same_bytes_and_a_second_one_on_the_same_folder_does_nothing(tmp_path: Path) -> None:
    root = write_sa1b(tmp_path / "sa1b")
    small = {"max_long_side": 64}
    first = prepare.run(job(root, tmp_path / "a", dataset=small))
    second = prepare.run(job(root, tmp_path / "b", dataset=small))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert [m.digest() for m in first] == [m.digest() for m in second]
    assert Split(str(tmp_path / "a" / "sa1b" / "train")).record(0).width == 64
    before = identities(tmp_path / "a")
    assert prepare.run(job(root, tmp_path / "a", dataset=small)) == first
    assert identities(tmp_path / "a") == before


def test_other_options_replace_the_shards_and_leave_none_behind(tmp_path: Path) -> None:
    root = write_sa1b(tmp_path / "sa1b")
    prepare.run(job(root, tmp_path / "out", rows_per_shard=2))
    prepare.run(job(root, tmp_path / "out", rows_per_shard=4))
    prepare.run(job(root, tmp_path / "fresh", rows_per_shard=4))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")
    assert len(list((tmp_path / "out" / "sa1b" / "train").iterdir())) == 3 * 3 + 1


def test_too_many_broken_images_fail_the_split_and_spare_the_others(tmp_path: Path) -> None:
    root = write_sa1b(tmp_path / "sa1b")
    for number in (2, 9):
        path = root / "train" / f"sa_{number}.jpg"
        path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError) as caught:
        prepare.run(job(root, tmp_path / "out", dataset={"max_rejected": 0.1}))
    first, second = str(caught.value).splitlines()
    assert first == "sa1b/train: 2 of 11 images are unusable, more than max_rejected = 0.1"
    assert second.startswith(f"  2 x broken image (e.g. 000000000002: {root}/train/sa_2.jpg: broken JPEG")
    assert not (tmp_path / "out" / "sa1b" / "train" / "manifest.json").exists()
    assert (tmp_path / "out" / "sa1b" / "val" / "manifest.json").exists()
    before = identities(tmp_path / "out")
    train, _ = prepare.run(job(root, tmp_path / "out", dataset={"max_rejected": 0.2}))
    assert identities(tmp_path / "out") == before
    assert train.dropped_samples == {"broken image": 2}
    assert [e.sample_id for e in train.examples["broken image"]] == ["000000000002", "000000000009"]
    assert [shard.rows for shard in train.shards] == [3, 4, 2]
    assert [shard.first_entry for shard in train.shards] == [0, 4, 8]


def test_too_many_broken_regions_fail_the_split(tmp_path: Path) -> None:
    root = write_sa1b(tmp_path / "sa1b")
    path = root / "val" / "sa_1.json"
    document = orjson.loads(path.read_bytes())
    document["annotations"][0]["segmentation"]["counts"] = "0"
    path.write_bytes(orjson.dumps(document))
    with pytest.raises(ValueError, match="sa1b/val: 1 of 3 regions are unusable"):
        prepare.run(job(root, tmp_path / "out"))


def test_an_index_that_is_no_json_is_named_with_the_position(tmp_path: Path) -> None:
    annotations = tmp_path / "objects365" / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "zhiyuan_objv2_val.json").write_bytes(b'{"images": [\n{"id": 1,}]}')
    with pytest.raises(ValueError, match=r"annotations/zhiyuan_objv2_val.json: line 2, column \d+: "):
        prepare.run(job(tmp_path / "objects365", tmp_path / "out", "objects365", {"splits": ["val"]}))
    assert not (tmp_path / "out").exists()


def test_a_split_without_images_is_an_error(tmp_path: Path) -> None:
    root = write_sa1b(tmp_path / "sa1b", val=1)
    (root / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="found no sa_"):
        prepare.run(job(root, tmp_path / "out"))


def test_all_seven_toy_datasets_lose_what_was_spoiled_and_nothing_else(tmp_path: Path) -> None:
    written = write_toy_world(tmp_path / "toy", ToySettings(train_images=6, val_images=2))
    expected = {(split.dataset, split.split): split for split in written}
    datasets = {name: {"root": f"{tmp_path}/toy/{name}", "max_rejected": 0.2} for name in LAYOUTS}
    manifests = prepare.run(
        parse_config(prepare.PrepareJob, {"datasets": datasets, "output": f"{tmp_path}/out"}, "test")
    )
    assert len(manifests) == 14
    for manifest in manifests:
        toy = expected[manifest.dataset, manifest.split]
        assert (manifest.num_samples, manifest.num_regions) == (toy.num_samples, toy.num_regions)
        assert manifest.dropped_samples == toy.dropped_samples
        assert manifest.dropped_regions == toy.dropped_regions
        split = Split(f"{tmp_path}/out/{manifest.dataset}/{manifest.split}")
        split.verify()
        records = [split.record(i) for i in range(len(split))]
        assert sum(len(record.regions) for record in records) == manifest.num_regions > 0
        if manifest.dataset == "sa1b":
            assert manifest.row_categories is None
        else:
            listed = [(row["objects"], row["parts"]) for row in split.row_categories().to_pylist()]
            assert listed == [row_names(record) for record in records]
            assert any(objects for objects, _ in listed)
            assert any(parts for _, parts in listed) == bool(manifest.vocabulary.parts)


def test_the_file_of_names_is_the_same_bytes_every_time_also_after_a_stop(tmp_path: Path) -> None:
    write_toy_world(tmp_path / "toy", ToySettings(train_images=6, val_images=2))
    root, options = tmp_path / "toy" / "paco", {"dataset": {"max_rejected": 0.5}, "rows_per_shard": 2}
    first = prepare.run(job(root, tmp_path / "a", "paco", **options))
    folder = tmp_path / "a" / "paco" / "train"
    names = files_of(tmp_path / "a", "**/row_categories.arrow")
    assert len(names) == 2
    assert prepare.run(job(root, tmp_path / "b", "paco", **options)) == first
    assert files_of(tmp_path / "b", "**/row_categories.arrow") == names
    for name in ("manifest.json", "row_categories.arrow", "shard-00001.json"):  # Stopped with one shard to go.
        (folder / name).unlink()
    before = identities(folder)
    assert prepare.run(job(root, tmp_path / "a", "paco", **options)) == first
    assert files_of(tmp_path / "a", "**/row_categories.arrow") == names
    after = identities(folder)
    changed = [path for path in before if after[path] != before[path]]
    assert changed == [str(folder / name) for name in ("shard-00001.arrow", "shard-00001.rows")]


def test_from_s3_to_s3_gives_the_shards_of_a_local_disk(tmp_path: Path, bucket: str) -> None:
    root = write_sa1b(tmp_path / "sa1b", train=6, val=1)
    client = boto3.Session().client("s3")
    for path in root.glob("*/*"):
        client.put_object(Bucket="bucket", Key=f"data/{path.relative_to(tmp_path)}", Body=path.read_bytes())
    local = prepare.run(job(root, tmp_path / "out"))
    values = {"datasets": {"sa1b": {"root": f"{bucket}/data/sa1b"}}, "output": f"{bucket}/out", "rows_per_shard": 4}
    remote_job = parse_config(prepare.PrepareJob, values, "test")
    remote = prepare.run(remote_job)
    assert [m.digest() for m in remote] == [m.digest() for m in local]
    split = Split(f"{bucket}/out/sa1b/train")
    split.verify()
    assert [split.record(i) for i in range(6)] == [
        Split(str(tmp_path / "out" / "sa1b" / "train")).record(i) for i in range(6)
    ]
    listed = {o["Key"]: o["LastModified"] for o in client.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]}
    assert sum(key.endswith(".arrow") for key in listed) == 3
    assert prepare.run(remote_job) == remote
    again = {o["Key"]: o["LastModified"] for o in client.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]}
    assert {k: v for k, v in again.items() if "shard-" in k} == {k: v for k, v in listed.items() if "shard-" in k}


def test_no_worker_imports_torch(tmp_path: Path) -> None:
    class LooksForTorch(Sa1b):
        def read(self, files: Any, split: str, entry: Entry) -> Read:
            assert "torch" not in sys.modules
            return super().read(files, split, entry)

    assert _prepare_train(LooksForTorch(), write_sa1b(tmp_path / "sa1b"), tmp_path / "out").num_samples == 11


def test_a_fault_of_the_code_says_which_image_met_it(tmp_path: Path) -> None:
    class Stumbles(Sa1b):
        def read(self, files: Any, split: str, entry: Entry) -> Read:
            raise KeyError("height")

    with pytest.raises(
        RuntimeError, match=r"(?m)^sa1b/train, shard-0000\d.arrow: train/sa_\d+.jpg \(0+\d\d?\): KeyError: 'height'$"
    ):
        _prepare_train(Stumbles(), write_sa1b(tmp_path / "sa1b"), tmp_path / "out")


@pytest.mark.slow
def test_a_job_joins_the_cluster_that_ray_address_names(tmp_path: Path) -> None:
    root = write_sa1b(tmp_path / "sa1b")
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "jobs.prepare", f"datasets.sa1b.root={root}", f"output={tmp_path}/out"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [f"shards and manifests in {tmp_path}/out"]), (
        done.stderr
    )
    (root / "train" / "sa_1.jpg").unlink()
    command = [*command, "redo=true"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: sa1b/train: 1 of 11 images are unusable, more than max_rejected = 0.01",
        f"  1 x missing image (e.g. 000000000001: {root}/train/sa_1.jpg)",
    ]


def test_a_killed_worker_costs_its_shard_a_second_try_and_nothing_else(tmp_path: Path) -> None:
    flag = tmp_path / "killed"

    class Named(Sa1b):
        def vocabulary(self) -> Vocabulary:
            return Vocabulary(("odd", "even"), (), (True, True))

        def read(self, files: Any, split: str, entry: Entry) -> Read:
            read = super().read(files, split, entry)
            category = 1 - int(entry.sample_id) % 2
            regions = [r._replace(kind=Kind.INSTANCE, object_category=category) for r in read.record.regions]
            return replace(read, record=replace(read.record, regions=tuple(regions)))

    class KillsItsWorkerOnce(Named):
        def read(self, files: Any, split: str, entry: Entry) -> Read:
            if entry.sample_id.endswith("6") and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(files, split, entry)

    root = write_sa1b(tmp_path / "sa1b")
    disturbed = _prepare_train(KillsItsWorkerOnce(), root, tmp_path / "disturbed")
    assert flag.exists()
    calm = _prepare_train(Named(), root, tmp_path / "calm")
    assert (disturbed.digest(), disturbed.row_categories) == (calm.digest(), calm.row_categories)
    names = Split(str(tmp_path / "disturbed")).row_categories()["objects"].to_pylist()
    assert names == [[1 - number % 2] for number in range(1, 12)]


@pytest.mark.slow
def test_an_image_that_kills_every_worker_is_left_out_and_named(tmp_path: Path) -> None:
    class Kills(Sa1b):
        def read(self, files: Any, split: str, entry: Entry) -> Read:
            if entry.sample_id.endswith("7"):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(files, split, entry)

    root = write_sa1b(tmp_path / "sa1b")
    manifest = _prepare_train(Kills(), root, tmp_path / "out", max_rejected=0.1)
    assert (manifest.num_samples, manifest.dropped_samples) == (10, {"kills its worker": 1})
    [example] = manifest.examples["kills its worker"]
    assert (example.sample_id, example.detail) == ("000000000007", f"{root}/train/sa_7.jpg")
    with pytest.raises(ValueError, match="1 of 11 images are unusable.*\n.*1 x kills its worker"):
        _prepare_train(Kills(), root, tmp_path / "strict")


def _prepare_train(source: Sa1b, root: Path, output: Path, max_rejected: float = 0.01) -> Manifest:
    task = SplitTask(
        source, existing_folder(str(root)), "train", str(output), ShardOptions(4, 0, 92), "1", max_rejected
    )
    return prepare_splits([task], 10.0)[0]
