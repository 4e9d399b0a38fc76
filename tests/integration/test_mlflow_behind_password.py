"""The MLflow server that infra/mlflow describes, on this machine: strangers see nothing, jobs get in."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import yaml

from jobs.cluster import ROOT
from semsam.tracking.server import TrackingError
from semsam.tracking.tracker import TrackingSettings, open_experiment
from tests.free_ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow's own.

PASSWORD = "correct-horse-battery"


def status(url: str, login: str = "") -> int:
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address: the command of the manifest, with files of this machine in place of PostgreSQL and the bucket."""
    folder = tmp_path_factory.mktemp("mlflow")
    config, _, deployment = yaml.safe_load_all((ROOT / "infra" / "mlflow" / "server.yaml").read_text())
    ini = config["data"]["basic_auth.ini"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [port] = free_ports(1)
    (folder / "basic_auth.ini").write_text(
        "\n".join(
            f"database_uri = sqlite:///{folder}/auth.db" if line.startswith("database_uri") else line
            for line in ini.splitlines()
        )
    )
    here = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "artifacts"),
        "--allowed-hosts": f"localhost:{port},127.0.0.1:{port}",
    }
    names = [argument.partition("=")[0] for argument in container["args"]]
    command = [
        f"{name}={here[name]}" if name in here else argument
        for name, argument in zip(names, container["args"], strict=True)
    ]
    assert here.keys() <= set(names)
    plain = {one["name"]: one["value"] for one in container["env"] if "value" in one and one["name"] != "HOME"}
    environment = os.environ | plain
    environment |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "0" * 32,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while status(f"http://127.0.0.1:{port}/health") != 200:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(300)
def test_who_has_no_password_sees_nothing(server: str) -> None:
    for page in (
        "/",
        "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default",
        "/ajax-api/2.0/mlflow/users/get",
    ):
        assert status(server + page) == 401
        assert status(server + page, f"admin:{PASSWORD}x") == 401
    assert status(f"{server}/", f"admin:{PASSWORD}") == 200


def test_a_job_gets_in_by_its_environment_and_says_it_when_it_does_not(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=f"MLflow at {server}") as caught:
        open_experiment(TrackingSettings(uri=server))
    assert PASSWORD not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert PASSWORD not in open_experiment(TrackingSettings(uri=server))
