"""The image of a record: the file's own JPEG bytes, checked to be whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.files import Files
from pipelines.sources.source import BadSample
from semsam.data.images import decode_jpeg, encode_jpeg, read_image_any


@dataclass(frozen=True)
class StoredImage:
    """JPEG bytes that `semsam.data.images.decode_jpeg` reads, and their size in pixels."""

    data: bytes
    height: int
    width: int


def read_image(files: Files, paths: Sequence[str], sample_id: str) -> StoredImage:
    """The image at the first of `paths` that exists; a JPEG stays byte for byte as it is, anything else becomes one.

    Raises `BadSample`: "missing image", or "broken image" for a file that is cut short or no image.
    """
    data = _first(files, paths, sample_id)
    try:
        if data[:2] == b"\xff\xd8":
            try:
                return StoredImage(data, *decode_jpeg(data).shape[:2])
            except ValueError as error:
                if "subsampling" not in str(error):  # A whole JPEG, only of a kind that the fast decoder refuses.
                    raise
        pixels = read_image_any(data)
    except ValueError as error:
        raise BadSample("broken image", sample_id, f"{paths[0]}: {error}") from None
    return StoredImage(encode_jpeg(pixels), *pixels.shape[:2])


def check_size(image: StoredImage, size: tuple[int, ...], sample_id: str) -> None:
    """Raise `BadSample` unless the image has the size (height, width) that its annotation was made for."""
    if (image.height, image.width) != size:
        detail = f"image {(image.height, image.width)}, annotation {size} (height, width)"
        raise BadSample("image size differs from annotation", sample_id, detail)


def _first(files: Files, paths: Sequence[str], sample_id: str) -> bytes:
    for path in paths:
        try:
            return files.read_bytes(path)
        except FileNotFoundError:
            continue
    others = f" (nor in {len(paths) - 1} other places)" if len(paths) > 1 else ""
    raise BadSample("missing image", sample_id, f"{files.root}/{paths[0]}{others}")
