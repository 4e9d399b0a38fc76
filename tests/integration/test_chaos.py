"""What is killed on a cluster is not missed in the end; `make chaos` kills more, of more kinds, at more moments.

Machines are killed in test_autoscaling.py, and taken away with notice in test_elastic.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.moments import EARLY, LATER, WRITING
from tests.chaos.soak import Chaos, Plan
from tests.chaos.world import World
from tests.s3_server import s3_server

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        cluster = Cluster(server)
        try:
            yield Chaos(World(server.bucket, server.uri).write(), cluster)
        finally:
            cluster.close()


@pytest.mark.parametrize(
    "plan",
    [
        Plan(0, "worker", "train", WRITING, "disk"),
        Plan(0, "s3", "prepare", EARLY, "s3"),
        Plan(0, "head", "train", EARLY, "disk"),
        Plan(3, "job", "generate", LATER, "disk"),
    ],
    ids=lambda plan: f"{plan.kind}-{plan.job}",
)
def test_a_job_ends_as_an_undisturbed_one(chaos: Chaos, plan: Plan) -> None:
    outcome = chaos.disturb(plan)
    print(outcome)
    assert not outcome.broken, f"{outcome}\n{outcome.said}"
