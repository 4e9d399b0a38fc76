"""A head that was started by hand, with a token: whom it lets in, what others are told, and what Prometheus sees."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.cluster import ROOT
from jobs.gauges import NAMES
from tests.free_ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TOKEN = "0123456789abcdef0123456789abcdef"
JOIN = """
import sys
import ray
from jobs.cluster import connect, main_exit
ray.__version__ = sys.argv[1] or ray.__version__
def main(arguments):
    with connect():
        print("joined")
main_exit(main, [])
"""
GAUGES = """
import sys, time
import ray
from jobs.cluster import connect
from jobs.gauges import Gauges
from semsam.storage import Folder
@ray.remote(num_cpus=0)
def train():
    with Gauges(Folder("/nowhere"), "toy", 8) as gauges:
        gauges(0)
        time.sleep(0.5)
        gauges(1)
        gauges.record({"loss": 1.5, "data_wait": 0.1, "seconds": 0.5})
        time.sleep(60)
with connect():
    ray.get(train.remote())
"""


@dataclass(frozen=True)
class Head:
    """Where the head listens."""

    port: int
    dashboard: int
    client: int
    metrics: int

    def environment(self, address: str, **variables: str) -> dict[str, str]:
        """That of a process of somebody who knows only what is given."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return known | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address} | variables


def processes_of(session: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def wait_until(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def answer(url: str, token: str | None = None) -> tuple[int, str]:
    """Status and text of a page; 0 where nobody answers."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    ports = Head(*free_ports(4))
    temporary = Path("/tmp") / f"head-{ports.port}"  # Short: sockets lie in it.
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1"),
        *("--node-ip-address=127.0.0.1", f"--port={ports.port}", f"--dashboard-port={ports.dashboard}"),
        *(f"--ray-client-server-port={ports.client}", f"--metrics-export-port={ports.metrics}"),
        *(f"--temp-dir={temporary}", "--disable-usage-stats"),
    ]
    environment = ports.environment("", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    environment |= {"RAY_metrics_report_interval_ms": "1000", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    del environment["RAY_ADDRESS"]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_until(lambda: answer(f"http://127.0.0.1:{ports.dashboard}/api/version", TOKEN)[0] == 200, 120)
        yield ports
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for pid in processes_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.parametrize(
    ("variables", "version", "said"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, "", "joined"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 32}, "", "error: RAY_ADDRESS: .* wants another token; put"),
        ({"RAY_AUTH_MODE": "disabled"}, "", "error: RAY_ADDRESS: .* wants another token; put the cluster's into"),
        ({"RAY_AUTH_MODE": "token", "HOME": "/nowhere"}, "", "error: RAY_AUTH_MODE=token, and there is no token; put"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
            "2.1.0",
            r"error: RAY_ADDRESS: the cluster at .* runs Ray 2\.\d+\.\d+ on Python 3\.\d+\.\d+, and this process Ray "
            r"2\.1\.0 on Python 3\.\d+\.\d+: take",
        ),
    ],
)
def test_a_head_lets_in_who_has_its_token_and_versions_and_tells_the_others_why_not(
    head: Head, variables: dict[str, str], version: str, said: str
) -> None:
    environment = head.environment(f"127.0.0.1:{head.port}", **variables)
    job = subprocess.run(
        [sys.executable, "-c", JOIN, version], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    [line] = (job.stdout + job.stderr).splitlines()
    assert re.match(said, line)
    assert job.returncode == (0 if said == "joined" else 1)


def test_a_client_of_another_version_is_told_both(head: Head) -> None:
    environment = head.environment(f"ray://127.0.0.1:{head.client}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    command = [sys.executable, "-c", JOIN, "2.1.0"]
    for _ in range(4):  # It listens for clients last; and on a busy machine half a minute, which they have, is short.
        job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if "Version mismatch" in job.stderr:
            break
    said = job.stderr.splitlines()[-1]
    assert job.returncode == 1
    assert said.startswith("error: RAY_ADDRESS: ray://")
    assert said.count("Ray: 2.") == said.count("Python: 3.") == 2


def test_a_cluster_that_a_job_starts_for_itself_lets_nobody_else_in(tmp_path: Path) -> None:
    own = (
        "import time; from jobs.cluster import connect; import ray\nwith connect(num_cpus=1):\n"
        "    print(ray.get_runtime_context().gcs_address, flush=True); time.sleep(60)"
    )
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PYTHONPATH": str(ROOT)
    }
    with subprocess.Popen(
        [sys.executable, "-c", own], env=known | {"HOME": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    ) as job:
        try:
            assert job.stdout is not None
            address = job.stdout.readline().strip()
            for one in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 32}):
                stranger = subprocess.run(
                    [sys.executable, "-c", JOIN, ""],
                    env=known | {"RAY_ADDRESS": address} | one,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert "wants another token" in stranger.stderr
        finally:
            job.terminate()


def test_no_job_is_taken_from_who_has_no_token(head: Head) -> None:
    jobs = f"http://127.0.0.1:{head.dashboard}/api/jobs/"
    assert [answer(jobs, token)[0] for token in (None, "x" * 32, TOKEN)] == [401, 403, 200]


def test_prometheus_sees_what_a_training_says_of_itself(head: Head) -> None:
    environment = head.environment(f"127.0.0.1:{head.port}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    with subprocess.Popen([sys.executable, "-c", GAUGES], env=environment, stdout=subprocess.DEVNULL) as training:
        try:
            metrics = f"http://127.0.0.1:{head.metrics}/metrics"
            wait_until(lambda: all(f"\nray_{name}{{" in answer(metrics)[1] for name in NAMES), 60)
            lines = answer(metrics)[1].splitlines()
        finally:
            training.kill()
    found = {line.partition("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("ray_semsam_")}
    assert all('run="toy"' in line for line in lines if line.startswith("ray_semsam_"))
    assert found["ray_semsam_loss"] == 1.5
    assert found["ray_semsam_data_wait_share"] == pytest.approx(0.2)
    assert found["ray_semsam_step"] == 1
    assert 8 < found["ray_semsam_images_per_second"] <= 16
    assert found["ray_semsam_checkpoint_age_seconds"] >= 0
