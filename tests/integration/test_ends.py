"""A job that is told to end does so in one line, whatever handlers Ray has put in place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOB = """
import sys, time
import ray
from jobs.cluster import connect, main_exit

@ray.remote
def work():
    time.sleep(100)

def main(arguments):
    with connect(num_cpus=1):
        print("started", flush=True)
        ray.get(work.remote())

main_exit(main, [])
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "line", "status"),
    [(signal.SIGTERM, "ended by SIGTERM", 143), (signal.SIGINT, "interrupted", 130)],
)
def test_a_signal_ends_a_job_in_one_line_and_its_cluster_with_it(
    tmp_path: Path, number: signal.Signals, line: str, status: int
) -> None:
    output = tmp_path / "output.txt"
    with output.open("wb") as file:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # A shell may ignore it.
        )
    try:
        while "started" not in output.read_text() and job.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)
        job.send_signal(number)
        assert job.wait(timeout=60) == status
        assert [one for one in output.read_text().splitlines() if one and "Ray did not start" not in one] == [
            "started",
            line,
        ]
        assert not _processes(job.pid)
    finally:
        job.kill()
        for pid in _processes(job.pid):
            os.kill(pid, signal.SIGKILL)


def _processes(session: int) -> list[int]:
    """The living processes of a session."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [int(pid) for pid, state in map(str.split, listed.stdout.splitlines()) if not state.startswith("Z")]
