"""Configuration: frozen dataclasses with defaults, read from a short YAML and `section.field=value` overrides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

T = TypeVar("T")

_TYPES = ("bool", "float", "int", "str")
_MAX_INT = 2**53  # What every reader of JSON and YAML holds exactly.


def _number(value: Any) -> Any:
    """YAML's `yes` would be 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


# What a number in a settings class may be; any other is refused however the class is made.
Positive = Annotated[int, Field(ge=1, le=_MAX_INT), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=0, le=_MAX_INT), BeforeValidator(_number)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_number)]
AnyFloat = Annotated[float, BeforeValidator(_number)]
PositiveFloat = Annotated[float, Field(gt=0), BeforeValidator(_number)]
Weight = Annotated[float, Field(ge=0), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
PositiveShare = Annotated[float, Field(gt=0, le=1), BeforeValidator(_number)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]  # What divides by its rest.
# The name of a folder and of a run in MLflow: what no path, shell or database reads as anything else.
PlainName = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]


class ConfigError(ValueError):
    """A setting that a user must change; the message names its dotted path."""


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Class decorator for a group of settings: a frozen dataclass that is checked whenever one is made.

    Unknown keys, wrong types, numbers out of their annotated range or not finite raise `ValueError`.  Rules about
    several fields go into `__post_init__` and raise it too; the reader of a YAML adds the dotted path.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked(self, *args, **kwargs)
        except ValidationError as error:
            raise ConfigError("; ".join(": ".join(filter(None, one)) for one in _refusals(error))) from None

    made.__init__ = init
    return cast(type[T], made)


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
        _put(values, name, parse_yaml(text, f"override {override!r}"))
    return parse_config(kind, values, where=path or "command line")


def parse_config(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build `kind` from nested plain values; `where` starts the error message."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [f"  {path or '(top level)'}: {reason}" for path, reason in _refusals(error)]
        raise ConfigError("\n".join([f"{where}: {len(lines)} setting(s) refused", *lines])) from None


def dump_config(config: Any) -> str:
    """The resolved configuration as YAML text; `load_config` reads it back."""
    return yaml.safe_dump(config_values(config), sort_keys=False)


def config_values(config: Any) -> dict[str, Any]:
    """The resolved configuration as nested plain values (tuples as lists), which `parse_config` reads back."""
    values: dict[str, Any] = _plain(dataclasses.asdict(config))
    return values


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The plain values in a YAML text; `ConfigError`, beginning with `where`, for anything that is none.

    A key that is given twice and aliases (`*name`, which can stand for more than any memory holds) are refused.
    """
    try:
        return yaml.load(text, _Loader)
    # The last four are what PyYAML's own constructors let through: `!!bool x`, `2024-13-01`, a thousand brackets, ...
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where}: not YAML: {error}") from None


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"alias *{event.anchor}: write it out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    values = parse_yaml(text, path)
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


def _path(places: Sequence[str | int]) -> str:
    """The dotted path, without the names of types by which pydantic tells the cases of a union apart."""
    return ".".join(str(one) for one in places if one not in _TYPES and "[" not in str(one))


def _refusals(error: ValidationError) -> list[tuple[str, str]]:
    """The dotted path and the reason of each setting that was refused."""
    return [(_path(one["loc"]), _reason(one)) for one in error.errors()]


def _reason(error: Any) -> str:
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "unknown setting"
    reason = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    value = error["input"]
    # What a rule about several fields says, or a missing field, has the whole section for its input.
    return f"{reason}, not {value!r:.80}" if value is None or isinstance(value, bool | int | float | str) else reason


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value
