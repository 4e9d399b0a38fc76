"""What the datasets with one big COCO-like json share: parsing it, and cutting it up by image.

An `Entry` made here carries the rows of its image as compact JSON: `file` (the json), `file_name`, `height`, `width`,
and `annotations` whose `category` is a position in `Categories.all` (null for an unknown id) beside `id`, `area`
(null: as the mask or box has it), `iscrowd` and the fields that the source asked for.  Rows are read into values of
known type here, once; only a `segmentation` is left to `pipelines.sources.segmentation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson

from pipelines.sources.categories import Categories, Category
from pipelines.sources.json_lists import JsonLists
from pipelines.sources.regions import Regions
from pipelines.sources.segmentation import read_segmentation
from pipelines.sources.source import Entry, Files, Index, Rejected, find_file
from pipelines.sources.values import (
    OddValue,
    Row,
    as_area,
    as_flag,
    as_int,
    as_path,
    as_row,
    as_size,
    as_text,
    take,
)
from semsam.data.schema import Kind

NOT_LISTED = "annotation of an image that is not listed"

Fields = Mapping[str, Callable[[Any], Any]]  # Names and readers.
_NONE: Fields = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A row of the list `images`; `more` are fields that one source alone reads."""

    id: int
    file_name: str
    height: int
    width: int
    more: Row

    @property
    def key(self) -> str:
        return sample_id(self.id)

    def to_row(self) -> Row:
        """What an entry keeps of it."""
        return {"file_name": self.file_name, "height": self.height, "width": self.width} | self.more


class Document:
    """A COCO-like json at one of several places: its images, its annotations, and what its category ids mean.

    Rows that cannot be used are counted in `rejected` (images) and `rejected_regions` (all others).
    """

    def __init__(
        self,
        files: Files,
        places: Sequence[str],
        categories: Categories,
        name_of: Callable[[object], str] = lambda row: take(row, "name", as_text),
    ) -> None:
        self.file = find_file(files, places)
        self.path = f"{files.path}/{self.file}"
        self.rejected: list[Rejected] = []
        self.rejected_regions: list[Rejected] = []
        self._lists = JsonLists(files.read(self.file), self.path)
        self._name_of = name_of
        self._positions = categories.positions_of_ids(self._category_names())

    def rows(self, name: str) -> Iterator[tuple[int, object]]:
        """The rows of one list with their positions, whatever they are."""
        return enumerate(self._lists.rows(name))

    def images(self, more: Callable[[Row], Row] = lambda row: {}) -> list[ListedImage]:
        """The usable rows of `images`, without those whose id has come before."""
        first: dict[int, ListedImage] = {}
        for i, row in self.rows("images"):
            where = f"{self.path}: images[{i}]"
            try:
                image = _listed_image(row, more)
            except OddValue as fault:
                self.rejected.append(Rejected(f"images: unusable {fault.field}", _id_shown(row), f"{where}: {fault}"))
                continue
            if first.setdefault(image.id, image) is not image:
                self.rejected.append(Rejected("duplicate image id", image.key, f"{where}: {image.file_name}"))
        return list(first.values())

    def image_ids(self) -> set[int]:
        """The usable ids of `images`, for a json whose images are listed elsewhere too."""
        ids = set()
        for _, row in self.rows("images"):
            try:
                ids.add(take(row, "id", as_int))
            except OddValue:  # An image that is missing here is counted by whoever looks for it.
                continue
        return ids

    def annotations(self, fields: Fields, optional: Fields = _NONE) -> dict[int, bytearray]:
        """The annotations of each image id as JSON rows separated by commas.

        JSON, because 27 million rows as dicts do not fit into many a machine's memory.
        """
        by_image: dict[int, bytearray] = {}
        for i, row in self.rows("annotations"):
            image = None
            try:
                image = take(row, "image_id", as_int)
                self.append_row(by_image.setdefault(image, bytearray()), row, fields, optional)
            except OddValue as fault:
                self.reject("annotations", f"annotations[{i}]", fault, image)
        return by_image

    def append_row(self, rows: bytearray, row: object, fields: Fields, optional: Fields = _NONE) -> None:
        """Append an annotation to the JSON rows of its image.  Raises `OddValue`."""
        native = take(row, "category_id", as_int)
        position = self._positions.get(native)
        category = {"category": position} if position is not None else {"category": None, "category_id": native}
        try:
            data = orjson.dumps(annotation_values(row, fields, optional) | category)
        except orjson.JSONEncodeError as error:  # It writes less deeply nested lists than it reads.
            raise OddValue("row", str(error)) from None
        rows += b"," + data if rows else data

    def positions(self, native_ids: Iterable[int]) -> list[int]:
        """Where in `Categories.all` the known ones among these category ids are."""
        return sorted({self._positions[i] for i in native_ids if i in self._positions})

    def unknown(self, native_ids: Iterable[int]) -> list[int]:
        """The other ones."""
        return sorted(set(native_ids) - self._positions.keys())

    def reject(self, name: str, where: str, fault: OddValue, image: int | None = None) -> None:
        """Count a row that cannot be used: `name` is its list, `where` its place."""
        key = "" if image is None else sample_id(image)
        self.rejected_regions.append(Rejected(f"{name}: unusable {fault.field}", key, f"{self.path}: {where}: {fault}"))

    def reject_orphans(self, annotations: Mapping[int, bytearray], reason: str = NOT_LISTED) -> None:
        """Count the annotations of images that are not there."""
        for image, rows in annotations.items():
            details = (f"{self.path}: annotation {row['id']}" for row in orjson.loads(b"[" + rows + b"]"))
            self.rejected_regions += [Rejected(reason, sample_id(image), detail) for detail in details]

    def _category_names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for i, row in self.rows("categories"):
            try:
                native, name = take(row, "id", as_int), self._name_of(row)
                if names.setdefault(native, name) != name:
                    raise OddValue("id", f"{native} is {names[native]!r} already")
            except OddValue as fault:
                self.reject("categories", f"categories[{i}]", fault)
        return names


