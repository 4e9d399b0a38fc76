"""PNG files chunk by chunk: decoders skip the checksum of the pixels, so that a damaged class map would be believed."""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CODINGS = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGBA"}


def check_chunks(data: memoryview) -> None:
    """Raise `ValueError` unless every chunk from the signature to IEND is there and has the checksum that it carries.

    What comes after IEND belongs to no PNG and is not looked at.
    """
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if place + 12 > len(data):
            raise ValueError(f"the PNG is cut short at byte {len(data)}")
        length, kind = struct.unpack_from(">I4s", data, place)
        if place == len(SIGNATURE) and (kind, length) != (b"IHDR", 13):
            raise ValueError(f"the PNG begins with {kind!r} instead of IHDR")
        end = place + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"the PNG is cut short in {kind!r}, at byte {len(data)}")
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"PNG chunk {kind!r} at byte {place} differs from its checksum")
        place = end + 4


def coding(data: memoryview) -> tuple[str, int]:
    """How a PNG that `check_chunks` passed codes its pixels, such as "palette", and the bits of each channel."""
    return _CODINGS.get(data[25], f"colour type {data[25]}"), data[24]
