"""A training as one HTML page: its losses, and what evaluations of its checkpoints have found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from semsam.evaluation.dataset_section import interval_below, words
from semsam.evaluation.figures import Curves, curves
from semsam.evaluation.headlines import HEADLINES
from semsam.evaluation.intervals import Interval
from semsam.evaluation.markup import Markup, element, image
from semsam.evaluation.protocols import metric_name
from semsam.evaluation.report_frame import framed

_ALONE = ("loss", "lr", "grad_norm", "images_per_second")  # Of the log's numbers that belong to no group.
_UNKNOWN = "it was not measured, or nothing that it could be compared with is annotated"


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """What one evaluation says of a checkpoint; without numbers where only its mark is known."""

    step: int
    name: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)  # By MLflow name.
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)  # Reasons, by protocol/dataset.
    folder: str | None = None
    page: str | None = None  # The address of its own report.
    remark: str | None = None  # Why there are no numbers.


@dataclass(frozen=True)
class Choice:
    """The number that the best checkpoint is chosen by, over all datasets, by step."""

    metric: str
    values: Mapping[int, float | None]
    best: int | None


@dataclass(frozen=True)
class _Row:
    protocol: str
    dataset: str
    number: str

    @property
    def metric(self) -> str:
        return metric_name(f"{self.protocol}/{self.number}", self.dataset)


def run_page(
    title: str,
    facts: Mapping[str, str],
    log: Mapping[str, Sequence[tuple[int, float]]],
    checkpoints: Sequence[EvaluatedCheckpoint],
    choice: Choice | None,
    config: str,
) -> str:
    """The page; the same arguments give the same text.

    `log` has steps and values of what the training noted, by name.  `checkpoints` come in the order of their steps.
    """
    return framed(
        title,
        facts,
        element("nav", *(element("a", one, href=f"#{one}") for one in ("losses", "evaluations", "config"))),
        *_losses(log, _best(choice)),
        *_evaluations(checkpoints, choice),
        config=config,
    )


def _losses(log: Mapping[str, Sequence[tuple[int, float]]], best: int | None) -> Iterator[Markup]:
    yield element("h2", "Losses", id="losses")
    panels: dict[str, dict[str, Sequence[tuple[int, float]]]] = {
        name: {name: log[name]} for name in _ALONE if name in log
    }
    for name, points in log.items():
        group, is_in_one, term = name.partition("/")
        if is_in_one:
            panels.setdefault(group, {})[term] = points
    yield from _figure({words(name): lines for name, lines in panels.items()}, "Losses over steps", best)
    if not panels:
        yield element("p", "The log has no steps yet.")


def _evaluations(checkpoints: Sequence[EvaluatedCheckpoint], choice: Choice | None) -> Iterator[Markup]:
    yield element("h2", "Evaluations", id="evaluations")
    if not checkpoints:
        yield element("p", "No evaluation of a checkpoint of this run was found.")
        return
    yield element("p", _said(choice), class_="soft")
    if any(one.folder and one.page is None for one in checkpoints):
        yield element("p", "Steps are links where there is a report of their own; python -m jobs.report makes them.")
    rows = _rows(checkpoints)
    yield element("div", _table(checkpoints, rows, choice), class_="wide")
    remarks = [f"{_label(one)}: {one.remark}" for one in checkpoints if one.remark]
    if remarks:
        yield element("ul", *(element("li", one) for one in remarks))
    yield from _figure(_panels(checkpoints, rows, choice), "Headline numbers over steps", _best(choice))


def _said(choice: Choice | None) -> str:
    if choice is None:
        return "Nobody has marked the best checkpoint: jobs.evaluate does so with follow=true."
    best = "none is marked yet" if choice.best is None else f"the best is that of step {choice.best}"
    return f"By {choice.metric} over all datasets {best}. Below a number stands its 95% interval over images."


def _table(checkpoints: Sequence[EvaluatedCheckpoint], rows: Sequence[_Row], choice: Choice | None) -> Markup:
    best = _best(choice)
    marks = ["best" if one.step == best else None for one in checkpoints]
    heads = [
        element("th", *_head(one, best), scope="col", class_=mark, title=one.folder)
        for one, mark in zip(checkpoints, marks, strict=True)
    ]
    lines = [element("tr", *_chosen(checkpoints, choice, marks))] if choice is not None else []
    for row in rows:
        name = element("th", f"{words(row.protocol)}: {words(row.number)}", element("small", row.dataset), scope="row")
        lines.append(
            element("tr", name, *(_cell(one, row, mark) for one, mark in zip(checkpoints, marks, strict=True)))
        )
    return element("table", element("thead", element("tr", element("th", "number"), *heads)), element("tbody", *lines))


def _head(one: EvaluatedCheckpoint, best: int | None) -> Iterator[str]:
    said = f"step {one.step}"
    yield said if one.page is None else element("a", said, href=one.page)
    if one.step == best:
        yield " \u2605 best"
    yield element("small", one.name)


def _chosen(
    checkpoints: Sequence[EvaluatedCheckpoint], choice: Choice, marks: Sequence[str | None]
) -> Iterator[Markup]:
    yield element("th", choice.metric, element("small", "over all datasets"), scope="row")
    for one, mark in zip(checkpoints, marks, strict=True):
        value = choice.values.get(one.step)
        yield element("td", "\u2013" if value is None else f"{value:.3f}", class_=mark)


def _cell(one: EvaluatedCheckpoint, row: _Row, mark: str | None) -> Markup:
    value, interval = one.metrics.get(row.metric), one.intervals.get(row.metric)
    if value is None:
        why = (
            one.remark if not one.metrics and one.remark else one.absent.get(f"{row.protocol}/{row.dataset}", _UNKNOWN)
        )
        return element("td", "\u2013", title=why, class_=mark or "absent")
    return element(
        "td", f"{value:.3f}", *interval_below(None if interval is None else Interval(*interval)), class_=mark
    )


def _rows(checkpoints: Sequence[EvaluatedCheckpoint]) -> list[_Row]:
    """The headline numbers that any of the evaluations has, in the order of the protocols."""
    there = {name for one in checkpoints for name in one.metrics}
    datasets = sorted({name.split("/")[1] for name in there if name.count("/") == 2})
    rows = [_Row(p, dataset, number) for p, numbers in HEADLINES.items() for number in numbers for dataset in datasets]
    return [row for row in rows if row.metric in there]


def _panels(
    checkpoints: Sequence[EvaluatedCheckpoint], rows: Sequence[_Row], choice: Choice | None
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Where there are several steps: a panel for each headline number, a line in it for each dataset."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    if len({one.step for one in checkpoints if one.metrics or choice}) < 2:
        return panels
    if choice is not None:
        known = [(step, value) for step, value in sorted(choice.values.items()) if value is not None]
        panels |= {f"{choice.metric} over all datasets": {choice.metric: known}} if known else {}
    for row in rows:
        points = [(one.step, one.metrics[row.metric]) for one in checkpoints if row.metric in one.metrics]
        panels.setdefault(f"{words(row.protocol)}: {words(row.number)}", {})[row.dataset] = points
    return panels


def _figure(panels: Mapping[str, Curves], caption: str, marked: int | None) -> Iterator[Markup]:
    if panels:
        note = caption if marked is None else f"{caption}; the dashed line is at the best checkpoint"
        yield element("figure", image(curves(panels, marked), caption), element("figcaption", note))


def _best(choice: Choice | None) -> int | None:
    return None if choice is None else choice.best


def _label(one: EvaluatedCheckpoint) -> str:
    return f"step {one.step}, {one.name}" if one.name else f"step {one.step}"
