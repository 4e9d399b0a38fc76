"""Every job, submitted to a bare head: the cluster grows for it, is used, and shrinks again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from pipelines.toy import ToySettings, write_toy_world
from semsam.storage import Folder
from semsam.training.checkpoint import checkpoint_steps
from tests.ray_nodes import ROOT, RayNodes

pytestmark = [
    pytest.mark.nodes,
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

    def wait_until(self, holds: Callable[[], bool], within: float = 300.0) -> None:
        """Return when something holds while it is at work."""
        deadline = time.monotonic() + within
        while not holds():
            assert self.look(), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.5)

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


def test_every_job_brings_the_machines_that_it_needs_and_lets_them_go(nodes: RayNodes, tmp_path: Path) -> None:
    write_toy_world(tmp_path / "toy", ToySettings(train_images=8, val_images=4, faults=False))
    shards, runs, out = f"{tmp_path}/shards", f"{tmp_path}/runs", f"{tmp_path}/out"
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    prepare = Submitted(nodes, f"{PYTHON} jobs.prepare datasets.ade20k.root={tmp_path}/toy/ade20k output={shards}")
    assert prepare.wait().splitlines()[-1] == f"shards and manifests in {shards}"
    assert prepare.seen

    nodes.wait_for(1)
    started = time.monotonic()
    train = Submitted(
        nodes,
        f"{PYTHON} jobs.train data.root={shards} 'data.plan.stages=[{{weights: {{ade20k: 1}}}}]' model.preset=debug "
        "data.sample.augmentation.crop_size=64 data.sample.prompts.num_prompts=4 criterion.num_points=64 "
        "training.steps=60 training.global_batch=4 training.precision=fp32 training.checkpoint_every=5 "
        "run.num_workers=4 run.use_gpu=false run.cpus_per_worker=1 run.max_failures=3 run.name=tiny "
        f"run.storage={runs} {tracking}",
    )
    train.wait_until(lambda: bool(checkpoint_steps(Folder(f"{runs}/tiny"))))
    machines = nodes.added()
    assert len(machines) == 2
    lost = sorted(machines)[0]
    nodes.kill(machines[lost])
    said = train.wait(within=600)
    assert "going on after step" in said
    assert said.splitlines()[-1] == f"checkpoint in {runs}/tiny/checkpoint-60"
    assert len(train.seen) > len(machines)  # Another took the lost one's place.
    nodes.wait_for(1)
    print(f"a training with 2 machines, one of which is lost, from none to none: {time.monotonic() - started:.0f} s")

    image_size = "image_size.short_side=64 image_size.max_long_side=96"
    checkpoint = f"checkpoint={runs}/tiny/checkpoint-60"
    evaluations = [f"{out}/a", f"{out}/b"]
    evaluate = (
        f"{PYTHON} jobs.evaluate data={shards} {checkpoint} {image_size} gpus_per_actor=1 resamples=10 pictures=0"
    )
    generate = f"{PYTHON} jobs.generate images={tmp_path}/toy/ade20k/images/validation {checkpoint} {image_size}"
    generate += " gpus_per_actor=1 masks.points_per_side=2"
    asked = [f"{evaluate} output={output} {tracking}" for output in evaluations]
    answered = Submitted(nodes, " && ".join([*asked, f"{generate} output={out}/masks"]))
    answered.wait()
    assert all(nodes.kind_of(node) == "gpu" for node in answered.seen - train.seen - prepare.seen)

    nodes.wait_for(1)  # All are gone that did nothing any more.
    on_the_head = Submitted(
        nodes,
        " && ".join(
            [
                f"{PYTHON} jobs.compare before={evaluations[0]} after={evaluations[1]}",
                f"{PYTHON} jobs.report folder={evaluations[0]}",
                f"{PYTHON} jobs.track folder={evaluations[0]} {tracking}",
                f"{PYTHON} jobs.export {checkpoint} out={out}/export",
            ]
        ),
    )
    on_the_head.wait()
    assert on_the_head.seen <= train.seen | prepare.seen | answered.seen  # Processes that were still ending.
