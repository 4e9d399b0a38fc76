"""What the tests of infra/ and of the documents look at: files, manifests, and the command lines that they give."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jobs.arguments import read_arguments
from jobs.cluster import ROOT

INFRA = ROOT / "infra"
IN_IMAGES = "/opt/semsam/"  # Where images have the repository.


def files(*suffixes: str) -> list[Path]:
    """All files of infra/ with such endings, or all."""
    found = [path for path in sorted(INFRA.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in found if path.name.endswith(suffixes or ("",))]


def name_of(path: Path) -> str:
    """A file as others name it."""
    return str(path.relative_to(ROOT))


def manifests(*kinds: str) -> list[tuple[str, dict[str, Any]]]:
    """Every Kubernetes object of some kinds, or all, with a name for it."""
    found = []
    for folder in ("kuberay", "mlflow"):
        for path in sorted((INFRA / folder).rglob("*.yaml")):
            for one in yaml.safe_load_all(path.read_text()):
                if not kinds or one["kind"] in kinds:
                    found.append((f"{name_of(path)}:{one['metadata']['name']}", one))
    return found


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """The specification of every pod that a manifest asks for."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for one in value.values():
            yield from pods(one)
    elif isinstance(value, list):
        for one in value:
            yield from pods(one)


def commands() -> list[tuple[str, str, list[str]]]:
    """Every command line of a job in infra/: where it stands, the job, its arguments."""
    return [(name_of(path), job, arguments) for path in files() for job, arguments in commands_in(path)]


def commands_in(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command line of a job in a file, a program's excepted: the job and its arguments."""
    text = path.read_text().replace("\\\n", " ")
    spans = re.findall(r"`([^`]+)`", re.sub(r"```\w*\n", "", text)) if path.suffix == ".md" else []
    for line in [*text.splitlines(), *spans]:
        if path.suffix == ".py" or "python -m jobs." not in line or "`" in line or "jobs.<" in line:
            continue
        command = re.sub(r"<[^<>]*>", "PLACEHOLDER", line[line.index("python -m jobs.") :].replace("\n", " "))
        lexer = shlex.shlex(command.rstrip("'\""), posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words = list(lexer)
        ends = [place for place, word in enumerate(words) if set(word) <= set(";&|")]
        words = words[: ends[0]] if ends else words
        yield words[2].removeprefix("jobs."), words[3:]


def read_command(job: str, arguments: list[str]) -> Any:
    """The settings that a job would read of its arguments."""
    module = importlib.import_module(f"jobs.{job}")
    [call] = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "read_arguments"
    ]
    assert isinstance(call.args[0], ast.Name)
    [first] = [ast.literal_eval(one.value) for one in call.keywords if one.arg == "first"] or [()]
    config = str(module.DEFAULT_CONFIG) if len(call.args) > 3 else None
    here = [one.replace(IN_IMAGES, f"{ROOT}/") for one in arguments]
    return read_arguments(getattr(module, call.args[0].id), here, None, config, first)
