"""JPEG bytes to arrays: broken ones are errors, reductions have the sizes that alignment relies on."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from semsam.data.images import (
    decode_jpeg,
    decode_jpeg_eighths,
    decode_jpeg_reduced,
    encode_jpeg,
    jpeg_size,
    read_image_any,
)


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.integers(0, 256, (75, 133, 3), dtype=np.uint8), (0, 0), 4)


def as_file(image: np.ndarray, kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind)
    return file.getvalue()


def test_an_encoded_image_comes_back_nearly_as_it_was(image: np.ndarray) -> None:
    decoded = decode_jpeg(encode_jpeg(image))
    assert decoded.dtype == np.uint8
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() < 2


def test_encoding_is_deterministic_and_follows_quality(image: np.ndarray) -> None:
    assert encode_jpeg(image) == encode_jpeg(image.copy(order="F"))
    assert len(encode_jpeg(image, 50)) < len(encode_jpeg(image, 92))


def test_the_colours_are_red_green_blue() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_allclose(decode_jpeg(encode_jpeg(red)).mean((0, 1)), [254, 0, 0], atol=2)
    np.testing.assert_array_equal(read_image_any(as_file(red, "PNG")), red)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: memoryview(pa.py_buffer(data))])
def test_any_buffer_of_bytes_is_taken(image: np.ndarray, wrap) -> None:
    np.testing.assert_array_equal(decode_jpeg(wrap(encode_jpeg(image))), decode_jpeg(encode_jpeg(image)))


@pytest.mark.parametrize("keep", [0, 1, 2, 100, 0.5, 0.99, -2])
def test_a_jpeg_cut_short_is_an_error(image: np.ndarray, keep: float) -> None:
    data = encode_jpeg(image)
    cut = data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep]
    with pytest.raises(ValueError, match=r"broken JPEG of \d+ bytes"):
        decode_jpeg(cut)
    with pytest.raises(ValueError, match="broken"):
        read_image_any(cut)


def test_padding_between_segments_costs_nothing(image: np.ndarray) -> None:
    data = encode_jpeg(image)
    np.testing.assert_array_equal(decode_jpeg(data[:-2] + b"\0\0\0" + data[-2:]), decode_jpeg(data))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_what_is_no_image_is_an_error(image: np.ndarray, kind: str) -> None:
    data = as_file(image, kind)
    np.testing.assert_array_equal(read_image_any(data), image)
    with pytest.raises(ValueError, match="broken image"):
        read_image_any(data[: len(data) // 2])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_modes_become_rgb(image: np.ndarray, mode: str) -> None:
    assert read_image_any(as_file(image, "PNG", mode)).shape == image.shape


def test_a_grey_jpeg_has_three_equal_channels(image: np.ndarray) -> None:
    decoded = read_image_any(as_file(image, "JPEG", "L"))
    assert decoded.shape == image.shape
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_size_comes_from_the_header(image: np.ndarray) -> None:
    assert jpeg_size(encode_jpeg(image)) == (75, 133)
    with pytest.raises(ValueError, match="broken JPEG"):
        jpeg_size(b"GIF89a")


@pytest.mark.parametrize("eighths", range(1, 9))
def test_reductions_round_broken_pixels_up(image: np.ndarray, eighths: int) -> None:
    reduced = decode_jpeg_eighths(encode_jpeg(image), eighths)
    assert reduced.shape[:2] == (-(-75 * eighths // 8), -(-133 * eighths // 8))


@pytest.mark.parametrize(("min_long_side", "expected"), [(1000, 133), (133, 133), (100, 100), (60, 67), (1, 17)])
def test_reduced_images_keep_their_long_side(image: np.ndarray, min_long_side: int, expected: int) -> None:
    assert max(decode_jpeg_reduced(encode_jpeg(image), min_long_side).shape) == expected
    turned = encode_jpeg(np.ascontiguousarray(image.transpose(1, 0, 2)))
    assert max(decode_jpeg_reduced(turned, min_long_side).shape) == expected
