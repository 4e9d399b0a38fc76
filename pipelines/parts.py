"""Numbered parts of an output folder, each made by one task: shards of a split, files of masks.

A part is one or more files, and last a sidecar that says what they are and what they were made from; so a job that was
killed anywhere finds out which parts are finished without keeping any record of its own.  A part whose worker dies is
tried again, and its items are then noted one by one: an item that ends its worker time after time is left out and
named, and the rest of the part is made without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import orjson
import pyarrow as pa
import ray.data
from pydantic import TypeAdapter
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from semsam.data.sealed import seal, unseal, unseal_as
from semsam.storage import Folder

R = TypeVar("R")
OnActors: TypeAlias = Callable[[int], None]

# How often a worker may die of an item before that is left out: of an item alone, for those beside it may be to blame.
MAX_DEATHS = 2
# How often it may die without any item in work: of the code, the machine or its memory.
MAX_TRIES = 5
# Ray's own count of tries; ours ends a part long before, unless each try finds another deadly item.
RAY_RETRIES = 100
KILLS_ITS_WORKER = "kills its worker"  # The reason to count such an item by.

_ATTEMPT = ".attempt"
_BETWEEN = "\0"


@dataclass(frozen=True)
class PartFile:
    """One file of a part."""

    name: str
    size: int  # In bytes.
    sha256: str

    @staticmethod
    def of(name: str, data: bytes) -> PartFile:
        return PartFile(name, len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Part(Generic[R]):
    """A finished part, as its sidecar has it; `report` is what its kind of work says of it."""

    name: str
    files: tuple[PartFile, ...]
    made_from: str  # A digest of everything that decides the files' bytes.
    report: R


def make_part(
    folder: Folder,
    name: str,
    made_from: str,
    kind: type[R],
    make: Callable[[Attempt], tuple[Sequence[PartFile], R]],
    *,
    redo: bool = False,
    verify: bool = False,
) -> tuple[Part[R], bool]:
    """A part, and whether it was found finished; otherwise `make` publishes its files now.

    A found one is taken by its sidecar and the sizes of its files; `verify` reads all their bytes.
    """
    if not redo:
        found = find_part(folder, name, made_from, kind, verify=verify)
        if found is not None:
            return found, True
    attempt = Attempt(folder, name)
    files, report = make(attempt)
    part = Part(name, tuple(files), made_from, report)
    folder.write(sidecar_name(name), seal(dataclasses.asdict(part)))
    attempt.end()
    return part, False


def find_part(folder: Folder, name: str, made_from: str, kind: type[R], *, verify: bool = False) -> Part[R] | None:
    """The part of that name, if all of it is there and was made from that; what is damaged is not there."""
    data = folder.read_if_there(sidecar_name(name))
    if data is None:
        return None
    try:
        part = read_sidecar(data, sidecar_name(name), kind)
    except ValueError:
        return None
    if part.made_from != made_from:
        return None
    if any(folder.size(file.name) != file.size for file in part.files):
        return None
    if verify and any(folder.sha256(file.name) != file.sha256 for file in part.files):
        return None
    return part


def read_sidecar(data: bytes, path: str, kind: type[R]) -> Part[R]:
    """The part that a sidecar describes; `ValueError`, beginning with `path`, where it is none or was damaged."""
    part: Part[R] = unseal_as(Part[kind], data, path, "the sidecar of a part")  # type: ignore[valid-type]
    if path.rpartition("/")[2] != sidecar_name(part.name):
        raise ValueError(f"{path}: this is the sidecar of {part.name}; was a file moved?")
    names = [part.name, *(file.name for file in part.files)]
    if not all(re.fullmatch(r"[\w.-]+", one) and not one.startswith(".") for one in names):
        raise ValueError(f"{path}: a part's files have plain names, not {names}")
    return part


def sidecar_name(name: str) -> str:
    """The file name of a part's sidecar."""
    return f"{name}.json"


