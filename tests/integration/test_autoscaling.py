"""Every job, submitted to a bare head: the cluster grows for it, is used, and shrinks again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from pipelines.toy import ToySettings, write_toy_world
from tests.ray_nodes import ROOT, RayNodes

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),  # Ray's own.
]

KINDS = {"cpu": {"CPU": 2, "max": 2}, "gpu": {"CPU": 1, "GPU": 1, "max": 1}}
PYTHON = f"{sys.executable} -m"


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes(KINDS) as found:
        yield found


class Submitted:
    """A job on the cluster, and which nodes it has brought."""

    def __init__(self, nodes: RayNodes, entrypoint: str) -> None:
        self._nodes = nodes
        headers = {"Authorization": f"Bearer {nodes.token}"}
        self._client = JobSubmissionClient(nodes.dashboard, headers=headers)
        deadline = time.monotonic() + 90
        while True:
            try:
                self._id = self._client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(ROOT)})
                break
            except RuntimeError as error:  # The head listens before its agent does.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1)
        self.seen: set[str] = set()

    def look(self) -> bool:
        """Whether it is still at work."""
        self.seen |= self._nodes.added().keys()
        return not self._client.get_job_status(self._id).is_terminal()

    def wait(self, within: float = 300.0) -> str:
        """The job's output, once it has ended well."""
        deadline = time.monotonic() + within
        while self.look():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.5)
        assert self._client.get_job_status(self._id) == JobStatus.SUCCEEDED, self.output()
        return self.output()

    def output(self) -> str:
        return str(self._client.get_job_logs(self._id))


def test_try(nodes: RayNodes, tmp_path: Path) -> None:
    write_toy_world(tmp_path / "toy", ToySettings(train_images=8, val_images=4, faults=False))
    started = time.monotonic()

    def say(*what):
        print(f"{time.monotonic() - started:.0f} s", *what, flush=True)

    job = Submitted(nodes, f"{PYTHON} jobs.prepare datasets.ade20k.root={tmp_path}/toy/ade20k output={tmp_path}/shards")
    out = job.wait()
    say("prepared", job.seen, out[-500:])
    nodes.wait_for(1)
    say("shrunk")
    train = (
        f"{PYTHON} jobs.train data.root={tmp_path}/shards 'data.plan.stages=[{{weights: {{ade20k: 1}}}}]' model.preset=debug "
        "data.sample.augmentation.crop_size=64 data.sample.prompts.num_prompts=4 criterion.num_points=64 "
        "training.steps=6 training.global_batch=4 training.precision=fp32 tracking.enabled=false "
        f"run.num_workers=4 run.use_gpu=false run.cpus_per_worker=1 run.name=tiny run.storage={tmp_path}/runs"
    )
    job = Submitted(nodes, train)
    say("trained", job.wait()[-800:], job.seen)
    nodes.wait_for(1)
    say("shrunk")
    evaluate = (
        f"{PYTHON} jobs.evaluate data={tmp_path}/shards checkpoint={tmp_path}/runs/tiny/checkpoint-6 "
        "image_size.short_side=64 image_size.max_long_side=96 gpus_per_actor=1 num_actors=1 tracking.enabled=false "
        f"output={tmp_path}/evaluation pictures=0 resamples=10"
    )
    job = Submitted(nodes, evaluate)
    say("evaluated", job.wait()[-500:], job.seen)
