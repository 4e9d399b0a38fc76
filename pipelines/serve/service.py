"""What a replica does for a request: images by their digest, one model, one piece of work after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from pipelines.serve.answering import Stopwatch, answer, everything
from pipelines.serve.faults import Refused, too_large, unknown_image
from pipelines.serve.kept import Kept
from pipelines.serve.limits import Limits
from pipelines.serve.messages import About, Answer, Everything, EverythingRequest, Image, Prompt
from pipelines.serve.photos import Photos
from pipelines.serve.waiting import ModelThread
from semsam.data.images import ImageTooLarge, read_photo
from semsam.encoded_image import EncodedImage
from semsam.predictor import Predictor

T = TypeVar("T")
_MOST_NAMES = 4096  # Embedded and kept; then all are forgotten.


class Service:
    """A predictor for many clients.

    An image is encoded where it is uploaded, and again from its file by any other replica that is asked about it; a
    client whose image is nowhere any longer gets 404, and uploads it again.
    """

    def __init__(
        self,
        predictor: Predictor,
        photos: Photos,
        limits: Limits,
        model: str = "a model",
        objects: Sequence[str] = (),
        parts: Sequence[str] = (),
    ) -> None:
        self.predictor, self.photos, self.limits = predictor, photos, limits
        self.model, self.objects, self.parts = model, tuple(objects), tuple(parts)
        self.thread = ModelThread(limits.max_waiting)
        self.encoded: Kept[EncodedImage] = Kept(limits.encoded_bytes, limits.encoded_images)  # Of the model's thread.
        self._names: set[str] = set()

    def about(self) -> About:
        """What this server is, and how it is."""
        return About(
            model=self.model,
            num_levels=self.predictor.model.settings.num_levels,
            further_clicks=self.predictor.model.settings.further_clicks,
            max_image_bytes=self.limits.max_image_bytes,
            max_pixels=self.limits.max_pixels,
            objects=list(self.objects),
            parts=list(self.parts),
            encoded_images=len(self.encoded),
            encoded_bytes=self.encoded.num_bytes,
            waiting=max(self.thread.taken - 1, 0),
        )

    async def upload(self, data: bytes) -> Image:
        """Encode an image.  Raises `Refused` for what is none, and for one that is too large."""
        begun, watch = time.perf_counter(), Stopwatch()
        image = hashlib.sha256(data).hexdigest()[:32]
        encoded, waited = await self.thread.run(lambda: self._encode(image, data, watch))
        await self.photos.put(image, data)
        watch.add("queue", waited)
        watch.add("total", time.perf_counter() - begun)
        height, width = encoded.size
        return Image(id=image, height=height, width=width, num_bytes=len(data), time_ms=watch.stages)

    async def answer(self, image: str, prompt: Prompt) -> Answer:
        """The masks of a prompt on an image.  Raises `Refused`."""
        return await self._about_image(
            image,
            lambda encoded, watch: answer(
                self._known(prompt.objects + prompt.parts), image, encoded, prompt, self.limits.max_pixels, watch
            ),
        )

    async def everything(self, image: str, asked: EverythingRequest) -> Everything:
        """All masks of an image.  Raises `Refused`."""
        return await self._about_image(
            image,
            lambda encoded, watch: everything(self._known(asked.objects + asked.parts), image, encoded, asked, watch),
        )

    async def aside(self, work: Callable[[], T]) -> T:
        """What other work gives, one after the other as well: it may take as much memory as the model's."""
        found, _ = await self.thread.run(work)
        return found

    async def _about_image(self, image: str, work: Callable[[EncodedImage, Stopwatch], T]) -> T:
        begun, watch = time.perf_counter(), Stopwatch()
        data: bytes | None = None
        for _ in range(2):
            found, waited = await self.thread.run(partial(self._with_image, image, data, work, watch))
            watch.add("queue", waited)
            if found is not None:
                watch.add("total", time.perf_counter() - begun)
                found.time_ms = watch.stages  # type: ignore[attr-defined]
                return found
            data = await self.photos.get(image)
            if data is None:
                break
        raise unknown_image(image)

    def _with_image(
        self, image: str, data: bytes | None, work: Callable[[EncodedImage, Stopwatch], T], watch: Stopwatch
    ) -> T | None:
        encoded = self.encoded.get(image)
        if encoded is None:
            if data is None:
                return None
            encoded = self._encode(image, data, watch)
        return work(encoded, watch)

    def _encode(self, image: str, data: bytes, watch: Stopwatch) -> EncodedImage:
        encoded = self.encoded.get(image)
        if encoded is not None:
            return encoded
        with watch.stage("image"):
            pixels = self._pixels(data)
        with watch.stage("encoder"):
            [encoded] = self.predictor.encode([pixels])
        self.encoded.put(image, encoded, num_bytes(encoded))
        return encoded

    def _pixels(self, data: bytes) -> np.ndarray:
        try:
            return read_photo(data, self.limits.max_pixels)
        except ImageTooLarge as error:
            raise too_large(str(error)) from None
        except ValueError as error:
            raise Refused(415, "no_image", str(error)) from None

    def _known(self, names: Sequence[str]) -> Predictor:
        """The predictor, which keeps what it has embedded; a new one, with the same model, when that are too many."""
        self._names.update(names)
        if len(self._names) > _MOST_NAMES:
            self._names = set(names)
            old = self.predictor
            self.predictor = Predictor(old.model, old.image_size, old.prompt_style, old.max_pixels)
        return self.predictor


def num_bytes(image: EncodedImage) -> int:
    """The memory of an encoded image."""
    features = image.features
    return sum(one.numel() * one.element_size() for one in (features.mask_features, *features.levels))
