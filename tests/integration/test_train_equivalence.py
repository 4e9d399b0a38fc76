"""The same global batch gives the same losses and gradients however it is spread over workers, stages and steps."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.painted_shards import write_painted_shards

ROOT = Path(__file__).parents[2]
MODES = {1: ("plain", "zero2", "zero3"), 2: ("plain", "zero0", "zero1", "zero2", "zero3"), 3: ("zero2x2", "zero3")}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_painted_shards(folder / "shards")
    for world_size, modes in MODES.items():
        (folder / str(world_size)).mkdir()
        _run_workers(world_size, folder / "shards", folder / str(world_size), modes)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("world_size", "mode"), [(n, mode) for n, modes in MODES.items() for mode in modes])
def test_every_mode_computes_what_plain_pytorch_does(results: Path, world_size: int, mode: str) -> None:
    expected, found = (
        json.loads((results / f"{name}.json").read_text()) for name in ("1/plain", f"{world_size}/{mode}")
    )
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-6)
    assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-5)
    assert found[19]["loss"] == pytest.approx(expected[19]["loss"], rel=1e-4)
    gradients, others = np.load(results / "1/plain.npz"), np.load(results / f"{world_size}/{mode}.npz")
    assert set(gradients) == set(others)
    whole = np.concatenate([gradients[name].ravel() for name in gradients])
    difference = np.concatenate([(gradients[name] - others[name]).ravel() for name in gradients])
    assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(whole)


@pytest.mark.slow
def test_the_loss_falls(results: Path) -> None:
    losses = [step["loss"] for step in json.loads((results / "1/plain.json").read_text())]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


def _run_workers(world_size: int, shards: Path, output: Path, modes: tuple[str, ...]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.integration.training_worker", str(shards), str(output), *modes]
    workers = []
    for rank in range(world_size):
        with (output / f"worker-{rank}.log").open("wb") as log:
            environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            workers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        for rank, worker in enumerate(workers):
            assert worker.wait(timeout=600) == 0, (output / f"worker-{rank}.log").read_text()[-3000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
