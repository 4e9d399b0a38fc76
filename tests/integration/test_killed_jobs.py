"""A job that was killed whole, and is run again, ends as if nothing had happened; `make chaos` tries more moments."""

from __future__ import annotations

import pytest

from tests.chaos.killed_jobs import JOBS, Chaos, World

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    return Chaos(World(tmp_path_factory.mktemp("chaos")).write())


# Prepare, train and generate; evaluations in `make chaos`.
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_killed_job_ends_as_an_undisturbed_one(chaos: Chaos, seed: int) -> None:
    job, moment, is_alike = chaos.disturbed(seed)
    assert job == JOBS[seed % len(JOBS)]
    assert is_alike, f"{job} killed {moment}"
