"""Starts and ends the processes of a torch.distributed group."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def run_workers(module: str, world_size: int, output: Path, arguments: Sequence[str]) -> None:
    """Run `python -m <module> <arguments>` as `world_size` workers; all must succeed.  Their logs go to `output`."""
    shared = os.environ | {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", module, *arguments]
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


def end_worker() -> NoReturn:
    """Leave the group and end this process with 0, without taking the interpreter down.

    A worker that had done all of its work has been seen to abort on its way out ("terminate called without an active
    exception", once in many runs of all engines): a thread of gloo's, it seems, that outlives its group.
    """
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
