"""A dataset's part of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from semsam.evaluation.class_tables import ClassRow
from semsam.evaluation.dataset_report import EMPTY, DatasetReport
from semsam.evaluation.extremes import Extremes
from semsam.evaluation.intervals import Interval
from semsam.evaluation.markup import Markup, element, image

# In the order that they are shown in; what else there is follows.
_FIGURES = {
    "precision_recall": "Precision over recall of what was found without being asked for",
    "calibration": "Predicted IoUs and what they were worth",
    "objects": "What the objects were taken for, in percent of each row",
    "parts": "What the parts were taken for, in percent of each row",
}
_OF_IMAGES = (
    "By the number that each image has alone; in place of AP the share of its regions that were found, mean over the "
    "IoU thresholds."
)


@dataclass
class Room:
    """How many bytes of pictures still fit, and those that did not."""

    left: int
    limit: int
    left_out: list[str] = field(default_factory=list)

    def has(self, name: str, picture: bytes) -> bool:
        """Whether a picture may stand in the page, in which it takes room then."""
        if len(picture) <= self.left:
            self.left -= len(picture)
            return True
        self.left_out.append(f"{name} ({len(picture):,} bytes)")
        return False


def dataset_section(anchor: str, one: DatasetReport, room: Room) -> Markup:
    """All of it, at the place `anchor`: figures, images and pictures, numbers, tables of names, what is absent."""
    shown = {id_: png for id_, png in one.pictures_of_images.items() if room.has(f"{one.dataset} {id_}", png)}
    places = {sample_id: f"{anchor}-{place}" for place, sample_id in enumerate(shown)}
    return element(
        "section",
        element("h2", one.dataset, id=anchor),
        element(
            "p", f"Split {one.split}, {one.num_images:,} images." if one.num_images else f"Split {one.split}: {EMPTY}."
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
    yield element("p", _OF_IMAGES, class_="soft")
    heads = [element("th", text, scope="col") for text in ("protocol", "number", "best", "worst")]
    rows = [
        element(
            "tr",
            element("th", words(protocol), scope="row"),
            element("td", words(found.number)),
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
    one: DatasetReport, shown: Mapping[str, bytes], places: Mapping[str, str], room: Room
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
            yield from (f"{word} of {words(protocol)}, {words(found.number)} {v:.3f}" for i, v in end if i == sample_id)


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
            label = element("th", f"{words(protocol)}: {words(name)}", title=found.convention, scope="row")
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
    heads = ["name", *["count"] * has_counts, *map(words, numbers)]
    lines = []
    for name, of_name in by_name.items():
        counts = [row.count for row in of_name.values() if row.count is not None]
        count = [element("td", f"{max(counts)}" if counts else "")] * has_counts
        cells = [_class_cell(of_name.get(number)) for number in numbers]
        lines.append(element("tr", element("th", name, scope="row"), *count, *cells))
    head = element("tr", *(element("th", element("button", text, type="button"), scope="col") for text in heads))
    table = element("table", element("thead", head), element("tbody", *lines), class_="sorts")
    return _folded(f"{words(protocol)}: {len(by_name)} rows", table)


def _class_cell(row: ClassRow | None) -> Markup:
    if row is None:
        return element("td")
    if row.low is None or row.high is None:
        return element("td", f"{row.value:.3f}")
    return element("td", f"{row.value:.3f} ", *interval_below(Interval(row.low, row.high)))


def _absent(one: DatasetReport) -> Iterator[Markup]:
    if one.absent:
        yield element("h3", "Not measured")
        yield element("ul", *(element("li", f"{words(name)}: {reason}") for name, reason in one.absent.items()))


def interval_below(interval: Interval | None) -> list[Markup]:
    """What stands under a number in its cell."""
    return [] if interval is None else [element("small", f"{interval.low:.3f} to {interval.high:.3f}")]


def _folded(summary: str, table: Markup) -> Markup:
    return element("details", element("summary", summary), element("div", table, class_="wide"))


def words(name: str) -> str:
    """A name of the code as a reader would write it."""
    return name.replace("_", " ")
