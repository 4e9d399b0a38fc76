"""What can never be had of a cluster, told by the setting that asks for it."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import jobs.evaluate
import jobs.generate
import jobs.train
from jobs.cluster import connect
from jobs.evaluate import EvaluateJob
from jobs.generate import GenerateJob
from jobs.resources import Workers, actors, cpus_here, refusal, refuse_here, room_for
from jobs.train import TrainJob
from semsam.config import load_config

CONFIGS = Path(jobs.train.__file__).parent / "configs"
TRAINING = Workers(8, 6, 1, "run.num_workers", "run.cpus_per_worker", "run.use_gpu", "run.wait_for_resources")
LARGE = {"CPU": 64.0, "GPU": 8.0, "memory": 1e12}


@pytest.mark.parametrize(
    ("workers", "machines", "room"),
    [
        (TRAINING, [LARGE], 8),
        (TRAINING, [{"CPU": 13.0, "GPU": 4.0}] * 3, 6),
        (TRAINING, [{"CPU": 64.0}, {"GPU": 8.0}], 0),
        (TRAINING, [], 0),
        (replace(TRAINING, gpus=0), [{"CPU": 5.0}] * 100, 0),
        (actors(4, 0.1, 9), [{"CPU": 64.0, "GPU": 1.0}], 10),
        (actors(4, 0.3, 9), [{"CPU": 64.0, "GPU": 2.0}], 6),
        (actors(4, 0, 9), [{"CPU": 2.0}, {}], 2),
        (replace(TRAINING, cpus=0, gpus=0), [{}], 8),
    ],
)
def test_a_worker_has_all_it_needs_on_one_machine(
    workers: Workers, machines: list[dict[str, float]], room: int
) -> None:
    assert room_for(workers, machines) == room


@pytest.mark.parametrize(
    ("workers", "machines", "message"),
    [
        (TRAINING, [LARGE], ""),
        (
            TRAINING,
            [{"CPU": 1.0}],
            "run.use_gpu: no machine has 1 GPU for 8 workers with 6 CPUs and 1 GPU each; machines: 1 with 1 CPU",
        ),
        (
            replace(TRAINING, gpus=0),
            [{"CPU": 4.0}] * 20,
            "run.cpus_per_worker: no machine has 6 CPUs for 8 workers with 6 CPUs each; machines: 20 with 4 CPUs",
        ),
        (
            TRAINING,
            [LARGE | {"CPU": 13.0}, {"CPU": 64.0}],
            "run.num_workers: there is room for 2 of 8 workers with 6 CPUs and 1 GPU each; machines: 1 "
            "with 13 CPUs and 8 GPUs, 1 with 64 CPUs",
        ),
        (
            actors(2, 0.5, 9),
            [],
            "gpus_per_actor: no machine has 0.5 GPU for 2 workers with 1 CPU and 0.5 GPU each; machines: none",
        ),
        (actors(3, 2, 9), [LARGE | {"GPU": 1.0}] * 9, "gpus_per_actor: no machine has 2 GPUs"),
        (actors(3, 1, 9), [LARGE | {"GPU": 1.0}] * 2, "num_actors: there is room for 2 of 3 workers"),
        (
            actors(1, 0, 9),
            [{"GPU": 1.0}],
            "num_actors: no machine has 1 CPU for 1 worker with 1 CPU; machines: 1 with 1 GPU",
        ),
    ],
)
def test_what_can_never_be_had_is_told_by_its_setting(
    workers: Workers, machines: list[dict[str, float]], message: str
) -> None:
    found = refusal(workers, machines)
    assert found.startswith(message)
    assert bool(found) == bool(message)


def test_gpus_that_this_machine_lacks_are_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job = load_config(TrainJob, str(CONFIGS / "seven_swin_tiny.yaml"))
    with (
        pytest.raises(
            ValueError, match=r"run.use_gpu: no machine has 1 GPU for 8 workers with 1 GPU each; machines: 1 with"
        ),
        connect(jobs.train.workers(job)),
    ):
        raise AssertionError("connected")


def test_a_laptop_s_cpus_are_shared_by_a_training_and_not_by_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    training = replace(TRAINING, gpus=0, shares_cpus=True)
    assert cpus_here([training]) == 48
    assert cpus_here([actors(64, 0, 9)]) == 2
    refuse_here([training])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="num_actors: there is room for 2 of 64 workers with 1 CPU each"):  # noqa: SIM117
        with connect(actors(64, 0, 9)):
            raise AssertionError("connected")


def test_without_a_number_of_actors_one_has_to_find_room() -> None:
    jobs_by_default = [jobs.evaluate.workers(EvaluateJob()), jobs.generate.workers(GenerateJob(images="x"))]
    assert [one.count for one in jobs_by_default] == [1, 1]
    assert jobs.generate.workers(GenerateJob(images="x", num_actors=3, gpus_per_actor=0.5)).needs() == {
        "CPU": 1,
        "GPU": 0.5,
    }


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "RAY_ADDRESS: no Ray cluster answers at 127.0.0.1:9: "),
        ("ray://127.0.0.1:9", "RAY_ADDRESS: no Ray cluster answers at ray://127.0.0.1:9: "),
        ("ray://localhost", "RAY_ADDRESS: no Ray cluster answers at ray://localhost: "),
        ("no-such-host.invalid:6379", "RAY_ADDRESS: no Ray cluster answers at no-such-host.invalid:6379: "),
        ("http://127.0.0.1:8265", "RAY_ADDRESS: 'http://127.0.0.1:8265' is not .*; a dashboard's address is for"),
        ("127.0.0.1", "RAY_ADDRESS: '127.0.0.1' is not auto .*, host:port"),
        ("127.0.0.1:0", "RAY_ADDRESS: '127.0.0.1:0' is not"),
        ("127.0.0.1:99999", "RAY_ADDRESS: '127.0.0.1:99999' is not"),
        ("a b:1", "RAY_ADDRESS: 'a b:1' is not"),
        ("redis://x:1", "RAY_ADDRESS: 'redis://x:1' is not"),
    ],
)
def test_an_address_where_no_cluster_answers_is_refused_within_seconds(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.address.ANSWERS_WITHIN", 0.5)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=re.compile(message)) as caught, connect():
        raise AssertionError("connected")
    assert "\n" not in str(caught.value)


def test_a_web_server_is_refused_as_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{web.server_port}"
        monkeypatch.setattr("jobs.address.ANSWERS_WITHIN", 0.5)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}"), connect():
            raise AssertionError("connected")
        web.shutdown()


def test_what_answers_but_is_no_cluster_is_refused_too(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    """Of `bucket` only the port is of interest, where something listens that speaks HTTP/2 and is not Ray."""
    address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.setattr("jobs.address.ANSWERS_WITHIN", 0.5)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}"), connect():
        raise AssertionError("connected")


@pytest.mark.parametrize("kind", [EvaluateJob, GenerateJob])
def test_a_pool_that_grows_needs_room_for_where_it_begins(kind: Any) -> None:
    needed = {"images": "x"} if kind is GenerateJob else {}
    module: Any = jobs.generate if kind is GenerateJob else jobs.evaluate
    assert module.workers(kind(**needed, max_actors=500)).count == 1
    assert module.workers(kind(**needed, num_actors=3, max_actors=500)).count == 3
    with pytest.raises(ValueError, match=r"max_actors: 2 is less than num_actors, 3"):
        kind(**needed, num_actors=3, max_actors=2)
    with pytest.raises(ValueError, match=r"^max_actors: "):
        kind(**needed, max_actors=0)
