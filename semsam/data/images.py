"""Image bytes to RGB arrays and back.

What belongs to annotations stays in the pixels as stored; a person's own photo (`read_photo`) is turned as its EXIF
says, so that it lies as every viewer shows it.
"""

from __future__ import annotations

import io
import os

import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from semsam.storage import read_file

Bytes = bytes | bytearray | memoryview
# A path or `s3://` URI, a file's bytes, an opened image, or its pixels.
Photo = str | os.PathLike[str] | Bytes | Image.Image | np.ndarray


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
    with _open(data) as image:
        return _as_rgb(image, f"broken image of {len(_flat(data))} bytes")


def read_photo(photo: Photo) -> UInt8[np.ndarray, "h w 3"]:
    """A photo as RGB, turned and mirrored as its EXIF says.

    Grey is repeated over the channels, transparency ignored, and of 16 bits the upper 8 are kept, as in Pillow's own
    reading of 16-bit colour.  An array is uint8 or uint16, [height, width] or with 1, 3 or 4 channels last.  Raises
    `ValueError`, beginning with the path where there is one, for what is missing, no image, cut short or empty.
    """
    if isinstance(photo, np.ndarray):
        return _array_as_rgb(photo)
    if isinstance(photo, Image.Image):
        return _turned(_as_rgb(photo, "broken image"), _orientation(photo))
    if isinstance(photo, bytes | bytearray | memoryview):
        return _read_photo_bytes(photo)
    path = os.fspath(photo)
    try:
        data = read_file(path)
    except OSError as error:
        raise ValueError(str(error)) from None
    try:
        return _read_photo_bytes(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_photo_bytes(data: Bytes) -> UInt8[np.ndarray, "h w 3"]:
    rgb = read_image_any(data)
    with _open(data) as image:
        return _turned(rgb, _orientation(image))


def _array_as_rgb(array: Shaped[np.ndarray, "*n"]) -> UInt8[np.ndarray, "h w 3"]:
    pixels = (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(
            "an image is uint8 or uint16, [height, width] or with 1, 3 or 4 channels last, "
            f"not {array.dtype} {list(array.shape)}"
        )
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]


def _open(data: Bytes) -> Image.Image:
    flat = _flat(data)
    try:
        return Image.open(io.BytesIO(flat))
    except UnidentifiedImageError:  # Its text holds an address, which would differ from run to run.
        raise ValueError(f"broken image of {len(flat)} bytes: not of a known format") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsing runs into: OSError, SyntaxError, ...
        raise ValueError(f"broken image of {len(flat)} bytes: {error}") from None


def _as_rgb(image: Image.Image, fault: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        if image.mode == "F":
            raise ValueError("floating-point pixels have no known range; convert them to 8 bits")
        if image.mode.startswith("I"):  # 16 bits, in which Pillow's own conversion would cut everything beyond 255.
            return _array_as_rgb(np.asarray(image).clip(0, 65535).astype(np.uint16))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct way.
        return np.array(image.convert("RGB"))
    except Exception as error:  # As above: pixels are parsed only now.
        raise ValueError(f"{fault}: {error}") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF says nothing; the pixels may be whole all the same.
        return 1


def _turned(rgb: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The pixels as EXIF's orientation (1 to 8; others mean nothing) wants them shown."""
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


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
