"""The same global batch gives the same losses and gradients however it is spread over workers, stages and steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.integration.workers import run_workers
from tests.painted_shards import write_painted_shards

MODES = {
    1: ("plain", "zero2", "zero3", "plain-sa1b", "plain-frozen"),
    2: ("plain", "zero0", "zero1", "zero2", "zero3", "zero3-sa1b", "zero3-frozen"),
    3: ("zero2x2", "zero3"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_painted_shards(folder / "shards")
    for world_size, modes in MODES.items():
        (folder / str(world_size)).mkdir()
        output = folder / str(world_size)
        run_workers(
            "tests.integration.training_worker", world_size, output, (str(folder / "shards"), str(output), *modes)
        )
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("world_size", "mode"), [(n, mode) for n, modes in MODES.items() for mode in modes])
def test_every_mode_computes_what_plain_pytorch_does(results: Path, world_size: int, mode: str) -> None:
    plain = "-".join(["1/plain", *mode.split("-")[1:]])
    expected, found = (json.loads((results / f"{name}.json").read_text()) for name in (plain, f"{world_size}/{mode}"))
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-6)
    assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-5)
    assert found[19]["loss"] == pytest.approx(expected[19]["loss"], rel=1e-4)
    gradients, others = np.load(results / f"{plain}.npz"), np.load(results / f"{world_size}/{mode}.npz")
    assert set(gradients) == set(others)
    whole = np.concatenate([gradients[name].ravel() for name in gradients])
    difference = np.concatenate([(gradients[name] - others[name]).ravel() for name in gradients])
    assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(whole)


@pytest.mark.slow
def test_the_loss_falls(results: Path) -> None:
    losses = [step["loss"] for step in json.loads((results / "1/plain.json").read_text())]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
