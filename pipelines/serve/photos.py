"""The files that clients have uploaded, from which any replica can encode an image that it has not seen."""

from __future__ import annotations

from typing import Protocol

from pipelines.serve.kept import Kept
from pipelines.serve.limits import Limits


class Photos(Protocol):
    """Where files are kept; what is not used for long goes."""

    async def put(self, image: str, data: bytes) -> None:
        """Keep a file by its image's id."""

    async def get(self, image: str) -> bytes | None:
        """The file; None where it is not, or not any longer."""


class PhotosHere:
    """Files in this process."""

    def __init__(self, limits: Limits) -> None:
        self.kept: Kept[bytes] = Kept(limits.photo_bytes, limits.photos)

    async def put(self, image: str, data: bytes) -> None:
        """Keep a file by its image's id."""
        self.kept.put(image, data, len(data))

    async def get(self, image: str) -> bytes | None:
        """The file; None where it is not, or not any longer."""
        return self.kept.get(image)
