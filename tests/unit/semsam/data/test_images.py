"""JPEG bytes to arrays: broken ones are errors, reductions have the sizes that alignment relies on."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import ExifTags, Image

from semsam.data.images import (
    MAX_PIXELS,
    ImageTooLarge,
    decode_jpeg,
    decode_jpeg_eighths,
    decode_jpeg_reduced,
    encode_jpeg,
    is_plain_jpeg,
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


# What the orientations ask of the stored pixels (TIFF 6.0, page 36): 6 says that their first row is the right side, ...
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF deflated"])
def test_a_photo_is_turned_once_however_it_comes(
    image: np.ndarray, kind: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "photo"
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "TIFF deflated": {"compression": "tiff_deflate"},
    }.get(kind, {})
    Image.fromarray(image).save(path, kind.split()[0], exif=exif, **options)
    upright = UPRIGHT[orientation](image)
    near = 5 if kind == "JPEG" else 0
    with Image.open(path) as opened, Image.open(path) as loaded, Image.open(path) as asked, Image.open(path) as copied:
        loaded.load()
        asked.getexif()
        for photo in (path, path.read_bytes(), opened, loaded, asked, copied.copy()):
            found = read_photo(photo)
            assert found.shape == upright.shape
            assert np.abs(found.astype(int) - upright).max() <= near
    # An annotation's image stays as it is stored.
    assert np.abs(read_image_any(path.read_bytes()).astype(int) - image).max() <= near


def test_a_photo_comes_from_wherever_it_is(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(as_file(image, "PNG"))
    for photo in (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), Image.open(path), image):
        np.testing.assert_array_equal(read_photo(photo), image)


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


class Tensor:
    """Stands for torch's, which nothing of semsam.data imports."""


Tensor.__module__ = "torch"


@pytest.mark.parametrize("photo", [None, 3, [[0, 0], [0, 0]], (b"",), Tensor()])
def test_what_is_neither_path_nor_pixels_is_refused(photo: object) -> None:
    with pytest.raises(ValueError, match=r"torch tensor.*permute|an image is a path.*, not (NoneType|int|list|tuple)"):
        read_photo(photo)  # type: ignore[arg-type]


def large_jpeg(side: int) -> bytes:
    """A JPEG whose header says so, and nothing else."""
    data = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = side.to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.parametrize("side", [65_500, 65_535])
def test_an_image_too_large_is_known_by_its_header(side: int, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(large_jpeg(side))
    message = rf"image too large: {side} x {side} pixels.*more than max_pixels = {MAX_PIXELS}"
    for read in (read_image_any, read_photo):
        with pytest.raises(ImageTooLarge, match=message):
            read(path.read_bytes())
    with pytest.raises(ImageTooLarge, match=rf"large\.jpg: {message}"):
        read_photo(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"])
def test_the_limit_in_pixels_holds_for_every_format(image: np.ndarray, kind: str) -> None:
    data = as_file(image, kind)
    pixels = image.shape[0] * image.shape[1]
    assert read_photo(data, pixels).shape == read_image_any(data, pixels).shape == image.shape
    for photo in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(ImageTooLarge, match="75 x 133"):
            read_photo(photo, pixels - 1)
    with pytest.raises(ImageTooLarge):
        read_image_any(data, pixels - 1)
    assert read_photo(image, 1) is not None  # Pixels that are decoded already.


def test_pillow_has_no_limit_of_its_own(image: np.ndarray) -> None:
    data = bytearray(as_file(image, "TIFF"))
    width, height = (data.index(bytes(tag)) + 8 for tag in ([0, 1, 4, 0, 1, 0, 0, 0], [1, 1, 4, 0, 1, 0, 0, 0]))
    data[width : width + 4], data[height : height + 4] = (side.to_bytes(4, "little") for side in (20_000, 10_000))
    with pytest.raises(ValueError, match="broken image.*not processed|truncated"):  # Its pixels are for a smaller one.
        read_image_any(bytes(data))


@pytest.mark.slow
def test_a_sound_photo_of_two_hundred_megapixels_is_read() -> None:
    data = as_file_of(Image.new("1", (20_000, 10_000), 1), "PNG")
    assert read_image_any(data)[-1, -1].tolist() == [255] * 3


def test_what_a_jpeg_cannot_hold_is_too_large_for_one() -> None:
    with pytest.raises(ImageTooLarge, match="1 x 65501 pixels"):
        encode_jpeg(np.zeros((1, 65_501, 3), np.uint8))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_image_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(
        file, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert read_photo(file.getvalue())[0, 0].tolist() == [255, 0, 0]
    with Image.open(file) as opened:
        opened.seek(1)
        assert read_photo(opened)[0, 0].tolist() == [0, 0, 255]  # Unless its owner chose another.


@pytest.mark.parametrize(
    ("mode", "kind"), [("LA", "PNG"), ("PA", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("1", "TIFF")]
)
def test_unusual_modes_become_rgb(image: np.ndarray, mode: str, kind: str) -> None:
    picture = Image.fromarray(image // 4).convert(
        "P" if mode == "PA" else mode
    )  # Dark: an inverted one would be bright.
    file = io.BytesIO()
    picture.save(file, kind, **({"transparency": 3} if mode == "PA" else {}))
    found = read_photo(file.getvalue())
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - np.array(picture.convert("RGB"))).max() <= (20 if kind == "JPEG" else 0)


def test_a_jpeg_of_a_sampling_without_a_name_is_an_image_all_the_same(image: np.ndarray) -> None:
    data = bytearray(as_file_of(Image.fromarray(image), "JPEG"))
    data[data.index(b"\xff\xc0") + 11] = 0x14  # 4:4:1
    assert not is_plain_jpeg(bytes(data))
    assert read_image_any(bytes(data)).shape == image.shape
    with pytest.raises(ValueError, match="subsampling"):
        jpeg_size(bytes(data))


@pytest.mark.parametrize("kind", ["ICO", "TGA"])
def test_formats_nobody_takes_photos_in_are_not_opened(image: np.ndarray, kind: str) -> None:
    with pytest.raises(ValueError, match="not of a known format"):
        read_photo(as_file(image, kind))
