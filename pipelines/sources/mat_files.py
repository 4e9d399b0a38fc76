"""MATLAB's .mat files of version 5: reading one, and looking into its structs without trusting that they are any.

scipy gives every field as some array; the functions here give what was wanted of it, or a `ValueError` that shows what
is there instead.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.io import loadmat

MAX_BYTES = 2**28  # Inflated; the masks of a VOC image take a hundredth of this.
_HEADER_BYTES = 128
_COMPRESSED = 15


def load_variable(data: bytes, name: str, max_bytes: int = MAX_BYTES) -> Any:
    """One variable of a .mat file.  Raises `ValueError`, whatever is wrong with the file."""
    if data[:4] == b"\x89HDF" or data[512:516] == b"\x89HDF" or data[:10] == b"MATLAB 7.3":
        raise ValueError("a .mat file of MATLAB 7.3, which is HDF5; save it with -v7")
    whole = _inflated(data, max_bytes)
    try:
        found = loadmat(io.BytesIO(whole), variable_names=[name])
    except Exception as error:  # Its parser raises whatever it runs into: TypeError, MemoryError, MatReadError, ...
        raise ValueError(f"no readable .mat file: {error!r}") from None
    if name not in found:
        raise ValueError(f"no variable {name!r}")
    return found[name]


def struct_rows(value: Any, fields: Sequence[str]) -> list[Any]:
    """The rows of a struct array that has these fields."""
    names = value.dtype.names if isinstance(value, np.ndarray) else None
    if not names:
        raise ValueError(f"no struct array but {shown(value)}")
    for field in fields:
        if field not in names:
            raise ValueError(f"no field {field!r} among {', '.join(names)}")
    return list(value.ravel())


def is_empty(value: Any) -> bool:
    """Whether this is MATLAB's `[]`, which stands for no rows of anything."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.size == 0


def whole_number(value: Any) -> int:
    """A single whole number, or one written as text."""
    if isinstance(value, np.ndarray) and value.size == 1:
        number = value.ravel()[0]
        if value.dtype.kind == "U" and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", str(number)):
            return int(number)
        if value.dtype.kind in "iuf" and -(2**53) < number < 2**53 and number == int(number):
            return int(number)
    raise ValueError(f"no whole number but {shown(value)}")


def text(value: Any) -> str:
    """A line of text, not empty."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1 and str(value.ravel()[0]).strip():
        return str(value.ravel()[0])
    raise ValueError(f"no text but {shown(value)}")


def mask(value: Any) -> Bool[np.ndarray, "h w"]:
    """A mask whose pixels are 0 and, inside, all one larger number."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.ndim != 2 or not value.size:
        raise ValueError(f"no mask but {shown(value)}")
    inside: Bool[np.ndarray, "h w"] = value != 0
    largest = value.max()
    if not 0 <= largest < np.inf or (value[inside] != largest).any():
        raise ValueError(f"no mask but {shown(value)} with values from {value.min()} to {value.max()}")
    return inside


def shown(value: Any) -> str:
    """What a value is, in a few words."""
    if not isinstance(value, np.ndarray):
        return f"{type(value).__name__}"
    kind = "struct" if value.dtype.names else {"O": "cell", "U": "text"}.get(value.dtype.kind, value.dtype.name)
    content = f" {value.ravel().tolist()!r:.60}" if kind not in ("struct", "cell") and value.size <= 4 else ""
    return f"{kind} of size {list(value.shape)}{content}"


def _inflated(data: bytes, max_bytes: int) -> bytes:
    """The file with its variables no longer compressed: a few bytes can stand for gigabytes, so these are counted."""
    order = ">" if data[126:128] == b"MI" else "<"
    parts, place, room = [data[:_HEADER_BYTES]], _HEADER_BYTES, max_bytes
    while place + 8 <= len(data):
        kind, length = struct.unpack_from(f"{order}II", data, place)
        part = data[place : place + 8 + length]
        if kind == _COMPRESSED:
            part = _decompress(part[8:], room)
        parts.append(part)
        room -= len(part)
        place += 8 + length
    return b"".join(parts)


def _decompress(data: bytes, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, max(max_bytes, 1))
    except zlib.error as error:
        raise ValueError(f"damaged, or cut short: {error}") from None
    if inflater.unconsumed_tail:
        raise ValueError(f"more than {max_bytes} bytes when decompressed")
    if not inflater.eof:
        raise ValueError("cut short")
    return found
