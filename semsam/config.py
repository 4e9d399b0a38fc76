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
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from semsam.setting_kinds import cases, is_optional, is_text, kind_below, other_place

T = TypeVar("T")

_TYPES = ("bool", "float", "int", "str")
_NULLS = ("", "~", "null", "Null", "NULL")
# What YAML takes a word without quotes for: where text is meant, 007 and no are names.
_WORDS = tuple(f"tag:yaml.org,2002:{one}" for one in ("bool", "float", "int", "timestamp"))
_TEXT = "tag:yaml.org,2002:str"
_MAX_INT = 2**53  # What every reader of JSON and YAML holds exactly.


def _number(value: Any) -> Any:
    """YAML's `yes` would be 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _share_or_whole(value: float) -> float:
    if (value > 1 and value != int(value)) or 0 < value < 1e-4:
        raise ValueError("expected a share of a GPU, 0.0001 or more, or whole ones")
    return value


# What a number in a settings class may be; any other is refused however the class is made.
Positive = Annotated[int, Field(ge=1, le=_MAX_INT), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=0, le=_MAX_INT), BeforeValidator(_number)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_number)]
# Of a process, as Ray counts them.
Gpus = Annotated[float, Field(ge=0), AfterValidator(_share_or_whole), BeforeValidator(_number)]
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
            raise ConfigError("; ".join(": ".join(filter(None, one)) for one in _refusals(error, cls))) from None

    made.__init__ = init
    return cast(type[T], made)


def load_config(kind: type[T], path: str | None, overrides: Sequence[str] = ()) -> T:
    """Read `kind` (a `settings` class) from a YAML file, then apply overrides such as `optimizer.lr=1e-4`.

    `path` may be None: defaults and overrides alone.  What is text in `kind` is taken as it is written, `/x/run #3` and
    007 too; in a YAML the former needs quotes.  Raises `ConfigError` with every offending dotted path: unknown keys,
    wrong types, and whatever a `__post_init__` refuses.
    """
    values = _read_yaml(path, kind) if path else {}
    for override in overrides:
        name, found, text = override.partition("=")
        if not found or not name:
            raise ConfigError(f"{override!r}: an override is section.field=value")
        _put(values, name, _override_value(kind, name, text, f"override {override!r}"))
    return parse_config(kind, values, where=path or "command line")


def parse_config(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build `kind` from nested plain values; `where` starts the error message."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [f"  {': '.join(filter(None, one))}" for one in _refusals(error, kind)]
        raise ConfigError("\n".join([f"{where}: {len(lines)} setting(s) refused", *lines])) from None


def dump_config(config: Any) -> str:
    """The resolved configuration as YAML text; `load_config` reads it back."""
    return yaml.safe_dump(config_values(config), sort_keys=False)


def config_values(config: Any) -> dict[str, Any]:
    """The resolved configuration as nested plain values (tuples as lists), which `parse_config` reads back."""
    values: dict[str, Any] = plain(config)
    return values


def parse_yaml(text: str | bytes, where: str, kind: Any = Any) -> Any:
    """The plain values in a YAML text; `ConfigError`, beginning with `where`, for anything that is none.

    `kind` is the type they are meant for, whose texts stay as they are written.  A key that is given twice and aliases
    (`*name`, which can stand for more than any memory holds) are refused.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()  # type: ignore[no-untyped-call]
        if node is None:
            return None
        _keep_text(node, kind)
        return loader.construct_document(node)  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else None
        reason = ", ".join(filter(None, (error.context, error.problem, line)))
        raise ConfigError(f"{where}: not YAML: {reason}") from None
    # The rest is what PyYAML's own constructors let through: `!!bool x`, `2024-13-01`, a thousand brackets, ...
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


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


def _keep_text(node: yaml.Node, kind: Any) -> None:
    """Let words that are meant as text be text, whatever else they look like."""
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and node.tag in _WORDS and is_text(kind):
            node.tag = _TEXT
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            _keep_text(item, kind_below(kind, str(place)))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            _keep_text(key, Any if kind is Any else str)
            _keep_text(value, kind_below(kind, name))


def _override_value(kind: Any, name: str, text: str, where: str) -> Any:
    """The value that an override means by its text: text itself where nothing else could be meant."""
    for section in name.split("."):
        kind = kind_below(kind, section)
    if is_optional(kind) and text in _NULLS:
        return None
    if str in cases(kind) and set(cases(kind)) <= {str, type(None)}:
        return text
    try:
        value = parse_yaml(text, where, kind)
    except ConfigError:
        if str not in cases(kind):
            raise
        return text
    return text if isinstance(value, str) and str in cases(kind) else value


def _read_yaml(path: str, kind: Any) -> dict[str, Any]:
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    values = parse_yaml(text, path, kind)
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


def _refusals(error: ValidationError, kind: Any) -> list[tuple[str, str]]:
    """The dotted path and the reason of each setting that was refused."""
    return [(path, _reason(one, kind, path)) for one in error.errors() for path in [_path(one["loc"])]]


def _reason(error: Any, kind: Any, path: str) -> str:
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown setting{other_place(kind, path)}"
    reason = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    value = error["input"]
    # What a rule about several fields says, or a missing field, has the whole section for its input.
    return f"{reason}, not {value!r:.80}" if value is None or isinstance(value, bool | int | float | str) else reason


def plain(value: Any) -> Any:
    """A value of a setting as YAML has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value
