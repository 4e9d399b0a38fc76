"""What no second try would mend on one worker ends both of them, under ZeRO 3, with the reason.

Run as a module this file is one worker of a torch.distributed group: `python -m
tests.integration.test_workers_end_together <shards> <folder>`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from semsam.storage import Folder
from semsam.training import train as train_module
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import checkpoint_steps
from semsam.training.engine import Worker
from semsam.training.faults import TrainingFault
from semsam.training.train import make_step, train
from semsam.training.train_log import read_log
from tests.integration.training_worker import recipe_for
from tests.integration.workers import end_worker, run_workers
from tests.painted_shards import write_painted_shards
from tests.poison import key_at, poisoned_by

STEPS, POISONED = 3, 1  # Less than an epoch, so that no sample comes twice.
SETTINGS = {"steps": STEPS, "checkpoint_every": 1, "keep_last": 9, "zero_stage": 3}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_painted_shards(folder / "shards")
    run_workers("tests.integration.test_workers_end_together", 2, folder, (str(folder / "shards"), str(folder)))
    return folder


def faults_of(results: Path, rank: int) -> dict[str, str]:
    return json.loads((results / f"{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_poisoned_sample_ends_all_workers_by_name_and_is_left_out(results: Path) -> None:
    key = key_at(recipe_for(str(results / "shards"), **SETTINGS), POISONED)
    for rank in (0, 1):
        fault = faults_of(results, rank)["poisoned"]
        assert fault.startswith(f"step {POISONED}: the loss is not finite; nothing was updated: loss of {key}\n")
        assert f"add 'training.skip_samples=[{key}]' to the same command" in fault
    logs = [read_log(Folder(results / name)) for name in ("run", "from-the-start")]
    losses = [{entry["step"]: entry["loss"] for entry in log} for log in logs]
    assert list(losses[0]) == list(range(STEPS))
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_of_one_worker_ends_all_with_its_path(results: Path) -> None:
    for rank in (0, 1):
        fault, seconds = faults_of(results, rank)["full"], float(faults_of(results, rank)["seconds"])
        assert re.fullmatch(rf"{results}/full/checkpoint-\d/weight-00001.safetensors: File too large", fault)
        assert seconds < 30
    assert STEPS not in checkpoint_steps(Folder(results / "full"))


def main() -> None:
    """Train until the fault, go on without the sample, train without it from the start, and with a disk that fills."""
    root, folder = sys.argv[1:]
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    worker, faults = Worker(rank, world_size, torch.device("cpu")), {}
    recipe = recipe_for(root, **SETTINGS)
    train_module.make_step = poisoned_by(recipe, POISONED)  # type: ignore[assignment]
    try:
        train(recipe, {}, RunFolder(f"{folder}/run"), worker, "x", None)
    except TrainingFault as fault:
        faults["poisoned"] = str(fault)
    without = recipe_for(root, skip_samples=[key_at(recipe, POISONED)], **SETTINGS)
    for name in ("run", "from-the-start"):
        train(without, {}, RunFolder(f"{folder}/{name}"), worker, "x", None)

    def fill(step: int) -> None:
        if step == 1 and rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    train_module.make_step = make_step
    started = time.monotonic()
    try:
        train(recipe, {}, RunFolder(f"{folder}/full"), worker, "x", None, fill)
    except TrainingFault as fault:
        faults |= {"full": str(fault), "seconds": str(time.monotonic() - started)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(faults))
    end_worker()


if __name__ == "__main__":
    main()
