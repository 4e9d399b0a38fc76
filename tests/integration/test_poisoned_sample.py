"""A poisoned sample ends a run of two workers under ZeRO, by name, and goes on without it as if it had never been in.

Run as a module this file is one worker of a torch.distributed group: `python -m tests.integration.test_poisoned_sample
<shards> <folder>`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from semsam.training import train as train_module
from semsam.training.attempt import RunFolder
from semsam.training.engine import Worker
from semsam.training.faults import TrainingFault
from semsam.training.train import train
from semsam.training.train_log import read_log
from tests.integration.training_worker import recipe_for
from tests.integration.workers import end_worker, run_workers
from tests.painted_shards import write_painted_shards
from tests.poison import key_at, poisoned_by

STEPS, POISONED = 4, 2  # An epoch, so that no sample comes twice.
SETTINGS = {"steps": STEPS, "checkpoint_every": 1, "keep_last": 9}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_poisoned_sample_ends_all_workers_by_name_and_is_left_out(tmp_path: Path) -> None:
    shards = str(write_painted_shards(tmp_path / "shards"))
    run_workers("tests.integration.test_poisoned_sample", 2, tmp_path, (shards, str(tmp_path)))
    key = key_at(recipe_for(shards, **SETTINGS), POISONED)
    for rank in (0, 1):
        for stage, fault in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert fault.startswith(f"step {POISONED}: the loss is not finite; nothing was updated: loss of {key}\n")
            assert f"add 'training.skip_samples=[{key}]' to the same command" in fault, stage
    for stage in (2, 3):
        logs = [list(read_log(RunFolder(tmp_path / f"{name}-{stage}"))) for name in ("run", "from-the-start")]
        losses = [{entry["step"]: entry["loss"] for entry in log} for log in logs]
        assert list(losses[0]) == list(range(STEPS))
        assert losses[0] == losses[1]


def main() -> None:
    """Train until the fault, go on without the sample, and train without it from the start, under ZeRO 2 and 3."""
    root, folder = sys.argv[1:]
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    worker, faults = Worker(rank, world_size, torch.device("cpu")), {}
    for stage in (2, 3):
        recipe = recipe_for(root, zero_stage=stage, **SETTINGS)
        train_module.make_step = poisoned_by(recipe, POISONED)  # type: ignore[assignment]
        try:
            train(recipe, {}, RunFolder(f"{folder}/run-{stage}"), worker, "x", None)
        except TrainingFault as fault:
            faults[stage] = str(fault)
        key = key_at(recipe, POISONED)
        without = recipe_for(root, zero_stage=stage, skip_samples=[key], **SETTINGS)
        for name in ("run", "from-the-start"):
            train(without, {}, RunFolder(f"{folder}/{name}-{stage}"), worker, "x", None)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(faults))
    end_worker()


if __name__ == "__main__":
    main()
