"""Image bytes to arrays and back.

What belongs to annotations stays in the pixels as stored; a person's own photo (`read_photo`) is turned as its EXIF
says, so that it lies as every viewer shows it.  All that reads a stranger's bytes looks at their header first and
raises `ImageTooLarge` for more than `max_pixels`, before any pixel is decoded.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Int32, Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from semsam.data import png
from semsam.data.shards import open_filesystem
from semsam.data.sixteen_bits import sixteen_bit_values, to_eight_bits

# Scans and panoramas of 200 megapixels are real; decoded, this many take 0.8 GB.
MAX_PIXELS = 2**28
# Pillow's own limit would warn of a sound photo of 90 megapixels and refuse one of 180.
Image.MAX_IMAGE_PIXELS = None
# Of all that Pillow knows; the others run a program (EPS) or hold an image of any size behind a small header (ICO).
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "PPM", "JPEG2000")
_LONGEST_JPEG_SIDE = 65500

Bytes = bytes | bytearray | memoryview
# A path or `s3://` URI, a file's bytes, an opened image, or its pixels.
Photo = str | os.PathLike[str] | Bytes | Image.Image | np.ndarray


class ImageTooLarge(ValueError):  # noqa: N818 - what callers count, as they count a `BadSample`.
    """The image has more pixels than the reader may decode; told from its header alone."""


def decode_jpeg(data: Bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The image as RGB, grey ones repeated over the channels, however large: a record's size was checked long ago.

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
    except KeyError:  # A sampling for which the library lacks a name.
        raise ValueError(f"broken JPEG of {len(_flat(data))} bytes: unknown subsampling") from None
    except ValueError as error:
        raise ValueError(f"broken JPEG of {len(_flat(data))} bytes: {error}") from None
    return int(height), int(width)


def is_plain_jpeg(data: Bytes) -> bool:
    """Whether these bytes are for `decode_jpeg`: a JPEG, broken or not, of one of the usual colour samplings."""
    if bytes(_flat(data)[:2]) != b"\xff\xd8":
        return False
    try:
        jpeg_size(data)
    except ValueError as error:
        return "subsampling" not in str(error)
    return True


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int = 92) -> bytes:
    """An RGB image as JPEG; equal pixels give equal bytes on one version of the library."""
    if max(image.shape) > _LONGEST_JPEG_SIDE:
        raise ImageTooLarge(f"image too large: {_size(*image.shape[:2])}, and a JPEG has {_LONGEST_JPEG_SIDE} a side")
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420")
    )


def read_image_any(data: Bytes, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """An image of any common format as RGB, its pixels where they are stored: PNG, TIFF, JPEGs of any sampling, ...

    Raises `ValueError` ("broken JPEG ..." or "broken image ...") and `ImageTooLarge`.
    """
    if is_plain_jpeg(data):
        check_pixels(*jpeg_size(data), max_pixels)
        return decode_jpeg(data)
    with _open(data, max_pixels) as image:
        return _stored(image, _fault(data))[0]


def decode_label_map(data: Bytes, max_pixels: int = MAX_PIXELS) -> Int32[np.ndarray, "h w"]:
    """The labels of a class PNG: grey values of any depth, or the indices into its palette, whatever colours it has.

    Raises `ValueError` that names what the file is instead, "broken image ...", and `ImageTooLarge`.
    """
    with _open(data, max_pixels) as image:
        coding, bits = _coding(image, data)
        if coding not in ("greyscale", "palette"):
            raise ValueError(f"a class PNG has one channel, this is {coding} of {bits} bits")
        values = _load(image, _fault(data)).astype(np.int32)
    # Pillow spreads 2 and 4 bits of grey over 0 to 255.
    return values // (255 // (2**bits - 1)) if coding == "greyscale" and bits in (2, 4) else values


def decode_rgb_map(data: Bytes, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """The channels of a PNG that codes segments as colours, exactly as they were written.

    A palette stands for its colours, and alpha may be there as long as nothing is transparent.  A grey PNG would make
    three equal channels out of one, which no coding means, unless it is black.  Raises `ValueError` that names what the
    file is instead, "broken image ...", and `ImageTooLarge`.
    """
    with _open(data, max_pixels) as image:
        coding, bits = _coding(image, data)
        values = _load(image, _fault(data))
        colours = np.array(image.getpalette("RGB") or (), np.uint8).reshape(-1, 3)
    if coding == "greyscale" and not values.any():
        return np.zeros((*values.shape, 3), np.uint8)
    if coding == "palette":
        if values.max() >= len(colours):
            raise ValueError(f"pixel {values.max()} is beyond the palette's {len(colours)} colours")
        return colours[values]
    if bits == 8 and (coding == "RGB" or (coding == "RGBA" and (values[..., 3] == 255).all())):
        return values[..., :3]
    transparent = ", partly transparent" if coding == "RGBA" and bits == 8 else ""
    raise ValueError(f"an RGB-coded PNG has three channels of 8 bits, this is {coding} of {bits} bits{transparent}")


def read_photo(photo: Photo, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """A photo as RGB, turned and mirrored as its EXIF says, once.

    Grey is repeated over the channels, transparency ignored, and of an animation the first image taken.  An array is
    uint8 or uint16, [height, width] or with 1, 3 or 4 channels last.

    16-bit values, grey, colour or array, are taken to have the smallest of 8, 10, 12, 14 and 16 bits that holds the
    largest of them, and the upper 8 of those are kept: a photo that uses its 16 bits keeps the upper half, and one that
    is merely dark comes out brighter.

    Raises `ValueError`, beginning with the path where there is one, for what is missing, no image, cut short, empty or
    too large (`ImageTooLarge`; an array is decoded already, and has no limit).
    """
    if isinstance(photo, np.ndarray):
        return _array_as_rgb(photo)
    if isinstance(photo, Image.Image):
        check_pixels(photo.height, photo.width, max_pixels)
        return _turned(*_stored(photo, "broken image"))
    if isinstance(photo, bytes | bytearray | memoryview):
        return _read_photo_bytes(photo, max_pixels)
    path = _path(photo)
    filesystem, place = open_filesystem(path)
    try:
        with filesystem.open_input_file(place) as file:
            data = file.read()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    try:
        return _read_photo_bytes(data, max_pixels)
    except ImageTooLarge as error:
        raise ImageTooLarge(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Raise `ImageTooLarge` for an image of more than `max_pixels`."""
    if height * width > max_pixels:
        raise ImageTooLarge(f"image too large: {_size(height, width)}, more than max_pixels = {max_pixels}")