class Attempt:
    """One try at making a part: what the tries before it died of is noted in the output folder, `<part>.attempt`.

    A first try notes only that it began.  After one that ended without a word, every item is noted before it is begun.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._deaths: dict[str, int] = {}  # By items, joined by _BETWEEN.
        self._tries = 0
        note = self._read_note()
        if note is not None:
            self._deaths = note["deaths"]
            self._tries = note["tries"] + (not note["in_work"])
            if note["in_work"]:
                died = _BETWEEN.join(note["in_work"])
                self._deaths[died] = self._deaths.get(died, 0) + 1
            if self._tries >= MAX_TRIES:
                self.end()  # Whoever runs the job again begins with a clean slate.
                raise RuntimeError(
                    f"{folder.path}/{name}: its worker died {MAX_TRIES} times: out of memory, or killed from outside"
                )
        self._is_careful = note is not None
        self._write_note([])

    @property
    def left_out(self) -> frozenset[str]:
        """The items that ended their workers when they were alone in work."""
        return frozenset(one for one, deaths in self._deaths.items() if deaths >= MAX_DEATHS and _BETWEEN not in one)

    def are_suspect(self, items: Iterable[str]) -> bool:
        """Whether some of these items ended their worker together, so that one at a time is to be tried."""
        together = {one for died in self._deaths if _BETWEEN in died for one in died.split(_BETWEEN)}
        return not together.isdisjoint(items)

    @contextmanager
    def working_on(self, *items: str) -> Iterator[None]:
        """Work on items that may end this process."""
        if self._is_careful:
            self._write_note(items)
        yield
        if self._is_careful:
            self._write_note([])

    def end(self) -> None:
        """The part is made."""
        self._folder.remove(self._name + _ATTEMPT)

    def _read_note(self) -> dict[str, Any] | None:
        data = self._folder.read_if_there(self._name + _ATTEMPT)
        try:
            return None if data is None else unseal(data, self._name)
        except ValueError:
            return {"tries": 0, "deaths": {}, "in_work": []}

    def _write_note(self, in_work: Iterable[str]) -> None:
        note = {"tries": self._tries, "deaths": self._deaths, "in_work": list(in_work)}
        self._folder.write(self._name + _ATTEMPT, seal(note))


def check_all_there(folder: Folder, parts: Iterable[Part[Any]]) -> None:
    """Raise `ValueError` for a file that has vanished or changed its size since its part was finished.

    To be asked before anything vouches for the parts.
    """
    sizes = folder.sizes()
    for part in parts:
        for file in part.files:
            if sizes.get(file.name) != file.size:
                what = "vanished" if file.name not in sizes else f"has {sizes[file.name]} bytes, not {file.size}"
                raise ValueError(
                    f"{folder.path}/{file.name}: {what} since it was made; run the same command again to make it anew"
                )


def check_is_ours(folder: Folder, ours: re.Pattern[str], vouching: re.Pattern[str]) -> None:
    """Raise `ValueError` for a folder with files of names like `ours`, none of which shows that we wrote them.

    Those that can are called like `vouching`: they carry a digest of themselves.  To be asked before anything is
    deleted or replaced there.
    """
    found = [name for name in folder.names() if ours.fullmatch(name) or vouching.fullmatch(name)]
    if found and not any(_is_ours(folder.read(name)) for name in found if vouching.fullmatch(name)):
        raise ValueError(
            f"output: {folder.path} holds {found[0]!r}, which this job has not written; name another folder"
        )


def _is_ours(data: bytes) -> bool:
    try:
        unseal(data, "")
    except ValueError:
        return b'"schema_version"' in data  # A manifest of version 1, which had no digest.
    return True


def remove_strangers(folder: Folder, ours: re.Pattern[str], parts: Iterable[Part[Any]]) -> None:
    """Delete files, of names like `ours`, that belong to none of the parts: an earlier run had more of them."""
    kept = {sidecar_name(part.name) for part in parts} | {file.name for part in parts for file in part.files}
    for name in folder.names():
        if ours.fullmatch(name) and name not in kept:
            folder.remove(name)


def answer(where: str, keys: Mapping[str, Any], make: Callable[[], tuple[Part[Any], bool]]) -> pa.Table:
    """A task's one row: the keys, and the part or what went wrong there.

    Ray Data would keep an exception's text to itself.
    """
    part, found, error, trace = b"", False, "", ""
    try:
        made, found = make()
        part = orjson.dumps(dataclasses.asdict(made))
    except Exception as fault:
        kind = "" if type(fault) is RuntimeError else f"{type(fault).__name__}: "
        error, trace = f"{where}: {kind}{fault}", traceback.format_exc()
    columns = {"part": part, "found": found, "error": error, "trace": trace}
    return pa.table({name: [value] for name, value in {**keys, **columns}.items()})


def parts_of(
    blocks: ray.data.Dataset, work: Any, kind: type[R], on_actors: OnActors = lambda count: None, /, **options: Any
) -> Iterator[tuple[dict[str, Any], Part[R], bool]]:
    """Run `work` (a function or a class of actors, giving `answer`s) on every block: one block, one task, one part.

    Gives the keys, the part and whether it was found finished, as tasks end; before that `on_actors` is told how many
    actors there are.  `options` are those of `map_batches`.  Raises `RuntimeError` with what a task raised.
    """
    with old_parameters():
        results = blocks.map_batches(work, batch_format="pyarrow", **{"batch_size": None} | options)
    made: TypeAdapter[Part[R]] = TypeAdapter(Part[kind])  # type: ignore[valid-type]
    try:
        for row in results.iter_rows():
            on_actors(_num_actors(results))
            if row["error"]:
                error = RuntimeError(row["error"])
                error.add_note(row["trace"])
                raise error
            keys = {name: value for name, value in row.items() if name not in ("part", "found", "error", "trace")}
            yield keys, made.validate_json(row["part"]), row["found"]
    except RayError as error:
        raise RuntimeError(f"a worker died again and again, or would not start: {first_line(error)}") from error


def _num_actors(results: ray.data.Dataset) -> int:
    """How many actors a dataset that is being made has at work."""
    executor: Any = results._current_executor
    return sum(step.get_actor_info().running for step in executor._topology) if executor else 0


@contextmanager
def old_parameters() -> Iterator[None]:
    """Without warnings of `map_batches` about how often a task may be tried again.

    Ray Data means to name parameters of this kind in a later version; in this one there is no other way to them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield


def first_line(error: Exception) -> str:
    """What an error of Ray says before it goes into details."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
