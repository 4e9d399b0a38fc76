"""JPEG bytes to arrays: broken ones are errors, reductions have the sizes that alignment relies on."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import ExifTags, Image, ImageOps

from semsam.data.images import (
    decode_jpeg,
    decode_jpeg_eighths,
    decode_jpeg_reduced,
    encode_jpeg,
    jpeg_size,
    read_image_any,
    read_photo,
)


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.integers(0, 256, (75, 133, 3), dtype=np.uint8), (0, 0), 4)


def as_file(image: np.ndarray, kind: str, mode: str = "RGB") -> bytes:
    return as_file_of(Image.fromarray(image).convert(mode), kind)


def as_file_of(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_lies_as_its_exif_says(image: np.ndarray, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, exif=exif)
    shown = np.array(ImageOps.exif_transpose(Image.open(file)))
    found = read_photo(file.getvalue())
    assert found.shape == shown.shape
    assert np.abs(found.astype(int) - shown).max() <= (3 if kind == "JPEG" else 0)  # Two decoders of JPEG.
    np.testing.assert_array_equal(read_photo(Image.open(file)), shown)
    assert read_image_any(file.getvalue()).shape == image.shape  # An annotation's image stays as it is stored.


def test_a_photo_comes_from_wherever_it_is(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(as_file(image, "PNG"))
    for photo in (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), Image.open(path), image):
        np.testing.assert_array_equal(read_photo(photo), image)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_half(kind: str) -> None:
    grey = np.linspace(0, 65535, 60, dtype=np.uint16).reshape(6, 10)
    for photo in (as_file_of(Image.fromarray(grey), kind), grey, grey[..., None]):
        found = read_photo(photo)
        assert found.shape == (6, 10, 3)
        np.testing.assert_array_equal(found[..., 1], grey >> 8)


def test_transparency_is_ignored(image: np.ndarray) -> None:
    alpha = np.dstack([image, np.zeros(image.shape[:2], np.uint8)])
    for photo in (alpha, as_file_of(Image.fromarray(alpha), "PNG")):
        np.testing.assert_array_equal(read_photo(photo), image)
    palette = Image.fromarray(image).quantize(16)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_photo(file.getvalue()), np.array(palette.convert("RGB")))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (1, 1, 3), (1, 4000, 3)])
def test_arrays_become_rgb(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = read_photo(array)
    assert found.shape == (*shape[:2], 3)
    np.testing.assert_array_equal(found[..., 0], array if array.ndim == 2 else array[..., 0])


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3)), np.zeros(4, np.uint8)],
    ids=["two channels", "no pixel", "float64", "a row"],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an image is uint8 or uint16.*not "):
        read_photo(array)


def test_what_is_no_photo_is_named(tmp_path: Path, image: np.ndarray) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("no image")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(encode_jpeg(image)[:-100])
    with pytest.raises(ValueError, match=r"notes\.jpg: broken image of 8 bytes: not of a known format"):
        read_photo(text)
    with pytest.raises(ValueError, match=r"cut\.jpg: broken JPEG"):
        read_photo(cut)
    with pytest.raises(ValueError, match=r"missing\.jpg: no such file"):
        read_photo(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match="a folder, not a file"):
        read_photo(tmp_path)
    with pytest.raises(ValueError, match="broken image of 0 bytes"):
        read_photo(b"")
    with pytest.raises(ValueError, match="floating-point pixels"):
        read_photo(Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(ValueError, match="expected a local path or s3://"):
        read_photo("http://example.org/photo.jpg")
