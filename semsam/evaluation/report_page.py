"""An evaluation as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from semsam.evaluation.baselines import FILLINGS
from semsam.evaluation.class_tables import ClassRow
from semsam.evaluation.dataset_numbers import FEDERATED, HEADLINES
from semsam.evaluation.dataset_report import DatasetReport
from semsam.evaluation.extremes import Extremes
from semsam.evaluation.intervals import Interval
from semsam.evaluation.markup import Markup, element, image
from semsam.evaluation.report_style import SCRIPT, STYLE

GENERATOR = "semsam report"  # By which a page that may be written over is known.
_READ = (
    "Each cell: the number, its 95% bootstrap interval over images, and below it what a guess that has not seen the "
    "image gets. A number that is lower than such a guess is marked. Where there is a dash, the note says why."
)
# In the order that they are shown in; what else there is follows.
_FIGURES = {
    "precision_recall": "Precision over recall of what was found without being asked for",
    "calibration": "Predicted IoUs and what they were worth",
    "objects": "What the objects were taken for, in percent of each row",
    "parts": "What the parts were taken for, in percent of each row",
}


@dataclass
class _Notes:
    """Numbered reasons, each said once."""

    reasons: list[str] = field(default_factory=list)

    def number(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return str(self.reasons.index(reason) + 1)


@dataclass
class _Room:
    """How many bytes of pictures still fit, and those that did not."""

    left: int
    limit: int
    left_out: list[str] = field(default_factory=list)

    def has(self, name: str, picture: bytes) -> bool:
        if len(picture) <= self.left:
            self.left -= len(picture)
            return True
        self.left_out.append(f"{name} ({len(picture):,} bytes)")
        return False


def report_page(
    title: str, facts: Mapping[str, str], datasets: Sequence[DatasetReport], config: str, picture_bytes: int
) -> str:
    """The page; the same arguments give the same text.

    `facts` say what ran, `config` how, as YAML.  Pictures beyond `picture_bytes` in all are left out, and named.
    """
    room = _Room(picture_bytes, picture_bytes)
    sections = [_dataset(number, one, room) for number, one in enumerate(datasets)]
    links = [element("a", one.dataset, href=f"#{_id(number)}") for number, one in enumerate(datasets)]
    body = element(
        "body",
        element("h1", title),
        _facts(facts),
        element("nav", *links, element("a", "config", href="#config")),
        element("h2", "Numbers"),
        *(_headlines(datasets) if datasets else [element("p", "No dataset was evaluated.")]),
        *sections,
        *_left_out_pictures(room),
        element("h2", "Config", id="config"),
        element("pre", config),
        element("script", Markup(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{element('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    # Whatever may have come into the page: a browser fetches nothing for it, and runs no script but the one above.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="generator", content=GENERATOR),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )


def _facts(facts: Mapping[str, str]) -> Markup:
    return element(
        "dl",
        *(element(tag, text) for pair in facts.items() for tag, text in zip(("dt", "dd"), pair, strict=True)),
        class_="facts",
    )


def _headlines(datasets: Sequence[DatasetReport]) -> Iterator[Markup]:
    """The table of headline numbers with what explains it."""
    notes = _Notes()
    heads = [
        element("th", one.dataset, element("small", f"{one.split}, {one.num_images:,} images"), scope="col")
        for one in datasets
    ]
    rows = [
        element("tr", _number_name(protocol, name, datasets), *(_cell(one, protocol, name, notes) for one in datasets))
        for protocol, name in _rows(datasets)
    ]
    table = element("table", element("thead", element("tr", element("th", "number"), *heads)), element("tbody", *rows))
    yield element("p", _READ, class_="soft")
    yield element("div", table, class_="wide")
    if notes.reasons:
        yield element("ol", *(element("li", reason) for reason in notes.reasons), class_="notes")


def _rows(datasets: Sequence[DatasetReport]) -> Iterator[tuple[str, str]]:
    """The headline numbers; of federated protocols those that any dataset speaks of."""
    for protocol, names in HEADLINES.items():
        is_meant = any(protocol in one.protocols or protocol in one.absent for one in datasets)
        if is_meant or protocol not in FEDERATED:
            yield from ((protocol, name) for name in names)


def _number_name(protocol: str, name: str, datasets: Sequence[DatasetReport]) -> Markup:
    """A row's head: the number, and at a protocol's first one its convention."""
    found = [one.protocols[protocol].convention for one in datasets if protocol in one.protocols]
    said = dict.fromkeys(found if name == HEADLINES[protocol][0] else ())
    return element("th", f"{_words(protocol)}: {_words(name)}", *(element("small", text) for text in said), scope="row")


def _cell(one: DatasetReport, protocol: str, name: str, notes: _Notes) -> Markup:
    found = one.protocols.get(protocol)
    value = None if found is None else found.values.get(name)
    blind = list(_blind(one.blind.get(protocol, {}), name))
    if value is None or found is None:
        reason = one.why_absent(protocol)
        return element(
            "td", "– ", element("sup", notes.number(f"{one.dataset}: {reason}")), title=reason, class_="absent"
        )
    below = any(guess > value for _, guess in blind)
    return element(
        "td",
        element("strong", f"{value:.3f}", class_="below" if below else None),
        *_interval(found.intervals.get(name)),
        *(element("small", f"{who} {guess:.3f}", class_="below" if guess > value else None) for who, guess in blind),
    )


def _blind(values: Mapping[str, float], name: str) -> Iterator[tuple[str, float]]:
    """The guesses that stand beside a number: the blind baseline, and what fills a box."""
    if name in values:
        yield "blind", values[name]
    for filling in FILLINGS:
        if f"{name}_{filling}" in values:
            yield _words(filling), values[f"{name}_{filling}"]


def _interval(interval: Interval | None) -> list[Markup]:
    return [] if interval is None else [element("small", f"{interval.low:.3f} to {interval.high:.3f}")]


def _dataset(number: int, one: DatasetReport, room: _Room) -> Markup:
    anchor = _id(number)
    shown = {id_: png for id_, png in one.pictures_of_images.items() if room.has(f"{one.dataset} {id_}", png)}
    places = {sample_id: f"{anchor}-{place}" for place, sample_id in enumerate(shown)}
    return element(
        "section",
        element("h2", one.dataset, id=anchor),
        element(
            "p",
            f"Split {one.split}, {one.num_images:,} images."
            if one.num_images
            else f"Split {one.split}: {one.why_absent('')}.",
        ),
        *([element("ul", *(element("li", line) for line in one.remarks))] if one.remarks else []),
        *_figures(one),
        *_extremes(one, places),
        *_pictures(one, shown, places, room),
        *_all_numbers(one),
        *_classes(one),
        *_absent(one),
    )


def _figures(one: DatasetReport) -> Iterator[Markup]:
    if not one.figures:
        return
    order = [name for name in _FIGURES if name in one.figures] + [name for name in one.figures if name not in _FIGURES]
    found = []
    for name in order:
        caption = _FIGURES.get(name, name)
        picture = image(one.figures[name], f"{one.dataset}: {caption}")
        is_broad = "broad" if name == "precision_recall" else None
        found.append(element("figure", picture, element("figcaption", caption), class_=is_broad))
    yield element("div", *found, class_="figures")


def _extremes(one: DatasetReport, places: Mapping[str, str]) -> Iterator[Markup]:
    if not one.extremes:
        return
    yield element("h3", "Best and worst images")
    heads = [element("th", text, scope="col") for text in ("protocol", "number", "best", "worst")]
    rows = [
        element(
            "tr",
            element("th", _words(protocol), scope="row"),
            element("td", _words(found.number)),
            *(element("td", *_images(end, places)) for end in (found.best, found.worst)),
        )
        for protocol, found in one.extremes.items()
    ]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="images")
    yield element("div", table, class_="wide")


def _images(end: Sequence[tuple[str, float]], places: Mapping[str, str]) -> Iterator[Markup]:
    for sample_id, value in end:
        name = element("a", sample_id, href=f"#{places[sample_id]}") if sample_id in places else sample_id
        yield element("div", name, f" {value:.3f}")


def _pictures(
    one: DatasetReport, shown: Mapping[str, bytes], places: Mapping[str, str], room: _Room
) -> Iterator[Markup]:
    whole = {name: png for name, png in one.pictures.items() if room.has(f"{one.dataset} {name}", png)}
    for name, png in whole.items():
        grid = element("div", image(png, f"{one.dataset}: {name}"), class_="grid")
        yield element("figure", grid, element("figcaption", name))
    found = []
    for sample_id, png in shown.items():
        said = "; ".join(_said(one.extremes, sample_id))
        picture = image(png, f"{one.dataset}: {sample_id}")
        caption = element("figcaption", f"{sample_id}: {said}" if said else sample_id)
        found.append(element("figure", picture, caption, id=places[sample_id]))
    if found:
        yield element("div", *found, class_="figures")


def _said(ends: Mapping[str, Extremes], sample_id: str) -> Iterator[str]:
    """Which ends an image is at."""
    for protocol, found in ends.items():
        for word, end in (("best", found.best), ("worst", found.worst)):
            yield from (
                f"{word} of {_words(protocol)}, {_words(found.number)} {v:.3f}" for i, v in end if i == sample_id
            )


def _all_numbers(one: DatasetReport) -> Iterator[Markup]:
    if not one.protocols:
        return
    heads = [element("th", text, scope="col") for text in ("number", "value", "95%", "blind")]
    rows = []
    for protocol, found in one.protocols.items():
        for name, value in found.values.items():
            interval, blind = found.intervals.get(name), one.blind.get(protocol, {}).get(name)
            cells = (
                f"{value:.4f}",
                "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}",
                "" if blind is None else f"{blind:.4f}",
            )
            label = element("th", f"{_words(protocol)}: {_words(name)}", title=found.convention, scope="row")
            rows.append(element("tr", label, *(element("td", cell) for cell in cells)))
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows))
    yield element("h3", "All numbers")
    yield _folded(f"{len(rows)} numbers", table)


def _classes(one: DatasetReport) -> Iterator[Markup]:
    if not one.classes:
        return
    yield element("h3", "Numbers of each name")
    for protocol in dict.fromkeys(row.protocol for row in one.classes):
        rows = [row for row in one.classes if row.protocol == protocol]
        yield _class_table(protocol, rows)


def _class_table(protocol: str, rows: Sequence[ClassRow]) -> Markup:
    """A line per name; a click on a header sorts by it."""
    by_name: dict[str, dict[str, ClassRow]] = {}
    for row in rows:
        by_name.setdefault(row.name, {})[row.number] = row
    numbers = list(dict.fromkeys(row.number for row in rows))
    has_counts = any(row.count is not None for row in rows)
    heads = ["name", *["count"] * has_counts, *map(_words, numbers)]
    lines = []
    for name, of_name in by_name.items():
        counts = [row.count for row in of_name.values() if row.count is not None]
        count = [element("td", f"{max(counts)}" if counts else "")] * has_counts
        cells = [_class_cell(of_name.get(number)) for number in numbers]
        lines.append(element("tr", element("th", name, scope="row"), *count, *cells))
    head = element("tr", *(element("th", element("button", text, type="button"), scope="col") for text in heads))
    table = element("table", element("thead", head), element("tbody", *lines), class_="sorts")
    return _folded(f"{_words(protocol)}: {len(by_name)} rows", table)


def _class_cell(row: ClassRow | None) -> Markup:
    if row is None:
        return element("td")
    if row.low is None or row.high is None:
        return element("td", f"{row.value:.3f}")
    return element("td", f"{row.value:.3f} ", *_interval(Interval(row.low, row.high)))


def _absent(one: DatasetReport) -> Iterator[Markup]:
    if one.absent:
        yield element("h3", "Not measured")
        yield element("ul", *(element("li", f"{_words(name)}: {reason}") for name, reason in one.absent.items()))


def _left_out_pictures(room: _Room) -> Iterator[Markup]:
    if room.left_out:
        yield element("h2", "Pictures that are left out")
        yield element("p", f"Beyond the limit of {room.limit:,} bytes for all pictures:")
        yield element("ul", *(element("li", name) for name in room.left_out))


def _folded(summary: str, table: Markup) -> Markup:
    return element("details", element("summary", summary), element("div", table, class_="wide"))


def _id(number: int) -> str:
    """The place of a dataset's section; names may hold what no place may."""
    return f"dataset-{number}"


def _words(name: str) -> str:
    return name.replace("_", " ")
