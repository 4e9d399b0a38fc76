"""What a dataset must offer: `pipelines.sources.SOURCES` has one of these by each name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipelines.sources.categories import load_categories
from semsam.data.images import MAX_PIXELS
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Record
from semsam.setting_kinds import did_you_mean


class Files(Protocol):
    """The files of a dataset: a `semsam.storage.Folder`.  Names are relative, with forward slashes."""

    @property
    def path(self) -> str: ...

    @property
    def neighbours(self) -> tuple[str, ...]: ...

    def read(self, name: str) -> bytes: ...

    def exists(self, name: str) -> bool: ...

    def glob(self, pattern: str) -> list[str]: ...

    def walk(self) -> Iterator[str]: ...


def find_file(files: Files, candidates: Sequence[str]) -> str:
    """The first name under which there is a file.  Raises `ValueError` naming all of them."""
    for name in candidates:
        if files.exists(name):
            return name
    raise ValueError(f"{files.path}: found none of {', '.join(candidates)}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a split, before its files are opened.  Small: millions of them are sorted and cut into shards.

    `annotations` is whatever of the index file (a big COCO json, say) belongs to this image, as compact JSON bytes, so
    that the task which reads the image needs no second look at the index.
    """

    sample_id: str  # The native id; entries are sorted by it as text, so integers are zero-padded to 12 digits.
    image: str  # Path below the root.
    annotations: bytes = b""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An image or region that cannot be used: `reason` is a short fixed phrase to count by, `detail` names it."""

    reason: str
    sample_id: str
    detail: str


# Reasons to leave something out that lie in how a dataset is made or used, or by which a region loses only a piece of
# what it says: they are counted like all others, but say nothing against the data however often they occur.
EXCLUDED = "excluded by its id"
REASONS_BY_DESIGN = frozenset(
    {
        EXCLUDED,
        "part without category",
        "thing pixels without an instance",
        "no instance PNG",
        "part without its object",
        "polygon of two points or fewer",
        "box off its mask",
        "listed name outside the vocabulary",
        "image without instance annotations",
        "instance of an image without segments",
        "mask that the model is not sure of",
    }
)


class BadSample(Exception):  # noqa: N818 - it is an outcome that is counted, not an error.
    """Raised by `Source.read` when the whole image is unusable."""

    def __init__(self, reason: str, sample_id: str, detail: str) -> None:
        super().__init__(f"{sample_id}: {reason}: {detail}")
        self.rejected = Rejected(reason, sample_id, detail)

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str, str]]:
        # Exceptions are pickled by their message alone, which is not what __init__ takes.
        return BadSample, (self.rejected.reason, self.rejected.sample_id, self.rejected.detail)


@dataclass
class Index:
    """All entries of a split, sorted by `sample_id`, and what the index file itself shows to be unusable."""

    entries: Sequence[Entry]
    rejected: Sequence[Rejected] = field(default_factory=list)
    rejected_regions: list[Rejected] = field(default_factory=list)  # Rows of no image, or unusable as they are.
    absent: tuple[str, ...] = ()  # Kinds of annotation that this copy lacks altogether, such as "instances".


@dataclass(frozen=True)
class Read:
    """A record in original pixels (no resize), and what of its regions had to be dropped."""

    record: Record
    dropped: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Source(ABC):
    """One dataset: what there is to know of it, and how its own release layout is read.  Picklable: it goes to workers.

    Other settings make another source: `dataclasses.replace(source, allow_absent=("instances",))`.
    """

    options: ClassVar[tuple[str, ...]] = ()  # Fields that the settings of a dataset may set (`options`).

    dataset: str
    version: int = 1  # Raised whenever the same files give other records: shards made before are made anew then.
    train_long_side: int = 0  # What train images are brought down to where nobody says otherwise; 0: they stay.
    image_ids: str = ""  # Datasets of one word here number the same images alike; "": like no other.
    allow_absent: tuple[str, ...] = ()  # Kinds of annotation that a copy may lack though less is learnt without.
    max_pixels: int = MAX_PIXELS  # A larger image is rejected by its header as "image too large".

    def vocabulary(self) -> Vocabulary:
        """The names in `pipelines/categories/<dataset>.json`."""
        return load_categories(self.dataset).vocabulary

    def with_options(self, values: Mapping[str, Any]) -> Self:
        """This source with other values of its `options`.  Raises `ValueError` naming the one that it cannot have."""
        hints, found = get_type_hints(type(self), include_extras=True), {}
        for name, value in values.items():
            if name not in self.options:
                raise ValueError(
                    f"{name}: {self.dataset} has {_listed(self.options)}{did_you_mean(name, self.options)}"
                )
            try:
                found[name] = TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                raise ValueError(f"{name}: {error.errors()[0]['msg']}, not {value!r}") from None
        return replace(self, **found)

    def found_in(self, files: Files) -> Source:
        """This source with what only the data can say of itself, such as its names; asked once, before any index.

        Raises `ValueError` naming the file.
        """
        return self

    @abstractmethod
    def index(self, files: Files, split: str) -> Index:
        """List a split.  Raises `ValueError` naming the file (and position, for JSON) when the index is unusable."""

    def indexes(self, files: Files, splits: Sequence[str]) -> Iterator[Index]:
        """The index of each split: for a source to override whose splits are cut from one listing."""
        for split in splits:
            yield self.index(files, split)

    @abstractmethod
    def read(self, files: Files, split: str, entry: Entry) -> Read:
        """Open one image and its annotations.  Raises `BadSample` when nothing of it can be used."""


def _listed(options: Sequence[str]) -> str:
    return f"the options {', '.join(options)}" if options else "no options"
