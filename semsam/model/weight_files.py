"""Tensors from other people's files, without running what may be in them; and what to say where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor


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