def _size(height: int, width: int) -> str:
    return f"{height} x {width} pixels (height x width)"


def _path(photo: Any) -> str:
    if isinstance(photo, str | os.PathLike):
        return os.fsdecode(photo)
    if type(photo).__module__.partition(".")[0] == "torch":
        raise ValueError(
            "a torch tensor is no image here: pass tensor.permute(1, 2, 0).cpu().numpy() of [3, h, w] uint8"
        )
    raise ValueError(f"an image is a path, a file's bytes, a PIL image or an array, not {type(photo).__name__}")


def _read_photo_bytes(data: Bytes, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    with _open(data, max_pixels) as image:
        if is_plain_jpeg(data):
            return _turned(read_image_any(data, max_pixels), _orientation(image))
        return _turned(*_stored(image, _fault(data)))


def _stored(image: Image.Image, fault: str) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The pixels as they are stored, and the orientation in which EXIF wants them shown."""
    if image.format != "TIFF":
        return _as_rgb(image, fault), _orientation(image)
    # Pillow, as OpenCV, turns TIFFs as it loads them, and nothing else; then it forgets that there was an orientation.
    orientation = _orientation(image)
    return _turned(_as_rgb(image, fault), {6: 8, 8: 6}.get(orientation, orientation)), orientation


def _array_as_rgb(array: Shaped[np.ndarray, "*n"]) -> UInt8[np.ndarray, "h w 3"]:
    pixels = array[:, :, None] if array.ndim == 2 else array
    is_16_bit = pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2
    if (
        not (is_16_bit or pixels.dtype == np.uint8)
        or pixels.ndim != 3
        or pixels.shape[2] not in (1, 3, 4)
        or not array.size
    ):
        raise ValueError(
            "an image is uint8 or uint16, [height, width] or with 1, 3 or 4 channels last, "
            f"not {array.dtype} {list(array.shape)}"
        )
    colours = pixels[:, :, :3]
    colours = to_eight_bits(colours) if is_16_bit else colours
    return np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours


def _coding(image: Image.Image, data: Bytes) -> tuple[str, int]:
    return png.coding(_flat(data)) if image.format == "PNG" else (f"{image.format}", 8)


def _open(data: Bytes, max_pixels: int) -> Image.Image:
    flat = _flat(data)
    try:
        if bytes(flat[: len(png.SIGNATURE)]) == png.SIGNATURE:
            png.check_chunks(flat)
        image = Image.open(io.BytesIO(flat), formats=_FORMATS)
    except UnidentifiedImageError:  # Its text holds an address, which would differ from run to run.
        raise ValueError(f"{_fault(data)}: not of a known format") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsing runs into: OSError, SyntaxError, ...
        raise ValueError(f"{_fault(data)}: {error}") from None
    check_pixels(image.height, image.width, max_pixels)
    return image


def _fault(data: Bytes) -> str:
    return f"broken image of {len(_flat(data))} bytes"


def _load(image: Image.Image, fault: str) -> Shaped[np.ndarray, "h w *c"]:
    try:
        return np.asarray(image)
    except Exception as error:  # As above: pixels are parsed only now.
        raise ValueError(f"{fault}: {error}") from None


def _as_rgb(image: Image.Image, fault: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        if image.mode == "F":
            raise ValueError("floating-point pixels have no known range; convert them to 8 bits")
        values = sixteen_bit_values(image)
        if values is not None:
            return _array_as_rgb(values)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct way.
        return _array_as_rgb(np.array(image.convert("RGB")))
    except Exception as error:  # As above.
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
