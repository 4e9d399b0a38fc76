"""The service behind Ray Serve: replicas with a model each, and one place for the photos of all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from pipelines.model_pool import ModelReference
from pipelines.serve.app import build_app
from pipelines.serve.kept import Kept
from pipelines.serve.limits import Limits
from pipelines.serve.service import Service
from semsam.predictor import ImageSize, Predictor, PromptStyle

APPLICATION = "semsam"
_SOCKETS = 4096  # Of a replica at once, all but a few of which get 429.
_LOGGING = LoggingConfig(
    log_level="ERROR", enable_access_log=False
)  # Files on the machine have it; a job says its own.


@dataclass(frozen=True)
class Served:
    """What every replica serves."""

    checkpoint: str  # For people: which model it is.
    model: ModelReference
    image_size: ImageSize
    prompt_style: PromptStyle
    limits: Limits
    objects: tuple[str, ...]
    parts: tuple[str, ...]
    threads: int  # Of the CPU, for each replica.


class PhotosOfAll:
    """The actor that keeps clients' files for all replicas."""

    def __init__(self, limits: Limits) -> None:
        self._kept: Kept[bytes] = Kept(limits.photo_bytes, limits.photos)

    def put(self, image: str, data: bytes) -> None:
        """Keep a file by its image's id."""
        self._kept.put(image, data, len(data))

    def get(self, image: str) -> bytes | None:
        """The file; None where it is not, or not any longer."""
        return self._kept.get(image)


class PhotosElsewhere:
    """`Photos` of an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def put(self, image: str, data: bytes) -> None:
        """Keep a file by its image's id."""
        await self._actor.put.remote(image, data)

    async def get(self, image: str) -> bytes | None:
        """The file; None where it is not, or not any longer."""
        found: bytes | None = await self._actor.get.remote(image)
        return found


class Replica:
    """One model and its application."""

    def __init__(self, served: Served, photos: Any) -> None:
        torch.set_num_threads(served.threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        limits = served.limits
        predictor = Predictor(
            served.model.load(device), served.image_size, served.prompt_style, max_pixels=limits.max_pixels
        )
        self._service = Service(
            predictor, PhotosElsewhere(photos), limits, served.checkpoint, served.objects, served.parts
        )

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray Serve, whose name for it this is, hands requests to."""
        return build_app(self._service)


def start(
    served: Served, replicas: tuple[int, int], cpus: float, gpus: float, host: str, port: int
) -> Callable[[], None]:
    """Serve on a cluster that this process has joined, and give what ends it.

    Replicas are added while each has more than two requests, and taken away when there is less to do.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": host, "port": port}, logging_config=_LOGGING)
    photos = ray.remote(num_cpus=0)(PhotosOfAll).remote(served.limits)
    least, most = replicas
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="Replica",
        logging_config=_LOGGING,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        autoscaling_config=AutoscalingConfig(min_replicas=least, max_replicas=most, target_ongoing_requests=2),
        # Those beyond what may wait are refused by the replica, which says for how long: Ray Serve would let them wait
        # without end, or answer 503.
        max_ongoing_requests=_SOCKETS,
    )
    serve.run(deployment.bind(served, photos), name=APPLICATION, route_prefix="/")
    return serve.shutdown
