"""Images of more than 8 bits a channel.

Cameras and microscopes store 10, 12 or 14 bits in 16 without saying so, and the upper 8 of those 16 would be black.
PNG's sBIT is of no help: by its specification the values are spread over all 16 bits, whatever it says.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageFile


def to_eight_bits(values: UInt16[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """The upper 8 of as many bits as hold the largest value: 8, 10, 12, 14 or 16."""
    bits = next(bits for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    return (values >> (bits - 8)).astype(np.uint8)


def sixteen_bit_values(image: Image.Image) -> UInt16[np.ndarray, "h w *c"] | None:
    """The values of an image of 16 bits, grey or RGB, as `Image.load` would turn them; None for one of 8 bits.

    Raises `ValueError` for values that 16 bits do not hold.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError("pixels beyond 16 bits have no known range; convert them to 8 bits")
        return values.astype(np.uint16)
    return _colour(image) if isinstance(image, ImageFile.ImageFile) and _will_lose_bits(image) else None


def _will_lose_bits(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow would drop the lower 8 bits of each channel as it loads the image."""
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA") or not image.tile:
        return False
    return ";16" in str(image.tile[0].args)


def _colour(image: ImageFile.ImageFile) -> UInt16[np.ndarray, "h w 3"]:
    """The page of the file that the image stands at, read by OpenCV, which turns TIFFs as Pillow does."""
    if image.fp is None:
        raise ValueError("the image was closed before its pixels were read")
    place, page = image.fp.tell(), image.tell()
    image.fp.seek(0)
    data = np.frombuffer(image.fp.read(), np.uint8)
    image.fp.seek(place)
    _, pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
    if not pages or pages[0].dtype != np.uint16 or pages[0].shape[:2] != (image.height, image.width):
        raise ValueError("16-bit colour of an unusual kind; convert it to 8 bits")
    return np.asarray(pages[0][..., 2::-1])
