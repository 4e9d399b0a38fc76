"""A cluster of two machines with a CPU each, and an S3 server: what can be killed, and comes back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from tests.chaos.running import Running, start
from tests.ray_nodes import RayNodes, of_session
from tests.s3_server import S3Server

# What is killed: a process that does a job's work, a machine that has such, the job's own process, the cluster's head
# with that process, as it is where a job was submitted, the S3 server, and all of a job that has its own cluster.
KINDS = ("worker", "node", "driver", "head", "s3", "job")
# After these nothing needs to be started again by hand.
SURVIVED = ("worker", "node", "s3")
_NUM_NODES = 2
# As Ray calls the processes: an actor of Ray Train or Ray Data, a task of Ray Data.
_AT_WORK = {"train": "ray::RayTrainWorker", "prepare": r"ray::(Map|FlatMap)", "": "ray::MapWorker"}


class Cluster:
    """Starts with the first job that needs it; what of it was killed is there again for the next one.

    Its processes find the server by the environment of this one (see `s3_server`).
    """

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self._nodes: RayNodes | None = None
        self._machines: list[subprocess.Popen[bytes]] = []
        self._orphans: list[RayNodes] = []  # Clusters without a head, whose machines do not yet know.

    def start(self, command: list[str], kind: str) -> Running:
        """Begin a job there, or, if all of it is to be killed, on a cluster of its own."""
        if kind == "job":
            return start(command)
        return start(command, self._whole().environment)

    def aim(self, kind: str, job: str, running: Running, rng: np.random.Generator) -> Callable[[], None] | None:
        """What kills it, at once; None while nothing of that kind is there."""
        if kind == "s3":
            return self.server.stop
        found = self._victims(kind, job, running, rng)
        return partial(_end, found) if found else None

    def restore(self, kind: str, rng: np.random.Generator) -> None:
        """After a kill, wait some seconds and start again what a cloud would, or a person who looks after S3."""
        time.sleep(float(rng.uniform(2, 8)))
        if kind == "s3":
            self.server.start()
        elif kind == "node":
            assert self._nodes is not None
            self._machines = [one for one in self._machines if of_session(one.pid)]
            self._machines += [self._nodes.add() for _ in range(_NUM_NODES - len(self._machines))]
        elif kind == "head":
            assert self._nodes is not None
            self._orphans.append(self._nodes)
            self._nodes = None

    def tidy(self) -> None:
        """End what is left of clusters without a head."""
        while self._orphans:
            self._orphans.pop().__exit__(None, None, None)

    def close(self) -> None:
        """End everything; another job would start it anew."""
        self.tidy()
        if self._nodes is not None:
            self._nodes.__exit__(None, None, None)
            self._nodes = None

    def _victims(self, kind: str, job: str, running: Running, rng: np.random.Generator) -> list[int]:
        if kind == "job":
            return running.processes()
        if kind == "driver":
            return [running.process.pid]
        assert self._nodes is not None
        if kind == "head":
            return [running.process.pid, *of_session(self._nodes.head.pid)]
        name = re.compile(_AT_WORK.get(job, _AT_WORK[""]))
        sessions = [of_session(machine.pid) for machine in self._machines]
        at_work = [(pid, session) for session in sessions for pid in session if name.match(_title(pid))]
        if not at_work:
            return []
        pid, session = at_work[int(rng.integers(len(at_work)))]
        return [pid] if kind == "worker" else session

    def _whole(self) -> RayNodes:
        """The cluster with all its machines."""
        if self._nodes is None:
            self._nodes = RayNodes().__enter__()
            self._machines = [self._nodes.add() for _ in range(_NUM_NODES)]
        self._nodes.wait_for(1 + _NUM_NODES)
        return self._nodes


def _end(processes: list[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
