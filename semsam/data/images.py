"""Image bytes to RGB arrays and back.  EXIF rotations are not applied: annotations are in the pixels as stored."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

Bytes = bytes | bytearray | memoryview


def decode_jpeg(data: Bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The image as RGB, grey ones repeated over the channels.

    Raises `ValueError` ("broken JPEG ...") for what is no JPEG and for one that was cut short: decoders can fill a
    missing half with grey, and nobody would notice.
    """
    return _decode(data, 0, 0)


def decode_jpeg_reduced(data: Bytes, min_long_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image at the smallest scale (eighths) that the decoder offers and whose long side is `min_long_side` or more.

    An image that is smaller already comes back at its own size.
    """
    height, width = jpeg_size(data)
    if height >= width:
        return _decode(data, min_long_side, 0)
    return _decode(data, 0, min_long_side)


def decode_jpeg_eighths(data: Bytes, eighths: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image at `eighths` / 8 of its size, with a broken pixel at the right and bottom rounded up to a whole one.

    The decoder leaves out frequencies instead of pixels, so nothing needs smoothing, and half the size or less costs
    less time than the whole.
    """
    height, width = jpeg_size(data)
    return _decode(data, 0, 0) if eighths == 8 else _decode(data, -(-height * eighths // 8), -(-width * eighths // 8))


def jpeg_size(data: Bytes) -> tuple[int, int]:
    """Height and width from the header alone."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(_flat(data))
    except ValueError as error:
        raise ValueError(f"broken JPEG of {len(_flat(data))} bytes: {error}") from None
    return int(height), int(width)


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int = 92) -> bytes:
    """An RGB image as JPEG; equal pixels give equal bytes on one version of the library."""
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420")
    )


def read_image_any(data: Bytes) -> UInt8[np.ndarray, "h w 3"]:
    """An image of any common format as RGB: PNG, grey, palette, and JPEGs whose colour sampling is out of the usual.

    Raises `ValueError` ("broken JPEG ..." or "broken image ...").
    """
    if bytes(_flat(data)[:2]) == b"\xff\xd8":
        try:
            return decode_jpeg(data)
        except ValueError as error:
            if "subsampling" not in str(error):
                raise
    try:
        with Image.open(io.BytesIO(_flat(data))) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise whatever their parsing runs into: OSError, SyntaxError, ...
        raise ValueError(f"broken image of {len(_flat(data))} bytes: {error}") from None


def _decode(data: Bytes, min_height: int, min_width: int) -> UInt8[np.ndarray, "h w 3"]:
    flat = _flat(data)
    try:
        return simplejpeg.decode_jpeg(flat, "RGB", min_height=min_height, min_width=min_width)
    except ValueError as error:
        # Bytes between segments are skipped by every decoder and cost no pixel; published datasets hold such files.
        if "extraneous bytes before marker" in str(error):
            return simplejpeg.decode_jpeg(flat, "RGB", min_height=min_height, min_width=min_width, strict=False)
        raise ValueError(f"broken JPEG of {len(flat)} bytes: {error}") from None


def _flat(data: Bytes) -> memoryview:
    return memoryview(data).cast("B")
