"""The image of a record: the file's own JPEG bytes, checked to be whole; and PNGs that annotate it pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from pipelines.sources.source import BadSample, Files
from semsam.data.images import MAX_PIXELS, ImageTooLarge, encode_jpeg, is_plain_jpeg, read_image_any, read_photo


@dataclass(frozen=True)
class StoredImage:
    """JPEG bytes that `semsam.data.images.decode_jpeg` reads, and their size in pixels."""

    data: bytes
    height: int
    width: int


def read_image(
    files: Files, paths: Sequence[str], sample_id: str, max_pixels: int = MAX_PIXELS, as_shown: bool = False
) -> StoredImage:
    """The image at the first of `paths` that exists; a JPEG stays byte for byte as it is, anything else becomes one.

    `as_shown` is for annotations of the image as its EXIF turns it: a turned one is written anew.
    Raises `BadSample`: "missing image", "image too large" for more than `max_pixels` and for what no JPEG can hold, or
    "broken image" for a file that is cut short or no image.
    """
    path, data = _first(files, paths, sample_id)
    try:
        pixels, keeps_bytes = read_image_any(data, max_pixels), is_plain_jpeg(data)
        if as_shown:
            shown = read_photo(data, max_pixels)
            pixels, keeps_bytes = shown, keeps_bytes and np.array_equal(pixels, shown)
        return StoredImage(data if keeps_bytes else encode_jpeg(pixels), *pixels.shape[:2])
    except ValueError as error:
        raise BadSample(_reason(error, "broken image"), sample_id, f"{files.path}/{path}: {error}") from None


def read_map(
    files: Files,
    path: str,
    decode: Callable[[bytes, int], Integer[np.ndarray, "h w *c"]],
    image: StoredImage,
    sample_id: str,
    reason: str,
) -> Integer[np.ndarray, "h w *c"]:
    """The annotation of each of the image's pixels.

    Raises `BadSample`: "image too large", `reason` for what `decode` refuses, or that the image has another size.
    """
    try:
        found = decode(files.read(path), max(MAX_PIXELS, image.height * image.width))
    except (ValueError, FileNotFoundError) as error:
        raise BadSample(_reason(error, reason), sample_id, f"{files.path}/{path}: {error}") from None
    check_size(image, found.shape[:2], sample_id)
    return found


def check_size(image: StoredImage, size: tuple[int, ...], sample_id: str) -> None:
    """Raise `BadSample` unless the image has the size (height, width) that its annotation was made for."""
    if (image.height, image.width) != size:
        detail = f"image {(image.height, image.width)}, annotation {size} (height, width)"
        raise BadSample("image size differs from annotation", sample_id, detail)


def _reason(error: Exception, otherwise: str) -> str:
    return "image too large" if isinstance(error, ImageTooLarge) else otherwise


def _first(files: Files, paths: Sequence[str], sample_id: str) -> tuple[str, bytes]:
    for path in paths:
        try:
            return path, files.read(path)
        except FileNotFoundError:
            continue
    others = f" (nor in {len(paths) - 1} other places)" if len(paths) > 1 else ""
    raise BadSample("missing image", sample_id, f"{files.path}/{paths[0]}{others}")