def annotation_values(row: object, fields: Fields, optional: Fields = _NONE) -> Row:
    """What is read of an annotation, in values of known type; `optional` fields may be missing or null: None.

    Raises `OddValue`.
    """
    values: Row = {
        "id": take(row, "id", as_int),
        "area": take(row, "area", as_area, None),
        "iscrowd": take(row, "iscrowd", as_flag, False),
    }
    for key, read in fields.items():
        values[key] = take(row, key, read)
    for key, read in optional.items():
        values[key] = None if as_row(row).get(key) is None else take(row, key, read)
    return values


def pack(values: Row, **lists: bytearray) -> bytes:
    """The JSON of an entry: `values`, and lists whose rows are JSON already."""
    fragments = {name: orjson.Fragment(b"[" + rows + b"]") for name, rows in lists.items()}
    return bytes(memoryview(orjson.dumps(values | fragments)))


def index_document(
    files: Files,
    document: Document,
    split: str,
    layouts: Sequence[str],
    fields: Fields,
    allow_absent: Sequence[str],
    more: Callable[[Row], Row] = lambda row: {},
    optional: Fields = _NONE,
    keep: Callable[[Sequence[ListedImage]], Sequence[ListedImage]] = lambda images: images,
) -> Index:
    """One entry per image of the document; `layouts` are the places where its images may lie (see `image_paths`).

    `keep` chooses those of this split where the document has more; the others go without a word.

    Raises `ValueError` where the list `annotations` is empty, unless `allow_absent` has it.
    """
    images = document.images(more)
    annotations = document.annotations(fields, optional)
    is_empty = bool(images) and not annotations and not document.rejected_regions
    if is_empty and "annotations" not in allow_absent:
        raise ValueError(f"{document.path}: the list 'annotations' is empty, so that nothing can be learnt")
    layouts = _order_layouts(files, _all_places(files, layouts), split, images)
    entries, kept = [], keep(images)
    for other in {image.id for image in images} - {image.id for image in kept}:
        annotations.pop(other, None)
    for image in kept:
        path = image_paths(layouts, split, image.file_name)[0]
        rows = annotations.pop(image.id, bytearray())
        packed = pack({"file": document.file} | image.to_row(), annotations=rows)
        entries.append(Entry(image.key, path, packed))
    document.reject_orphans(annotations)
    entries.sort(key=lambda entry: entry.sample_id)
    return Index(entries, document.rejected, document.rejected_regions, ("annotations",) if is_empty else ())


