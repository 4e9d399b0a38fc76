"""The command line of every job: `<config.yaml> [section.field=value ...]`, and `--help` with all that it may hold."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import os
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, get_args, get_origin

import yaml

from jobs.extras import check_extras, started_job
from jobs.needs import Needs, dry_run
from semsam.config import ConfigError, load_config, plain
from semsam.setting_kinds import cases, fields_of

check_extras(started_job())  # Here, because this is what every job imports first.

T = TypeVar("T")
DRY_RUN = "--dry-run"
_WIDTH = 118
_COLUMN = 44  # Where comments begin, if the setting leaves room.
_KEYS = {dict: ".<name>", tuple: ".<n>"}  # How a path goes on in what holds many of a kind.


def read_arguments(
    kind: type[T],
    arguments: Sequence[str],
    about: str | None,
    config: str | None = None,
    first: tuple[str, ...] = (),
    needs: Callable[[T], Needs] | None = None,
) -> T:
    """The settings of a command line.

    With `-h` or `--help` anywhere in it, all of them are printed and the job ends; so with `--dry-run`, which prints
    them as they would be, and what the job would need (`jobs.needs`).

    The first argument may be a config file, in place of `config`; or, where `first` names settings, the first ones are
    the values of these.
    Raises `ConfigError` for arguments that are neither, and as `load_config` does.
    """
    if {"-h", "--help"}.intersection(arguments):
        more = f"\n\nWith {DRY_RUN} it prints what its command line comes to, and what it would need." if needs else ""
        print(help_text(kind, f"{(about or '').strip()}{more}"))
        raise SystemExit(0)
    overrides = [one for one in arguments if needs is None or one != DRY_RUN]
    if not first and overrides and not _is_override(overrides[0]):
        config = overrides.pop(0)
    for place, (name, argument) in enumerate(zip(first, overrides, strict=False)):
        if not _is_override(argument):
            overrides[place] = f"{name}={argument}"
    for one in overrides:
        if one.startswith("-"):
            raise ConfigError(f"{one!r}: settings have no dashes before them; write {one.lstrip('-')!r}, or see --help")
        if "=" not in one:
            where = "" if first else "; a config file is the first argument"
            raise ConfigError(f"{one!r}: expected section.field=value{where}")
    job = load_config(kind, config, overrides)
    if needs is not None and DRY_RUN in arguments:
        print(dry_run(job, needs(job)))
        raise SystemExit(0)
    return job


def _is_override(argument: str) -> bool:
    """Whether an argument sets something, rather than being a path, which may have `=` in it."""
    name, found, _ = argument.partition("=")
    return argument.startswith("-") or (bool(found) and "/" not in name and not os.path.isfile(argument))


def help_text(kind: type, about: str) -> str:
    """What a job is, and every setting of it: its path, its default, and the comment beside it in the source."""
    lead = "Settings, each with its default; a config file nests them at the dots:"
    return "\n".join([about.strip(), "", lead, *_section(kind, "", None)])


def _section(kind: type, path: str, values: Any) -> Iterator[str]:
    """The settings of a class, and after them the sections below; `values` are defaults in place of the class's own."""
    comments, sections = _comments(kind), []
    for one in dataclasses.fields(kind):
        default = getattr(values, one.name) if values is not None else _default(one)
        below = _settings_below(fields_of(kind)[one.name])
        if below is None or below[0] or default is None:
            yield from _line(path + one.name, default, comments.get(one.name, ""))
        if below is not None:
            lead = " ".join(filter(None, (_first_paragraph(below[1]), comments.get(one.name))))
            sections.append((path + one.name + below[0], lead, below[1], None if below[0] else default))
    for name, lead, one_kind, default in sections:
        yield ""
        yield from textwrap.wrap(f"{name}: {lead}", _WIDTH)
        yield from _section(one_kind, f"{name}.", default if dataclasses.is_dataclass(default) else None)


def _line(path: str, default: Any, comment: str) -> Iterator[str]:
    setting = f"  {path}" if default is dataclasses.MISSING else f"  {path}={_shown(default)}"
    words = textwrap.wrap("(required) " * (default is dataclasses.MISSING) + comment, _WIDTH - _COLUMN)
    yield f"{setting:<{_COLUMN - 1}} {words.pop(0)}" if words and len(setting) < _COLUMN else setting
    yield from (" " * _COLUMN + line for line in words)


def _default(one: dataclasses.Field[Any]) -> Any:
    if one.default_factory is not dataclasses.MISSING:
        return one.default_factory()
    return one.default


def _shown(value: Any) -> str:
    """A default as an override would give it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(plain(value), default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _settings_below(hint: Any) -> tuple[str, type] | None:
    """The settings class that a field holds, and how its path goes on from the field's own."""
    for case in cases(hint):
        if dataclasses.is_dataclass(case):
            return "", case  # type: ignore[return-value]
        key = _KEYS.get(get_origin(case))  # type: ignore[arg-type]
        for one in cases(get_args(case)[-1 if key == ".<name>" else 0]) if key else ():
            if dataclasses.is_dataclass(one):
                return str(key), one  # type: ignore[return-value]
    return None


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _comments(kind: type) -> dict[str, str]:
    """The comments above and beside each field of a settings class, those of the classes it extends included."""
    found: dict[str, str] = {}
    for one in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        source = textwrap.dedent(inspect.getsource(one))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        [tree] = ast.parse(source).body
        assert isinstance(tree, ast.ClassDef)
        after = tree.lineno
        for statement in tree.body:
            last = statement.end_lineno or statement.lineno
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                lines = [comments[line] for line in range(after + 1, last + 1) if line in comments]
                found[statement.target.id] = " ".join(lines)
            after = last
    return found
