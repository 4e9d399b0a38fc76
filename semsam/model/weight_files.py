"""Files of weights: our own, checked against what was noted of them, and other people's, without running any code.

A folder of ours has a sealed JSON file, `state.json` of a checkpoint or else `files.json`, with the size and CRC-32 of
every other file in it.  A folder with neither is somebody else's, and is read as it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import safetensors
import safetensors.torch
import torch
from pydantic import ConfigDict, with_config
from torch import Tensor

from semsam.data.sealed import SEAL, unseal_as
from semsam.storage import CHUNK, Folder

STATE_FILE, FILES_FILE = "state.json", "files.json"  # The first of them that is there counts.
# What the safetensors library and torch raise for a broken file.
_BROKEN = (safetensors.SafetensorError, LookupError, TypeError, ValueError, OverflowError, RuntimeError)
# In the order in which the library puts them into a file, from the last on.
_DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_DTYPES = list(_DTYPE_NAMES)


@dataclass(frozen=True)
class Fingerprint:
    """What a file is known by."""

    size: int
    crc32: int

    @staticmethod
    def of(data: bytes | Sequence[memoryview]) -> Fingerprint:
        """That of these bytes, one behind the other."""
        size = crc = 0
        for one in [data] if isinstance(data, bytes) else data:
            size, crc = size + len(one), zlib.crc32(one, crc)
        return Fingerprint(size, crc)

    def check(self, found: Fingerprint, path: str) -> None:
        """Raise `ValueError`, which names the file, where another was found."""
        if found.size != self.size:
            raise ValueError(f"{path}: damaged, or edited by hand: {found.size} bytes instead of {self.size}")
        if found != self:
            raise ValueError(f"{path}: damaged, or edited by hand: its bytes are not those that were written")


@dataclass(frozen=True)
class _State:
    """What a checkpoint's state says of files, among other things."""

    files: dict[str, Fingerprint]


@with_config(ConfigDict(extra="forbid"))  # Else a state that was moved here would pass.
@dataclass(frozen=True)
class _Listing:
    files: dict[str, Fingerprint]


def read_fingerprints(folder: Folder) -> dict[str, Fingerprint]:
    """What is noted of the files in a folder; empty where nothing is.  `ValueError` names a note that is damaged."""
    for name in (STATE_FILE, FILES_FILE):
        data, path = folder.read_if_there(name), f"{folder.path}/{name}"
        if data is not None and not _is_of_old(data):
            if name == FILES_FILE:
                return unseal_as(_Listing, data, path, "a list of the files beside it").files
            return unseal_as(_State, data, path, "a checkpoint's state").files
    return {}


def _is_of_old(note: bytes) -> bool:
    """Whether this is a checkpoint's state from before files were noted: their folders are read like other people's."""
    try:
        values = orjson.loads(note)
    except orjson.JSONDecodeError:
        return False
    return isinstance(values, dict) and not values.keys() & {"files", SEAL}


def read_checked(folder: Folder, name: str, expected: Fingerprint | None) -> bytes:
    """The bytes of a file.  `ValueError` names it where they are not the expected ones."""
    data = folder.read(name)
    if expected is not None:
        expected.check(Fingerprint.of(data), f"{folder.path}/{name}")
    return data


def read_own_tensors(folder: Folder, name: str, expected: Fingerprint | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file.  `ValueError` names it where its bytes are not the expected ones."""
    path = f"{folder.path}/{name}"
    try:
        if not folder.is_local:
            return safetensors.torch.load(read_checked(folder, name, expected))
        found = _fingerprint(folder, name)
        if expected is not None:
            expected.check(found, path)
        return safetensors.torch.load_file(path)  # Mapped: the weights are in memory once, not three times.
    except _BROKEN as error:
        if str(error).startswith(path):
            raise
        raise ValueError(f"{path}: cannot be read: {error}") from None


def safetensors_buffers(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> list[memoryview]:
    """A safetensors file as the memory that it is to be written from: a header, then the tensors' own.

    The library copies everything into one row of bytes, twice, while no other thread of Python can run.
    """
    names = sorted(tensors, key=lambda name: (-_DTYPES.index(tensors[name].dtype), name))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    buffers, end = [], 0
    for name in names:
        tensor = tensors[name].detach().contiguous()
        buffers.append(bytes_of(tensor))
        start, end = end, end + len(buffers[-1])
        dtype = _DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *buffers]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the host."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _fingerprint(folder: Folder, name: str) -> Fingerprint:
    file, crc = folder.open(name), 0
    for start in range(0, file.size, CHUNK):
        crc = zlib.crc32(file.read_at(CHUNK, start), crc)
    return Fingerprint(file.size, crc)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a file of `torch.save`: those under its key `model`, if it has one.

    Nothing but tensors is unpickled.  Raises `ValueError`, which names the file, for anything else.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: No such file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except Exception as error:  # Whatever a broken or hostile file brings up.
        raise ValueError(f"{path}: not a checkpoint of tensors: {error}") from None
    content = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: not a dictionary of tensors")
    return dict(content)


def misfits(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A line for every name that is missing, unexpected, or whose tensor has another shape."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"unexpected: {name}" for name in found if name not in expected]
    return lines + [
        f"{name}: {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]


def refuse(where: str, lines: Sequence[str]) -> None:
    """Raise `ValueError`, beginning with `where`, if there are any lines."""
    if lines:
        raise ValueError("\n  ".join([f"{where}: {len(lines)} key(s) do not fit", *lines]))
