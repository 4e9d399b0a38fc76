"""PNGs as annotations: labels and colour codes come out as they were written, or the file is refused by name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from semsam.data.images import ImageTooLarge, decode_label_map, decode_rgb_map, read_image_any, read_photo
from semsam.data.png import SIGNATURE

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, colour: int, bits: int, *extra: bytes, palette: np.ndarray = COLOURS) -> bytes:
    """A PNG written without any library's ideas of what is good for it; `values` are [h w] or [h w c]."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1).astype(">u2" if bits == 16 else np.uint8)
    if bits < 8:
        of_bits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(of_bits.reshape(height, -1).astype(np.uint8), axis=1)
    if colour == PALETTE:
        extra = (chunk(b"PLTE", palette[: 2**bits].tobytes()), *extra)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def values_of(bits: int, channels: int = 1) -> np.ndarray:
    values = np.random.default_rng(bits).integers(0, 2**bits, (13, 21, channels))
    return values[..., 0] if channels == 1 else values


@pytest.mark.parametrize(("colour", "bits"), [(PALETTE, 1), (PALETTE, 2), (PALETTE, 4), (PALETTE, 8)])
@pytest.mark.parametrize("extra", [(), (chunk(b"tRNS", b"\0\x80"),), (chunk(b"gAMA", struct.pack(">I", 45_455)),)])
def test_the_labels_of_a_palette_are_its_indices(colour: int, bits: int, extra: tuple[bytes, ...]) -> None:
    values = values_of(bits)
    np.testing.assert_array_equal(decode_label_map(png(values, colour, bits, *extra)), values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("extra", [(), (chunk(b"tRNS", b"\0\0"),), (chunk(b"gAMA", struct.pack(">I", 100_000)),)])
def test_the_labels_of_a_grey_png_are_its_values(bits: int, extra: tuple[bytes, ...]) -> None:
    values = values_of(bits)
    np.testing.assert_array_equal(decode_label_map(png(values, GREY, bits, *extra)), values)


def test_interlaced_labels_are_read_alike() -> None:
    """Each of Adam7's passes as an image of its own, one after the other."""
    values = values_of(8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [values[y::dy, x::dx].astype(np.uint8) for y, x, dy, dx in passes]
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for part in parts for row in part if len(row)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 21, 13, 8, GREY, 0, 0, 1))
    data = SIGNATURE + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_label_map(data), values)


@pytest.mark.parametrize(
    ("colour", "bits", "name"),
    [(RGB, 8, "RGB"), (RGB, 16, "RGB of 16"), (GREY_ALPHA, 8, "greyscale with alpha"), (RGBA, 8, "RGBA")],
)
def test_labels_of_more_than_one_channel_are_refused_by_name(colour: int, bits: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"a class PNG has one channel, this is {name}"):
        decode_label_map(png(values_of(bits, CHANNELS[colour]), colour, bits))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("decode", [decode_label_map, decode_rgb_map])
def test_other_formats_are_no_maps(decode, kind: str) -> None:
    file = io.BytesIO()
    Image.new("L", (8, 6), 3).save(file, kind)
    with pytest.raises(ValueError, match=f"this is {kind}"):
        decode(file.getvalue())


def test_colour_codes_come_as_they_were_written() -> None:
    values = values_of(8, 3)
    np.testing.assert_array_equal(decode_rgb_map(png(values, RGB, 8)), values)
    transparent_colour = chunk(b"tRNS", struct.pack(">3H", *values[0, 0]))
    np.testing.assert_array_equal(decode_rgb_map(png(values, RGB, 8, transparent_colour)), values)
    opaque = np.dstack([values, np.full((13, 21), 255)])
    np.testing.assert_array_equal(decode_rgb_map(png(opaque, RGBA, 8)), values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("extra", [(), (chunk(b"tRNS", b"\0\x80"),)])
def test_a_palette_stands_for_its_colours(bits: int, extra: tuple[bytes, ...]) -> None:
    indices = values_of(bits)
    np.testing.assert_array_equal(decode_rgb_map(png(indices, PALETTE, bits, *extra)), COLOURS[indices])


@pytest.mark.parametrize(
    ("colour", "bits", "message"),
    [
        (GREY, 8, "this is greyscale of 8 bits"),
        (GREY, 16, "this is greyscale of 16 bits"),
        (GREY_ALPHA, 8, "this is greyscale with alpha of 8 bits"),
        (RGB, 16, "this is RGB of 16 bits"),
        (RGBA, 16, "this is RGBA of 16 bits"),
        (RGBA, 8, "this is RGBA of 8 bits, partly transparent"),
    ],
)
def test_what_is_no_colour_code_is_refused_by_name(colour: int, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"three channels of 8 bits, {message}"):
        decode_rgb_map(png(values_of(bits, CHANNELS[colour]), colour, bits))


def test_a_black_grey_png_codes_no_segment() -> None:
    np.testing.assert_array_equal(decode_rgb_map(png(np.zeros((4, 5), int), GREY, 1)), np.zeros((4, 5, 3)))


def test_an_index_beyond_the_palette_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel 2 is beyond the palette's 2 colours"):
        decode_rgb_map(png(np.full((4, 5), 2), PALETTE, 8, palette=COLOURS[:2]))


PICTURES = {
    "grey": png(values_of(8), GREY, 8, chunk(b"tRNS", b"\0\0"), chunk(b"gAMA", struct.pack(">I", 45_455))),
    "palette": png(values_of(4), PALETTE, 4, chunk(b"tRNS", b"\0"), chunk(b"tEXt", b"Title\0photo")),
    "RGB": png(values_of(8, 3), RGB, 8),
}


def decoders(name: str) -> list:
    return [read_image_any, read_photo, decode_rgb_map if name == "RGB" else decode_label_map]


@pytest.mark.parametrize("name", PICTURES)
def test_a_flipped_bit_in_any_chunk_is_noticed(name: str) -> None:
    data = PICTURES[name]
    for place in range(len(SIGNATURE), len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        for decode in decoders(name):
            with pytest.raises(ValueError, match=r"broken image of \d+ bytes: .*(checksum|cut short|IHDR)"):
                decode(bytes(damaged))


@pytest.mark.parametrize("name", PICTURES)
def test_a_png_cut_anywhere_is_broken_and_what_follows_its_end_is_ignored(name: str) -> None:
    data = PICTURES[name]
    for decode in decoders(name):
        for kept in range(len(data)):
            with pytest.raises(ValueError, match="broken image"):
                decode(data[:kept])
        np.testing.assert_array_equal(decode(data + b"whatever"), decode(data))


@pytest.mark.parametrize("decode", [decode_label_map, decode_rgb_map])
def test_a_map_too_large_is_known_by_its_header(decode) -> None:
    data = png(np.zeros((4, 5), int), GREY, 8)
    assert decode(data, 20).shape[:2] == (4, 5)
    with pytest.raises(ImageTooLarge, match=r"4 x 5 pixels.*max_pixels = 19"):
        decode(data, 19)
    header = struct.pack(">IIBBBBB", 65_500, 65_500, 8, GREY, 0, 0, 0)
    large = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    with pytest.raises(ImageTooLarge, match="65500 x 65500"):
        decode(large)


def test_texts_that_swell_are_refused() -> None:
    text = chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(2**22)))
    for decode in decoders("RGB"):
        with pytest.raises(ValueError, match="broken image"):
            decode(png(values_of(8, 3), RGB, 8, text))
