"""JSON files that carry a digest of their own content, so that a changed digit is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

SEAL = "sha256"  # Of the other values, written as `seal` writes them.


def seal(values: Mapping[str, Any]) -> bytes:
    """Indented JSON of the values and of their digest; `unseal` reads it back."""
    assert SEAL not in values
    return orjson.dumps({**values, SEAL: _digest(values)}, option=orjson.OPT_INDENT_2)


def unseal(data: bytes, path: str) -> dict[str, Any]:
    """The values that were sealed.  Raises `ValueError`, beginning with `path`, for anything else."""
    try:
        values = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, found {type(values).__name__}")
    found = values.pop(SEAL, None)
    if found != _digest(values):
        raise ValueError(f"{path}: damaged, or edited by hand: its content does not fit its own digest")
    return values


def unseal_as(kind: type[T], data: bytes, path: str, what: str) -> T:
    """The dataclass that was sealed as plain values.  Raises `ValueError`, beginning with `path`, for anything else.

    `what` says in a message what the file should have been: "a manifest".
    """
    values = unseal(data, path)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        raise ValueError(f"{path}: not {what}: {'; '.join(faults[:3])}") from None


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(values)).hexdigest()
