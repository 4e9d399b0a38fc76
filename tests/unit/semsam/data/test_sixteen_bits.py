"""Values of 8 to 14 bits in 16 make a picture; those that use all 16 keep their upper half."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from semsam.data.images import read_photo


def picture(bits: int, channels: int) -> np.ndarray:
    """Values from 0 to the largest of so many bits."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (24, 31, channels), np.uint16)
    values[0, 0] = 2**bits - 1
    return values[..., 0] if channels == 1 else values


def encoded(values: np.ndarray, kind: str) -> bytes:
    order = [2, 1, 0, 3][: values.shape[2]] if values.ndim == 3 else None
    return cv2.imencode(kind, values if order is None else values[..., order])[1].tobytes()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [".png", ".tif"])
def test_the_upper_eight_of_the_bits_in_use_are_kept(kind: str, channels: int, bits: int, tmp_path: Path) -> None:
    values = picture(bits, channels)
    if channels == 4:
        values[..., 3] = 65535  # Opaque, which says nothing about the colours.
    colours = np.repeat(values[..., None], 3, axis=2) if channels == 1 else values[..., :3]
    expected = colours >> (bits - 8)
    path = tmp_path / f"photo{kind}"
    path.write_bytes(encoded(values, kind))
    with Image.open(path) as opened:
        for photo in (path, path.read_bytes(), opened, values, values.astype(">u2")):
            found = read_photo(photo)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected)


def test_a_grey_image_that_is_loaded_already_keeps_its_values() -> None:
    grey = picture(12, 1)
    loaded = Image.open(io.BytesIO(encoded(grey, ".png")))
    loaded.load()
    np.testing.assert_array_equal(read_photo(loaded)[..., 1], grey >> 4)


def test_another_page_of_a_tiff_is_the_one_that_was_chosen() -> None:
    pages = [picture(12, 3), picture(10, 3)]
    data = cv2.imencodemulti(".tif", pages)[1].tobytes()
    with Image.open(io.BytesIO(data)) as opened:
        opened.seek(1)
        np.testing.assert_array_equal(read_photo(opened), pages[1][..., ::-1] >> 2)
        assert np.array(opened).shape == (24, 31, 3)  # It can still be loaded.
    np.testing.assert_array_equal(read_photo(data), pages[0][..., ::-1] >> 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_tiffs_are_turned_once(orientation: int) -> None:
    grey = picture(12, 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file, eight = io.BytesIO(), io.BytesIO()
    Image.fromarray(grey).save(file, "TIFF", exif=exif)
    Image.fromarray((grey >> 4).astype(np.uint8)).save(eight, "TIFF", exif=exif)
    np.testing.assert_array_equal(read_photo(file.getvalue()), read_photo(eight.getvalue()))


@pytest.mark.parametrize("value", [-1, 65_536])
def test_values_beyond_sixteen_bits_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="beyond 16 bits"):
        read_photo(Image.fromarray(np.full((4, 4), value, np.int32)))


def test_a_black_photo_is_black() -> None:
    assert not read_photo(np.zeros((4, 4, 3), np.uint16)).any()
