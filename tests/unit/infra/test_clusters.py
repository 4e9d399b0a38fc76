"""What `ray up` would start, without starting it, and what its machines do when the cloud takes them away."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.scripts.scripts import start

from jobs.cluster import ROOT
from tests.infra_files import INFRA, files, name_of

CLUSTERS = INFRA / "clusters"
NOTICE = {"aws": 120, "gcp": 30}  # Seconds.


@pytest.fixture(params=NOTICE)
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(cloud: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTERS / f"{cloud}.yaml").read_text())
    return loaded


def start_commands(config: dict[str, Any], kind: str) -> list[str]:
    """The words of the command that starts Ray on the machines of a kind."""
    [command] = config[f"{kind}_start_ray_commands"]
    return shlex.split(command.rpartition(";")[2])


def test_ray_takes_the_file_for_a_cluster(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    kinds = AutoscalingConfig(prepared, skip_content_hash=True).get_node_type_configs()
    assert {name: (one.min_worker_nodes, one.resources.get("CPU", 0) > 0) for name, one in kinds.items()} == {
        "head": (0, False),
        "cpu": (0, True),
        "gpu": (0, True),
    }
    assert kinds["gpu"].resources["GPU"] == 8


def test_the_file_says_all_that_ray_would_otherwise_guess(config: dict[str, Any]) -> None:
    assert {"head_setup_commands", "worker_setup_commands", "setup_commands", "cluster_synced_files"} <= config.keys()
    assert config["available_node_types"].keys() == {"head", "cpu", "gpu"}


def test_workers_are_spot_and_the_head_is_not(cloud: str, config: dict[str, Any]) -> None:
    def is_spot(node: dict[str, Any]) -> bool:
        if cloud == "aws":
            return node.get("InstanceMarketOptions") == {"MarketType": "spot"}
        return node.get("scheduling", {}).get("provisioningModel") == "SPOT"

    nodes = {kind: one["node_config"] for kind, one in config["available_node_types"].items()}
    assert {kind: is_spot(node) for kind, node in nodes.items()} == {"head": False, "cpu": True, "gpu": True}
    placed = nodes["gpu"].get("Placement", {}).get("GroupName") or nodes["gpu"].get("resourcePolicies")
    assert placed
    assert "," not in config["provider"]["availability_zone"]


def test_no_machine_of_aws_gives_its_role_to_who_asks_without_a_token(cloud: str, config: dict[str, Any]) -> None:
    if cloud == "aws":
        for one in config["available_node_types"].values():
            assert one["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
            assert one["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]


def test_the_head_has_no_cpus_for_work_and_its_dashboard_is_on_loopback(config: dict[str, Any]) -> None:
    words = start_commands(config, "head")
    assert {"--head", "--num-cpus=0", "--dashboard-host=127.0.0.1"} <= set(words)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_start_knows_what_it_is_given(config: dict[str, Any], kind: str) -> None:
    start.make_context("start", start_commands(config, kind)[4:])
    with pytest.raises(click.UsageError):
        start.make_context("start", [*start_commands(config, kind)[4:], "--no-such-option"])


def test_a_worker_drains_within_the_notice_of_its_cloud(cloud: str, config: dict[str, Any]) -> None:
    script, named, drain, *ray_start = start_commands(config, "worker")[1:]
    assert (Path(script).name, named) == ("start.sh", cloud)
    assert NOTICE[cloud] / 2 < int(drain) < NOTICE[cloud]
    assert "--address=$RAY_HEAD_IP:6379" in ray_start


def test_machines_are_made_from_the_lock_files(config: dict[str, Any]) -> None:
    kinds = config["available_node_types"]
    assert kinds["gpu"]["worker_setup_commands"][0].endswith("setup.sh constraints-cuda.txt")
    for commands in (config["head_setup_commands"], config["worker_setup_commands"]):
        assert commands[0].endswith("setup.sh constraints.txt")
    for command in re.findall(r"/home/ubuntu/semsam/(\S+)", yaml.safe_dump(config, width=1000)):
        assert (ROOT / command).exists()


def test_all_machines_get_the_token_from_a_file_and_no_secret_is_written(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["file_mounts"]["/home/ubuntu/semsam"] == "."
    assert ".git" in config["rsync_exclude"]
    assert "RAY_AUTH_MODE=token" in (CLUSTERS / "start.sh").read_text()


@pytest.mark.parametrize("script", files(".sh"), ids=name_of)
def test_a_script_is_one(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().startswith("#!/usr/bin/env bash\n#")


@contextlib.contextmanager
def metadata_server(answers: dict[str, str]) -> Iterator[str]:
    """A cloud's own, which answers some paths and knows no other; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in answers
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(answers.get(self.path, "").encode())

        do_PUT = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def commands_in(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which some commands do nothing but write down how they were called, in `<folder>/called`."""
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/called\n')
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}


TOKEN, ACTION = "/latest/api/token", "/latest/meta-data/spot/instance-action"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(
    ("cloud", "answers", "is_notice"),
    [
        ("aws", {TOKEN: "x", ACTION: '{"action": "terminate"}'}, True),
        ("aws", {TOKEN: "x"}, False),
        ("aws", {}, False),
        ("gcp", {PREEMPTED: "TRUE"}, True),
        ("gcp", {PREEMPTED: "FALSE"}, False),
        ("gcp", {}, False),
    ],
)
def test_a_notice_and_nothing_else_ends_ray(
    tmp_path: Path, cloud: str, answers: dict[str, str], is_notice: bool
) -> None:
    with metadata_server(answers) as address:
        environment = commands_in(tmp_path, "systemctl") | {"METADATA_HOST": address, "POLL": "0.1"}
        script = ["bash", str(CLUSTERS / "spot_notice.sh"), cloud]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(script, env=environment, timeout=10 if is_notice else 1, stdout=subprocess.DEVNULL)
    called = (tmp_path / "called").read_text() if (tmp_path / "called").exists() else ""
    assert called == ("systemctl stop ray\n" if is_notice else "")


def test_ray_starts_with_what_the_launcher_set_and_without_the_token(tmp_path: Path) -> None:
    environment = commands_in(tmp_path, "sudo", "ray") | {
        "RAY_HEAD_IP": "10.0.0.7",
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 8, "GPU": 1}',
        "AWS_ENDPOINT_URL": "https://bucket.example",
        "RAY_AUTH_TOKEN": "a-token",
        "AWS_SECRET_ACCESS_KEY": "a-key",
    }
    script = ["bash", str(CLUSTERS / "start.sh"), "aws", "100", "--address=10.0.0.7:6379", "--labels=a=b c"]
    subprocess.run(script, env=environment, check=True, timeout=20)
    written = tmp_path / "start-ray"
    assert not any(secret in written.read_text() for secret in ("a-token", "a-key"))
    assert written.stat().st_mode & 0o077 == 0
    called = (tmp_path / "called").read_text()
    assert "--unit=ray" in called
    assert "--property=KillMode=mixed --property=TimeoutStopSec=120" in called
    assert "ray health-check --address 10.0.0.7:6379" in called
    show = '#!/bin/sh\nenv > $HOME/seen\nfor one in "$@"; do echo "argument $one" >> $HOME/seen; done\n'
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "ray").write_text(show)
    (tmp_path / "venv" / "bin" / "ray").chmod(0o755)
    subprocess.run(["/bin/bash", str(written)], env={}, check=True, timeout=20)
    seen = (tmp_path / "seen").read_text().splitlines()
    assert [line for line in seen if line.startswith("argument ")] == [
        "argument start",
        "argument --block",
        "argument --address=10.0.0.7:6379",
        "argument --labels=a=b c",
    ]
    assert {
        'RAY_OVERRIDE_RESOURCES={"CPU": 8, "GPU": 1}',
        "RAY_AUTH_MODE=token",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=100",
        "AWS_ENDPOINT_URL=https://bucket.example",
    } <= set(seen)
