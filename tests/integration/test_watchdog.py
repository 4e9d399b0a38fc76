"""A step that hangs is said, with where every worker is and who does not answer, and ended.

Run as a module this file is one worker of a torch.distributed group: `python -m tests.integration.test_watchdog
<rank that is stopped>`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from semsam.training.engine import Worker
from semsam.training.watchdog import Watchdog
from tests.integration.workers import ROOT, free_port


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("world_size", "stopped"), [(3, 1), (2, 0)])
def test_a_stopped_worker_is_named_and_the_others_end(tmp_path: Path, world_size: int, stopped: int) -> None:
    shared = os.environ | {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command, workers = [sys.executable, "-m", "tests.integration.test_watchdog", str(stopped)], []
    for rank in range(world_size):
        with (tmp_path / f"{rank}.txt").open("wb") as log:
            workers.append(subprocess.Popen(command, cwd=ROOT, env=shared | {"RANK": str(rank)}, stdout=log))
    try:
        for rank in set(range(world_size)) - {stopped}:
            assert workers[rank].wait(timeout=120) == 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    said = "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(world_size))
    assert re.search(r"^step 2 is not done after \d s \(run.stall_warning_s\); it is ended in \d s$", said, re.M)
    assert re.search(r"^step 2 is ended after \d+ s \(run.stall_timeout_s\), to begin again from the last", said, re.M)
    assert said.count(f"no answer in 4 s from worker {stopped}: ") == 2
    assert said.count(f"  worker {'0, 2' if world_size == 3 else '1'} is at\n") == 2
    assert "dist.all_reduce(values)" in said


def main() -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    worker = Worker(rank, world_size, torch.device("cpu"))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    with Watchdog(worker, 2.0, 6.0) as watchdog:
        for step in range(3):
            watchdog(step)
            if step == 2 and rank == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGSTOP)
            worker.sum(torch.ones(1))


if __name__ == "__main__":
    main()
