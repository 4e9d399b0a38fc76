"""What a settings class is made of: the type of everything in it by its dotted path, and which of it is text."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Like:
    """Annotates a dict of changes to a settings class: its keys are fields of `kind`, as deep as they go."""

    kind: type


def cases(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have: the members of a union, and of anything else the type without annotations."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        like = [one.kind for one in arguments[1:] if isinstance(one, Like)]
        return tuple(like) or cases(arguments[0])
    if origin in (Union, types.UnionType):
        return tuple(case for one in arguments for case in cases(one))
    if origin is Literal:
        return tuple(dict.fromkeys(type(value) for value in arguments))
    return (kind,)


@cache
def fields_of(kind: type) -> dict[str, Any]:
    """The fields of a settings class with their types, annotations included."""
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in dataclasses.fields(kind)}


def kind_below(kind: Any, name: str) -> Any:
    """The type of what is called `name` in a value: a field, a key, a place in a list.  `Any` where none is known."""
    for case in cases(kind):
        origin, arguments = get_origin(case), get_args(case)
        if dataclasses.is_dataclass(case):
            below = fields_of(case).get(name)  # type: ignore[arg-type]
            if below is not None:
                return below
        elif origin is dict:
            return arguments[1]
        elif origin in (tuple, list) and name.isdecimal():
            return arguments[0] if arguments[-1] is Ellipsis else arguments[min(int(name), len(arguments) - 1)]
    return Any


def is_text(kind: Any) -> bool:
    """Whether a lone word or number in this place can only be meant as text."""
    return str in cases(kind) and not {int, float, bool}.intersection(cases(kind))


def is_optional(kind: Any) -> bool:
    """Whether null has a meaning in this place."""
    return type(None) in cases(kind)


def paths(kind: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of all settings in a class; `<name>` stands for the keys of a dict, `<n>` for places."""
    below = list(_members(kind))
    if not below and path:
        yield path
    for name, one in below:
        yield from paths(one, f"{path}.{name}" if path else name)


def _members(kind: Any) -> Iterator[tuple[str, Any]]:
    for case in cases(kind):
        origin, arguments = get_origin(case), get_args(case)
        if dataclasses.is_dataclass(case):
            yield from fields_of(case).items()  # type: ignore[arg-type]
        elif origin is dict and any(map(dataclasses.is_dataclass, cases(arguments[1]))):
            yield "<name>", arguments[1]
        elif origin in (tuple, list) and any(map(dataclasses.is_dataclass, cases(arguments[0]))):
            yield "<n>", arguments[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is most like it, if any is."""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), by_lower, 1)
    close = close or [one for one in by_lower if len(name) > 2 and name.lower() in one]
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def other_place(kind: Any, path: str) -> str:
    """The same for an unknown setting: a name beside it, else a path elsewhere that ends with its name."""
    *sections, name = path.split(".")
    here = kind
    for section in sections:
        here = kind_below(here, section)
    beside = did_you_mean(name, [one for one, _ in _members(here)])
    elsewhere = [one for one in paths(kind) if one.split(".")[-1] == name]
    return beside if beside or not elsewhere else f"; did you mean {elsewhere[0]}?"
