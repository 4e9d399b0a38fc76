"""A node provider for Ray's autoscaler whose machines are `ray start --block` processes on this one.

The autoscaler runs in the head's monitor, so this is made there; what a test needs to know of the machines lies in
files: `<root>/<machine>/pid`, `.../kind`, `.../said`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

_END_WITHIN = 20.0  # Seconds for a machine to drain and end.


class LocalNodes(NodeProvider):  # type: ignore[misc]
    """Starts and ends processes; safe from several threads, as the autoscaler demands."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._root = Path(provider_config["root"])
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # The monitor has the head's environment.  A head that is not listed would count as gone.
        head = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: os.environ["RAY_NODE_TYPE_NAME"]}
        self._tags: dict[str, dict[str, str]] = {os.environ["RAY_CLOUD_INSTANCE_ID"]: head}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            for node, process in list(self._processes.items()):
                if process.poll() is not None:
                    del self._processes[node], self._tags[node]
            return [node for node, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags.get(node_id, {})

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            node = f"n{uuid4().hex[:6]}"
            with self._lock:
                self._processes[node] = self._start(node, tags[TAG_RAY_USER_NODE_TYPE], dict(resources), labels)
                self._tags[node] = dict(tags)

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            process = self._processes.pop(node_id, None)
            if process is not None:
                del self._tags[node_id]
        if process is not None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_WITHIN)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(
        self, node: str, kind: str, resources: dict[str, float], labels: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        folder = self._root / node
        folder.mkdir()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += ["--address", self.provider_config["gcs_address"], "--temp-dir", str(folder)]
        command += ["--num-cpus", f"{resources.pop('CPU', 0):g}", "--num-gpus", f"{resources.pop('GPU', 0):g}"]
        command += ["--object-store-memory", f"{resources.pop('object_store_memory', 200 * 2**20):.0f}"]
        command += ["--resources", json.dumps(resources)]
        command += ["--labels", ",".join(f"{name}={value}" for name, value in labels.items())]
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        environment = os.environ | {"RAY_CLOUD_INSTANCE_ID": node, "RAY_NODE_TYPE_NAME": kind}
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        (folder / "kind").write_text(kind)
        (folder / "pid").write_text(str(process.pid))
        return process
