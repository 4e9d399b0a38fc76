"""What saving and going on ask of an S3 server, and what is left when a worker is killed while it uploads.

Run as a module this file is one worker of a torch.distributed group that trains (`python -m
tests.integration.test_checkpoint_requests train <shards> <run> <engine>`), or a process that saves two checkpoints
(`... save <run>`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import (
    RunState,
    checkpoint_folder,
    checkpoint_steps,
    latest_checkpoint,
    load_state,
    load_weights,
    verify_checkpoint,
)
from semsam.training.checkpoint_writer import CheckpointWriter, Whole
from semsam.training.engine import Worker
from semsam.training.partitions import Partition, quantities
from semsam.training.train import train
from semsam.training.train_log import read_log
from tests.integration.training_worker import recipe_for
from tests.integration.workers import ROOT, end_worker, run_workers
from tests.painted_shards import write_painted_shards
from tests.s3_server import CountingProxy, S3Server

MODULE = "tests.integration.test_checkpoint_requests"
# (workers, engine) that go on from what two workers under ZeRO 2 have saved.
RESUMED = [(1, "plain"), (2, "zero2"), (3, "plain"), (3, "zero3")]
SIZE = 3 * 2**20  # Elements of a parameter: its piece of a quantity is uploaded in parts.


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[CountingProxy]:
    proxy = CountingProxy(s3.port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def saved(proxy: CountingProxy, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Folder]:
    """Shards, and a run on them to whose first checkpoint of two all others are brought back."""
    folder = tmp_path_factory.mktemp("saved")
    write_painted_shards(folder / "shards")
    run = Folder(f"{bucket}/run")
    run_workers(MODULE, 2, folder, ("train", str(folder / "shards"), run.path, "zero2"))
    return folder, run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("world_size", "engine"), RESUMED)
def test_each_byte_has_one_reader_however_many_go_on(
    proxy: CountingProxy, saved: tuple[Path, Folder], world_size: int, engine: str
) -> None:
    folder, run = saved
    expected = [entry["loss"] for entry in read_log(run)]
    weights = load_weights(checkpoint_folder(run, 2))
    for name in checkpoint_folder(run, 2).names():
        checkpoint_folder(run, 2).remove(name)
    first = checkpoint_folder(run, 1)
    assert latest_checkpoint(run).path == first.path  # type: ignore[union-attr]
    pieces = [name for name in load_state(first).files if name not in ("model.safetensors", "config.yaml")]
    proxy.take()
    run_workers(MODULE, world_size, folder, ("train", str(folder / "shards"), run.path, engine))
    seen = Counter(proxy.take())
    asked = {name: seen[f"GET /bucket/run/checkpoint-1/{name}"] for name in (*pieces, "model.safetensors")}
    assert asked == {"model.safetensors": 1} | dict.fromkeys(pieces, 2)  # A piece's header, and all the rest.
    # And of the small files nothing that grows with the workers.
    others = {one: count for one, count in seen.items() if "/checkpoint-1/" in one and ".safetensors" not in one}
    assert sum(others.values()) <= 10
    assert [entry["loss"] for entry in read_log(run)] == pytest.approx(expected, rel=1e-5)
    found = load_weights(checkpoint_folder(run, 2))
    assert all((found[name] - weight).abs().max() <= 1e-5 for name, weight in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 3, 7, 12])
def test_a_worker_killed_in_an_upload_leaves_the_checkpoint_before(
    proxy: CountingProxy, bucket: str, number: int
) -> None:
    run, reached, go_on = Folder(f"{bucket}/killed-{number}"), threading.Event(), threading.Event()
    uploads: list[str] = []

    def hold(method: str, path: str) -> None:
        if method in ("PUT", "POST") and f"killed-{number}/checkpoint-2/" in path:
            uploads.append(path)
            if len(uploads) > number:
                reached.set()
                go_on.wait(60)

    proxy.refuse = hold  # type: ignore[assignment]
    try:
        process = subprocess.Popen([sys.executable, "-m", MODULE, "save", run.path], cwd=ROOT)
        assert reached.wait(120)
        process.kill()
        process.wait()
    finally:
        go_on.set()
        proxy.refuse = lambda method, path: None
    assert checkpoint_steps(run) == [1]
    latest = latest_checkpoint(run)
    assert latest is not None
    assert verify_checkpoint(latest).startswith("step 1 ")
    assert all(torch.equal(value, torch.ones(SIZE)) for value in load_weights(latest).values())


def save_twice(run: str) -> None:
    """Save two checkpoints of tensors that are longer than one part of an upload."""
    names = ("a", "b")
    partitions = [Partition(name, 0, {one: torch.zeros(SIZE) for one in quantities(False)}) for name in names]
    whole = Whole("", dict.fromkeys(names, torch.Size([SIZE])), {})
    writer = CheckpointWriter(RunFolder(run), 0, 1, 9, False, whole)
    for step in (1, 2):
        for one in partitions:
            for values in one.values.values():
                values.fill_(step)
        writer.save(partitions, RunState(step, 0, 1, 0, 0, 0, "", {}, 0, {}))
    writer.finish()


def train_as_worker(shards: str, run: str, engine: str) -> None:
    """Train two steps, or what is left of them, with a checkpoint after each."""
    stage = None if engine == "plain" else int(engine.removeprefix("zero"))
    recipe = recipe_for(shards, steps=2, checkpoint_every=1, keep_every=1, keep_last=1, zero_stage=stage)
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    train(recipe, {}, RunFolder(run), Worker(rank, world_size, torch.device("cpu")), "test", None)
    end_worker()


if __name__ == "__main__":
    save_twice(*sys.argv[2:]) if sys.argv[1] == "save" else train_as_worker(*sys.argv[2:])
