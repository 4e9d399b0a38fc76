"""An evaluation as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from semsam.evaluation.baselines import FILLINGS
from semsam.evaluation.dataset_numbers import FEDERATED
from semsam.evaluation.dataset_report import DatasetReport
from semsam.evaluation.dataset_section import Room, dataset_section, interval_below, words
from semsam.evaluation.headlines import HEADLINES
from semsam.evaluation.markup import Markup, element
from semsam.evaluation.report_frame import framed

_READ = (
    "Each cell: the number, its 95% bootstrap interval over images, and below it what a guess that has not seen the "
    "image gets. A number that is lower than such a guess is marked. Where there is a dash, the note says why."
)


@dataclass
class _Notes:
    """Numbered reasons, each said once."""

    reasons: list[str] = field(default_factory=list)

    def number(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return str(self.reasons.index(reason) + 1)


def report_page(
    title: str, facts: Mapping[str, str], datasets: Sequence[DatasetReport], config: str, picture_bytes: int
) -> str:
    """The page; the same arguments give the same text.

    `facts` say what ran, `config` how, as YAML.  Pictures beyond `picture_bytes` in all are left out, and named.
    """
    room = Room(picture_bytes, picture_bytes)
    sections = [dataset_section(_id(number), one, room) for number, one in enumerate(datasets)]
    links = [element("a", one.dataset, href=f"#{_id(number)}") for number, one in enumerate(datasets)]
    return framed(
        title,
        facts,
        element("nav", *links, element("a", "config", href="#config")),
        element("h2", "Numbers"),
        *(_headlines(datasets) if datasets else [element("p", "No dataset was evaluated.")]),
        *sections,
        *_left_out_pictures(room),
        config=config,
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
    return element("th", f"{words(protocol)}: {words(name)}", *(element("small", text) for text in said), scope="row")


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
        *interval_below(found.intervals.get(name)),
        *(element("small", f"{who} {guess:.3f}", class_="below" if guess > value else None) for who, guess in blind),
    )


def _blind(values: Mapping[str, float], name: str) -> Iterator[tuple[str, float]]:
    """The guesses that stand beside a number: the blind baseline, and what fills a box."""
    if name in values:
        yield "blind", values[name]
    for filling in FILLINGS:
        if f"{name}_{filling}" in values:
            yield words(filling), values[f"{name}_{filling}"]


def _left_out_pictures(room: Room) -> Iterator[Markup]:
    if room.left_out:
        yield element("h2", "Pictures that are left out")
        yield element("p", f"Beyond the limit of {room.limit:,} bytes for all pictures:")
        yield element("ul", *(element("li", name) for name in room.left_out))


def _id(number: int) -> str:
    """The place of a dataset's section; names may hold what no place may."""
    return f"dataset-{number}"
