"""`ray job submit --working-dir . -- python -m jobs.<name> ...`: the job's status tells the truth."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.cluster import connect
from pipelines.toy import ToySettings, write_toy_world
from semsam.data.shards import Split
from semsam.storage import Folder
from semsam.training.checkpoint import checkpoint_steps
from semsam.training.followed import read_followed
from tests.painted_shards import VOCABULARIES, write_painted_shards

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's and MLflow's own, of which none is ours to mend.
]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client() -> Iterator[JobSubmissionClient]:
    with connect(num_cpus=2, dashboard=True):
        yield JobSubmissionClient(f"http://{ray.get_runtime_context().worker.node.address_info['webui_url']}")


def submit(client: JobSubmissionClient, entrypoint: str) -> tuple[JobStatus, list[str]]:
    """The final status and the lines of the log."""
    job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(ROOT)})
    deadline = time.monotonic() + 180
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return status, client.get_job_logs(job).splitlines()


def test_a_submitted_job_prepares_or_says_why_not(client: JobSubmissionClient, tmp_path: Path) -> None:
    write_toy_world(tmp_path / "toy", ToySettings(train_images=6, val_images=2))
    prepare = f"{sys.executable} -m jobs.prepare datasets.ade20k.root={tmp_path}/toy/ade20k"
    status, lines = submit(client, f"{prepare} datasets.ade20k.max_rejected=0.2 output={tmp_path}/out")
    assert (status, lines[-1]) == (JobStatus.SUCCEEDED, f"shards and manifests in {tmp_path}/out"), "\n".join(lines)
    assert len(Split(f"{tmp_path}/out/ade20k/train")) == 5

    status, lines = submit(client, f"{prepare} output={tmp_path}/out")
    assert status == JobStatus.FAILED
    assert lines[-2] == "error: ade20k/train: 1 of 6 images are unusable, more than max_rejected = 0.01"
    assert lines[-1].startswith("  1 x broken image (e.g. ADE_train_00000006: ")

    status, lines = submit(client, prepare)
    assert status == JobStatus.FAILED
    assert lines[-1].startswith("error: output: 'outputs/shards' is relative; a submitted job needs an absolute path")


def test_a_training_for_which_the_cluster_is_too_small_is_refused(client: JobSubmissionClient) -> None:
    status, lines = submit(client, f"{sys.executable} -m jobs.train jobs/configs/seven_swin_tiny.yaml")
    assert status == JobStatus.FAILED
    assert lines[-1].startswith("error: run.use_gpu: no machine has 1 GPU for 8 workers with 6 CPUs and 1 GPU each; ")


def test_submitted_jobs_train_and_evaluate_or_say_why_not(client: JobSubmissionClient, tmp_path: Path) -> None:
    write_toy_world(tmp_path / "toy", ToySettings(train_images=4, val_images=2, faults=False))
    python, shards = f"{sys.executable} -m", f"{tmp_path}/shards"
    roots = f"datasets.ade20k.root={tmp_path}/toy/ade20k"
    assert submit(client, f"{python} jobs.prepare {roots} output={shards}")[0] == JobStatus.SUCCEEDED

    train = (
        f"{python} jobs.train data.root={shards} 'data.plan.stages=[{{weights: {{ade20k: 1}}}}]' model.preset=debug "
        "data.sample.augmentation.crop_size=64 data.sample.prompts.num_prompts=4 criterion.num_points=64 "
        "training.steps=2 training.global_batch=2 training.precision=fp32 tracking.enabled=false "
        "run.num_workers=2 run.use_gpu=false run.cpus_per_worker=1 run.max_failures=0 run.name=tiny"
    )
    status, lines = submit(client, f"{train} run.storage={tmp_path}/runs")
    checkpoint = f"{tmp_path}/runs/tiny/checkpoint-2"
    assert (status, lines[-1]) == (JobStatus.SUCCEEDED, f"checkpoint in {checkpoint}"), "\n".join(lines)

    status, lines = submit(client, f"{train} run.storage={tmp_path}/runs optimizer.lr=1.0")
    assert status == JobStatus.FAILED
    assert "optimizer.lr" in lines[-1]

    evaluate = f"{python} jobs.evaluate data={shards} image_size.short_side=64 image_size.max_long_side=96"
    output = f"output={tmp_path}/evaluation tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    status, lines = submit(client, f"{evaluate} {output} checkpoint={checkpoint}")
    assert status == JobStatus.SUCCEEDED, "\n".join(lines)
    assert lines[-1].startswith(f"pictures in {tmp_path}/evaluation, numbers in MLflow run ")
    assert (tmp_path / "evaluation" / "metrics.json").exists()

    status, lines = submit(client, f"{evaluate} {output} checkpoint={tmp_path}/nothing")
    assert status == JobStatus.FAILED
    assert lines[-1].startswith(f"error: {tmp_path}/nothing")


def test_an_evaluation_follows_a_training_and_marks_the_best(client: JobSubmissionClient, tmp_path: Path) -> None:
    write_painted_shards(tmp_path / "shards", 4, {"pascal_part": VOCABULARIES["pascal_part"]})
    run, python = tmp_path / "runs" / "tiny", f"{sys.executable} -m"
    shards = f"{tmp_path}/shards"
    train = (
        f"{python} jobs.train data.root={shards} 'data.plan.stages=[{{weights: {{pascal_part: 1}}}}]' "
        "model.preset=debug data.sample.augmentation.crop_size=64 data.sample.prompts.num_prompts=2 "
        "criterion.num_points=64 training.steps=12 training.global_batch=2 training.precision=fp32 "
        "training.checkpoint_every=4 training.keep_last=1 tracking.enabled=false run.num_workers=1 run.use_gpu=false "
        f"run.cpus_per_worker=1 run.max_failures=0 run.name=tiny run.storage={tmp_path}/runs"
    )
    follow = (
        f"{python} jobs.evaluate follow=true checkpoint={run} data={shards} split=train output={tmp_path}/followed "
        "image_size.short_side=64 image_size.max_long_side=96 num_actors=1 pictures=0 resamples=0 "
        "best_by=one_click/miou_oracle tracking.enabled=false"
    )
    environment = {"working_dir": str(ROOT)}
    jobs = [client.submit_job(entrypoint=one, runtime_env=environment) for one in (follow, train)]
    deadline = time.monotonic() + 300
    while not all(client.get_job_status(job).is_terminal() for job in jobs):
        assert time.monotonic() < deadline, "\n".join(client.get_job_logs(jobs[0]).splitlines()[-20:])
        time.sleep(1)
    for job in jobs:
        assert client.get_job_status(job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    followed = read_followed(Folder(str(run)))
    assert followed is not None
    assert sorted(followed.values, key=int) == ["4", "8", "12"]
    assert all(value is not None for value in followed.values.values())
    assert followed.best in checkpoint_steps(Folder(str(run)))
    assert sorted(path.name for path in (tmp_path / "followed").iterdir() if path.name != "blind") == [
        f"checkpoint-{step}" for step in (12, 4, 8)
    ]
    said = client.get_job_logs(jobs[0])
    assert f"the best by one_click/miou_oracle: {run}/checkpoint-{followed.best}" in said