def image_paths(layouts: Sequence[str], split: str, file_name: str) -> list[str]:
    """Where an image may lie: `layouts` with {split}, {file_name}, its last part {name}, the folder {folder} it is in,
    the folder {release} above that, and the {prefix} of its name up to "_" (ImageNet's class)."""
    parts = ["", "", *file_name.split("/")]
    values = {
        "split": split,
        "file_name": file_name,
        "name": parts[-1],
        "folder": parts[-2],
        "release": parts[-3],
        "prefix": parts[-1].partition("_")[0],
    }
    return list(dict.fromkeys(layout.format(**values) for layout in layouts))


def possible_paths(files: Files, entry: Entry, layouts: Sequence[str], split: str, file_name: str) -> list[str]:
    """The entry's own path, then all others where its image may lie."""
    return list(dict.fromkeys([entry.image, *image_paths(_all_places(files, layouts), split, file_name)]))


def _all_places(files: Files, layouts: Sequence[str]) -> list[str]:
    """The layouts below the dataset's own folder, then below each neighbour that its images may lie in."""
    places = [one.replace("{", "{{").replace("}", "}}") for one in files.neighbours]
    return [*layouts, *(f"{place}/{layout}" for place in places for layout in layouts)]


def sample_id(native: int | str) -> str:
    """The id as text that sorts as the ids do: integers are padded to 12 digits."""
    return f"{native:012d}" if isinstance(native, int) else str(native)


def known_rows(regions: Regions, rows: Sequence[Row], categories: Categories) -> Iterator[tuple[Row, str, Category]]:
    """Each row with its annotation id and category; drops "duplicate annotation id" and "unknown category"."""
    seen: set[int] = set()
    for row in rows:
        if row["id"] in seen:
            regions.drop("duplicate annotation id", f"annotation {row['id']}")
        elif row["category"] is None:
            regions.drop("unknown category", f"annotation {row['id']}: category id {row['category_id']}")
        else:
            yield row, str(row["id"]), categories.all[row["category"]]
        seen.add(row["id"])


def add_segmentation(
    regions: Regions,
    row: Row,
    annotation_id: str,
    kind: Kind,
    category: Category | None = None,
    parent: int | None = None,
) -> int | None:
    """Add a row's `segmentation` with its native area and crowd flag, and its box if the source has read one.

    Drops and raises as `read_segmentation` does.
    """
    counts = read_segmentation(row["segmentation"], annotation_id, regions)
    if not counts:
        return None
    return regions.add_rle(
        counts,
        annotation_id,
        kind,
        category,
        area=row["area"],
        box_xywh=row.get("bbox"),
        parent=parent,
        is_crowd=row["iscrowd"],
    )


def _listed_image(row: object, more: Callable[[Row], Row]) -> ListedImage:
    key, name = take(row, "id", as_int), take(row, "file_name", as_path)
    size = take(row, "height", as_size), take(row, "width", as_size)
    return ListedImage(key, name, *size, more(as_row(row)))


def _id_shown(row: object) -> str:
    """The id of a row that cannot be used, as far as it has one."""
    try:
        return sample_id(take(row, "id", as_int))
    except OddValue:
        return ""


def _order_layouts(files: Files, layouts: Sequence[str], split: str, images: Sequence[ListedImage]) -> list[str]:
    """The layouts with the one in use first, as far as a few images can tell."""
    for image in images[:8]:
        for layout in layouts:
            if files.exists(image_paths([layout], split, image.file_name)[0]):
                return [layout, *(other for other in layouts if other != layout)]
    return list(layouts)
