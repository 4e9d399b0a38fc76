"""Configuration: frozen dataclasses with defaults, read from a short YAML and `section.field=value` overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting that a user must change; the message names its dotted path."""


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Class decorator for a group of settings: a frozen dataclass whose unknown keys are refused when read from YAML.

    Cross-field rules go into `__post_init__` and raise `ValueError`; the reader adds the dotted path.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return cls


def load_config(kind: type[T], path: str | None, overrides: Sequence[str] = ()) -> T:
    """Read `kind` (a `settings` class) from a YAML file, then apply overrides such as `optimizer.lr=1e-4`.

    `path` may be None: defaults and overrides alone.  Raises `ConfigError` with every offending dotted path: unknown
    keys, wrong types, and whatever a `__post_init__` refuses.
    """
    values = _read_yaml(path) if path else {}
    for override in overrides:
        name, found, text = override.partition("=")
        if not found or not name:
            raise ConfigError(f"{override!r}: an override is section.field=value")
        _put(values, name, yaml.safe_load(text))
    return parse_config(kind, values, where=path or "command line")


def parse_config(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build `kind` from nested plain values; `where` starts the error message."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(part) for part in e['loc']) or '(top level)'}: {_reason(e)}" for e in error.errors()]
        raise ConfigError("\n".join([f"{where}: {len(lines)} setting(s) refused", *lines])) from None


def dump_config(config: Any) -> str:
    """The resolved configuration as YAML text; `load_config` reads it back."""
    return yaml.safe_dump(config_values(config), sort_keys=False)


def config_values(config: Any) -> dict[str, Any]:
    """The resolved configuration as nested plain values (tuples as lists), which `parse_config` reads back."""
    values: dict[str, Any] = _plain(dataclasses.asdict(config))
    return values


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections, found {type(values).__name__}")
    return values


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{name}: {section} is not a section")
    values[last] = value


def _reason(error: Any) -> str:
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "unknown setting"
    return str(error["msg"]).removeprefix("Value error, ")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value
