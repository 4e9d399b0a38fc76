"""A page to click on and a JSON API: `python -m jobs.serve checkpoint=<folder> [<config.yaml>] [a.b=value ...]`.

    python -m jobs.serve checkpoint=outputs/quickstart/runs/toy/checkpoint-720

Open the address that it prints; `<address>/openapi.json` describes the API.  It serves until it is ended (Ctrl-C).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import field

from jobs.arguments import read_arguments
from jobs.checkpoints import model_settings
from jobs.cluster import connect, has_its_own, main_exit, stable_path
from jobs.needs import Needs
from jobs.resources import WAIT, Workers
from pipelines.model_pool import ModelReference
from pipelines.serve.limits import Limits
from semsam.config import Gpus, Positive, PositiveFloat, Seed, settings
from semsam.model.presets import preset
from semsam.predictor import ImageSize, PromptStyle


@settings
class ServeJob:
    """What is served where, and with how much.

    Whoever reaches the address may use it, without a password: a `host` that others reach is for guarded networks.
    """

    checkpoint: str | None = None  # A folder, local or s3://; None: random weights of `preset`.
    preset: str = "debug"
    seed: Seed = 0
    host: str = "127.0.0.1"
    port: Positive = 8000
    objects: tuple[str, ...] = ()  # Names that the page begins with.
    parts: tuple[str, ...] = ()
    image_size: ImageSize = ImageSize(800, 1333)
    prompt_style: PromptStyle = field(default_factory=PromptStyle)
    limits: Limits = field(default_factory=Limits)
    replicas: Positive | tuple[Positive, Positive] = 1  # [least, most]: added while requests wait.
    cpus_per_replica: Positive = 1
    gpus_per_replica: Gpus = 0.0  # May be a share of one.
    wait_for_resources: PositiveFloat = WAIT  # Seconds, while others use what is needed.

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            preset(self.preset)  # Refuses an unknown one.
        least, most = self.replica_range()
        if least > most:
            raise ValueError(f"replicas: {[least, most]}: the least is more than the most")

    def replica_range(self) -> tuple[int, int]:
        """How many replicas there are at least and at most."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas


def workers(job: ServeJob) -> Workers:
    """What the job needs of a cluster."""
    names = ("replicas", "cpus_per_replica", "gpus_per_replica", "wait_for_resources")
    return Workers(
        job.replica_range()[0],
        job.cpus_per_replica,
        job.gpus_per_replica,
        *names,
        job.wait_for_resources,
        shares_cpus=True,
    )


def run(job: ServeJob) -> None:
    """Serve on the cluster that was joined until `SystemExit` or `KeyboardInterrupt`; the address is printed."""
    from pipelines.serve import replicas  # Ray Serve: imported before Ray runs it would add to a job's output.

    checkpoint = None if job.checkpoint is None else stable_path(job.checkpoint, "checkpoint")
    if checkpoint is not None:
        model_settings(checkpoint)  # Refuses what is no checkpoint, which a replica would try again and again.
    served = replicas.Served(
        checkpoint=job.checkpoint or f"random weights, {job.preset}",
        model=ModelReference(checkpoint, job.preset, job.seed),
        image_size=job.image_size,
        prompt_style=job.prompt_style,
        limits=job.limits,
        objects=job.objects,
        parts=job.parts,
        threads=job.cpus_per_replica,
    )
    end = replicas.start(served, job.replica_range(), job.cpus_per_replica, job.gpus_per_replica, job.host, job.port)
    try:
        print(f"serving {served.checkpoint} at http://{job.host}:{job.port}", flush=True)
        threading.Event().wait()
    finally:
        if not has_its_own():  # Which ends with this process.
            end()


def needs(job: ServeJob) -> Needs:
    """What the job would need."""
    return Needs.of([job.checkpoint], [], workers(job))


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for, until it is ended."""
    job = read_arguments(ServeJob, arguments, __doc__, needs=needs)
    with connect(workers(job)):
        run(job)


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
