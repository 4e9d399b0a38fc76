"""How a job starts a cluster where the machine does not let it at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import ray

from jobs import cluster


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup."),
        ValueError("Failed to bind to 127.0.0.1:44459 because it's already occupied."),
    ],
    ids=["slow", "occupied"],
)
def test_a_start_that_failed_leaves_no_process_and_no_port_to_the_next(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    ports: list[int] = []

    def init(dashboard_port: int, **_: Any) -> None:
        ports.append(dashboard_port)
        if len(ports) < 3:
            started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
            raise error

    monkeypatch.setattr(ray, "init", init)
    others = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        cluster._start(1, dashboard=True)
        assert len(set(ports)) == 3
        assert [one.poll() is not None for one in started] == [True, True]
        assert others.poll() is None
    finally:
        others.kill()
        others.wait()


def test_any_other_failure_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="^no such thing$"):
        cluster._start(1, dashboard=False)
