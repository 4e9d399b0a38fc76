"""A Ray cluster on this machine whose nodes are `ray start --block` processes, as they are on real machines.

Each node has a session of its own, so that one can be killed as a machine would vanish, or told by SIGTERM that it will
be taken away.  Nodes are added by hand or, where the cluster is given kinds of them, by Ray's autoscaler.  Tokens are
on, as on a cluster that others can reach.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.free_ports import free_ports

ROOT = Path(__file__).parents[1]
_WITHIN = 120.0  # Seconds for a node to be there, on a machine that is busy.
_START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]


class RayNodes:
    """A head without CPUs for work, and its nodes; a context manager, which ends all of them.

    `environment` is what a process needs to join it, `dashboard` where jobs are submitted.  `kinds` are those of nodes
    that the autoscaler may add, `{"cpu": {"CPU": 1, "max": 2}}`; a node that has been idle for six seconds goes again.
    `drain` is how many seconds a node that is told to end waits until its work is gone.
    """

    def __init__(self, kinds: Mapping[str, Mapping[str, float]] | None = None, drain: float = 10.0) -> None:
        # Short: the paths of sockets in it may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._gcs, self._port, self._client, self._agent, self._metrics = free_ports(5)
        self.address, self.dashboard = f"127.0.0.1:{self._gcs}", f"http://127.0.0.1:{self._port}"
        self._kinds = kinds or {}
        self.token = secrets.token_hex(32)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._shared = inherited | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            # A dead machine is noticed within seconds, not half a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain),
        }
        self.environment = self._shared | {"RAY_ADDRESS": self.address}
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._ended: set[int] = set()  # Nodes that were ended, or that are started anew.

    def __enter__(self) -> Self:
        try:
            self._start_head()
            self.wait_for(1)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in [node.pid for node in self._nodes] + list(self.added().values()):
            kill_session(pid)
        for node in self._nodes:
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cpus: int = 1, gpus: int = 0) -> subprocess.Popen[bytes]:
        """A further node, which joins within seconds."""
        resources = ["--num-cpus", str(cpus), "--num-gpus", str(gpus)]
        ports = ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        return self._start(["--address", self.address, *resources, *ports], {})

    def kill(self, pid: int) -> None:
        """End all processes of a node at once, as when a machine loses power."""
        self._ended.add(pid)
        kill_session(pid)

    @property
    def head(self) -> subprocess.Popen[bytes]:
        """The first of its processes."""
        return self._nodes[0]

    def tell(self, node: subprocess.Popen[bytes]) -> None:
        """Tell a node that it will be taken away."""
        self._ended.add(node.pid)
        node.terminate()

    def added(self) -> dict[str, int]:
        """The nodes that the autoscaler has started and that live, with their processes."""
        found = {path.parent.name: int(path.read_text() or 0) for path in self.folder.glob("n*/pid")}
        return {name: pid for name, pid in found.items() if pid and _session_lives(pid)}

    def processes(self, name: str) -> list[int]:
        """The living processes of all nodes that Ray calls by a name, `RayTrainWorker`."""
        sessions = [node.pid for node in self._nodes] + list(self.added().values())
        return [pid for session in sessions for pid in of_session(session) if _command(pid).startswith(f"ray::{name}")]

    def kind_of(self, node: str) -> str:
        """The kind of a node that the autoscaler has started."""
        return (self.folder / node / "kind").read_text()

    def alive(self) -> int:
        """How many nodes the head counts as alive, itself included; none before it listens."""
        request = urllib.request.Request(f"{self.dashboard}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                nodes = json.load(answer)["data"]["summary"]
        except (OSError, LookupError, urllib.error.URLError):
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def wait_for(self, count: int, within: float = _WITHIN) -> None:
        """Return when that many nodes are alive, the head included.

        On a machine that is very busy a node may end before it has joined; it is started again, as a cloud's would be.
        """
        deadline = time.monotonic() + within
        while (found := self.alive()) != count:
            assert time.monotonic() < deadline, f"{found} nodes, not {count}; {self._said()}"
            for node in [one for one in self._nodes[1:] if found < count and one.poll() not in (None, 0)]:
                if node.pid not in self._ended:
                    self._ended.add(node.pid)
                    self._start(node.args[node.args.index("--address") :], {})  # type: ignore[union-attr, index]
            time.sleep(0.3)

    def _start_head(self) -> None:
        arguments = ["--head", "--port", str(self._gcs), "--num-cpus", "0", "--node-ip-address", "127.0.0.1"]
        arguments += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self._port)]
        # Its own, for other heads may be on this machine.
        arguments += ["--ray-client-server-port", str(self._client), "--dashboard-agent-listen-port", str(self._agent)]
        environment = {}
        if self._kinds:
            config = self.folder / "autoscaling.yaml"
            config.write_text(yaml.safe_dump(self._autoscaling()))
            arguments += ["--autoscaling-config", str(config)]
            environment = {
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": "head",  # Without one nothing ever scales.
                "RAY_NODE_TYPE_NAME": "head",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "AUTOSCALER_METRIC_PORT": str(self._metrics),
            }
        self._start(arguments, environment)

    def _autoscaling(self) -> dict[str, Any]:
        kinds = {
            name: {
                "resources": {resource: amount for resource, amount in kind.items() if resource != "max"},
                "node_config": {},
                "min_workers": 0,
                "max_workers": int(kind["max"]),
            }
            for name, kind in self._kinds.items()
        }
        provider = {"type": "external", "module": "tests.local_nodes.LocalNodes", "disable_node_updaters": True}
        return {
            "cluster_name": "local",
            "max_workers": sum(kind["max_workers"] for kind in kinds.values()),
            "idle_timeout_minutes": 0.1,
            "upscaling_speed": 2.0,
            "provider": provider | {"gcs_address": self.address, "root": str(self.folder)},
            "head_node_type": "head",
            "available_node_types": kinds | {"head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}},
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "cluster_synced_files": [],
        }

    def _start(self, arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        folder = self.folder / str(len(self._nodes))
        folder.mkdir()
        with (folder / "said").open("wb") as said:
            node = subprocess.Popen(
                [*_START, "--temp-dir", str(folder), "--object-store-memory", str(200 * 2**20), *arguments],
                env=self._shared | environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self._nodes.append(node)
        return node

    def _said(self) -> str:
        """The ends of what all nodes have said."""
        return "\n".join(f"{path}: {path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*/said"))


def kill_session(session: int) -> None:
    """End the processes of a session at once."""
    for process in of_session(session):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _session_lives(session: int) -> bool:
    return bool(of_session(session))


def of_session(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:  # It has ended meanwhile.
        return ""
