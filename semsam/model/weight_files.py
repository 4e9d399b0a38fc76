"""Tensors from files, without running what may be in them; whether files are those that were written; what misfits."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from semsam.data.sealed import SEAL, seal, unseal
from semsam.storage import CHUNK, Folder

# Of a training's checkpoint, and of weights alone: JSON whose `files` has the digests of the other files in the folder.
STATE_FILE, LISTING_FILE = "state.json", "files.json"


@dataclass(frozen=True)
class FileDigest:
    """What a file was when it was written."""

    size: int
    crc32: int
    # Of the header of a safetensors file, which has the checksum of every tensor: enough to read a few of them.
    header_crc32: int | None = None

    @staticmethod
    def of(data: bytes, header: bytes | None = None) -> FileDigest:
        return FileDigest(len(data), zlib.crc32(data), None if header is None else zlib.crc32(header))


def write_listing(folder: Folder, files: Mapping[str, bytes]) -> None:
    """Write files and, last, what lists them."""
    for name, data in files.items():
        folder.write(name, data)
    listed = {name: {"size": len(data), "crc32": zlib.crc32(data)} for name, data in files.items()}
    folder.write(LISTING_FILE, seal({"files": listed}))


def listed_files(folder: Folder) -> dict[str, FileDigest]:
    """The digests of a folder's files; none in a folder of other people, or of a version that wrote none."""
    for name in (STATE_FILE, LISTING_FILE):
        data = folder.read_if_there(name)
        if data is None:
            continue
        path = f"{folder.path}/{name}"
        if name == STATE_FILE and _is_without_digests(data):
            return {}
        try:
            return TypeAdapter(dict[str, FileDigest]).validate_python(unseal(data, path).get("files"))
        except ValidationError as error:
            raise ValueError(f"{path}: lists no files: {error}") from None
    return {}


def check_listed(folder: Folder, name: str, listed: Mapping[str, FileDigest]) -> None:
    """Read a file whole and raise `ValueError`, naming it, unless it is the one that was listed, or none was."""
    if name not in listed:
        return
    file, checksum = folder.open(name), 0
    check_size(file.path, file.size, listed[name].size)
    for start in range(0, file.size, CHUNK):
        checksum = zlib.crc32(file.read_at(CHUNK, start), checksum)
    if checksum != listed[name].crc32:
        raise ValueError(f"{file.path}: damaged, or another file: its bytes are not those that were written")


def check_size(path: str, size: int, expected: int) -> None:
    """Raise `ValueError`, naming the file, unless it has the size that was listed."""
    if size != expected:
        what = "cut short" if size < expected else "too long"
        raise ValueError(f"{path}: {what}: {size} bytes, and {expected} were written")


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise `ValueError`, beginning with `where`, for weights that are not finite, with their names."""
    faults = [f"{name}: not finite" for name, weight in weights.items() if not torch.isfinite(weight).all()]
    refuse(where, faults)


def _is_without_digests(state: bytes) -> bool:
    """Whether a training's state is of a version that listed no files."""
    try:
        values = orjson.loads(state)
    except orjson.JSONDecodeError:
        return False
    return isinstance(values, dict) and "files" not in values and SEAL not in values


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
