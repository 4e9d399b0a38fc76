"""Every number among the settings of every job has a range, and what lies outside of it is refused by its path."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.evaluate import EvaluateJob
from jobs.export import ExportJob
from jobs.finetune import FinetuneJob
from jobs.generate import GenerateJob
from jobs.prepare import PrepareJob
from jobs.quickstart import QuickstartJob
from jobs.train import TrainJob
from semsam.config import ConfigError, parse_config
from semsam.model.presets import ModelSettings

STAGES: dict[str, Any] = {"plan": {"stages": [{"weights": {"ade20k": 1.0}}]}}
PREPARE: dict[str, Any] = {"datasets": {"sa1b": {"root": "x"}}}
JOBS: dict[type, dict[str, Any]] = {
    EvaluateJob: {},
    ExportJob: {"checkpoint": "x", "out": "y"},
    FinetuneJob: {"data": "x", "checkpoint": "y"},
    GenerateJob: {"images": "x"},
    ModelSettings: {},
    PrepareJob: PREPARE,
    QuickstartJob: {"prepare": PREPARE, "toy": {}},
    TrainJob: {"data": STAGES},
}
# Numbers that may be negative: predicted IoUs are a linear layer's, and some lie below 0.
ANY_SIGN = {"masks.min_iou"}
WRONG = (math.nan, math.inf, -math.inf, -1e30, "nan", ".inf", True)


def numbers(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all numbers in a type of settings, each with a place in lists and a key in tables."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            yield from numbers(hint, (*path, name))
    elif origin is typing.Annotated:
        yield from numbers(arguments[0], path)
    elif origin in (types.UnionType, typing.Union) and str not in arguments:  # An id may be any number, or a word.
        for one in arguments:
            yield from numbers(one, path)
    elif origin is tuple:
        yield from numbers(arguments[0], (*path, "0"))
    elif origin is dict:
        yield from numbers(arguments[1], (*path, "sa1b"))
    elif kind in (int, float):
        yield path


def wrong_at(values: Any, path: tuple[str, ...], wrong: Any) -> Any:
    """Settings with a wrong number at a place, other lists and tables being left as they are."""
    if not path:
        return wrong
    if path[0].isdigit():
        return [wrong_at(values[0] if isinstance(values, list) else {}, path[1:], wrong)]
    below = dict(values) if isinstance(values, dict) else {}
    return below | {path[0]: wrong_at(below.get(path[0]), path[1:], wrong)}


CASES = [(job, path) for job in JOBS for path in dict.fromkeys(numbers(job))]


def test_there_are_numbers_in_every_job() -> None:
    assert {job for job, _ in CASES} == set(JOBS)
    assert len(CASES) > 150


@pytest.mark.parametrize(("job", "path"), CASES, ids=[f"{job.__name__}-{'.'.join(path)}" for job, path in CASES])
def test_a_number_outside_its_range_is_refused_by_its_path(job: type, path: tuple[str, ...]) -> None:
    name = ".".join(path)
    for wrong in WRONG:
        if wrong == -1e30 and name in ANY_SIGN:
            continue
        with pytest.raises(ConfigError) as caught:
            parse_config(job, wrong_at(JOBS[job], path, wrong), "test")
        assert f"  {name}: " in str(caught.value), wrong
