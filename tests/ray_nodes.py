"""A Ray cluster on this machine whose nodes are `ray start --block` processes, as they are on real machines.

Each node has a process group of its own, so that one can be killed as a machine would vanish, or told by SIGTERM that
it will be taken away.  Tokens are on, as on a cluster that others can reach.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[1]
_WITHIN = 90.0  # Seconds for a head to listen.


class RayNodes:
    """A head without CPUs for work, and the nodes that are added to it; a context manager, which ends all of them.

    `environment` is what jobs need to find it, `dashboard` where they are submitted.
    """

    def __init__(self, drain: float = 10.0, head: Mapping[str, str] | None = None) -> None:
        # Short: the paths of sockets in it may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._gcs, dashboard = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{self._gcs}", f"http://127.0.0.1:{dashboard}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        shared = {
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            # A dead machine is noticed within seconds, not half a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain),
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = inherited | token | shared | {"RAY_ADDRESS": self.address}
        self._of_nodes = inherited | token | shared
        self._dashboard_port = dashboard
        self._head_environment = dict(head or {})
        self._nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._start(
                ["--head", "--port", str(self._gcs), "--num-cpus", "0", "--node-ip-address", "127.0.0.1"]
                + ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self._dashboard_port)],
                self._head_environment,
            )
            deadline = time.monotonic() + _WITHIN
            for port in (self._gcs, self._dashboard_port):
                while not _listens(port):
                    assert time.monotonic() < deadline, self.log(0)
                    time.sleep(0.2)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self._nodes):
            self.kill(node)
        os.environ.get("KEEP") or shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cpus: int = 1, gpus: int = 0) -> subprocess.Popen[bytes]:
        """A further node, which joins within seconds."""
        return self._start(["--address", self.address, "--num-cpus", str(cpus), "--num-gpus", str(gpus)], {})

    def wait_for(self, count: int) -> None:
        """Return when that many nodes are alive, the head included."""
        deadline = time.monotonic() + _WITHIN
        while (found := self.alive()) != count:
            assert time.monotonic() < deadline, f"{found} nodes, not {count}: {self.log(len(self._nodes) - 1)}"
            time.sleep(0.3)

    def alive(self) -> int:
        """How many nodes the head counts as alive, itself included."""
        request = urllib.request.Request(f"{self.dashboard}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            nodes = json.load(answer)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End all processes of a node at once, as when a machine loses power; one that is gone already is left."""
        for process in _of_session(node.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        node.wait()

    def log(self, number: int) -> str:
        """What a node has said; the head's number is 0."""
        return (self.folder / str(number) / "said").read_text(errors="replace")[-3000:]

    def _start(self, arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        folder = self.folder / str(len(self._nodes))
        folder.mkdir()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--temp-dir", str(folder)]
        command += ["--object-store-memory", str(200 * 2**20), "--disable-usage-stats"]
        if "--head" not in arguments:
            command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        with (folder / "said").open("wb") as said:
            node = subprocess.Popen(
                [*command, *arguments],
                env=self._of_nodes | environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self._nodes.append(node)
        return node


def free_port() -> int:
    """A port that nobody listens on; below those that Ray's own workers take."""
    for port in range(7000 + secrets.randbelow(2000), 10000):
        if not _listens(port):
            return port
    raise RuntimeError("no free port")


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _of_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                found.append(int(entry.name))
    return found
