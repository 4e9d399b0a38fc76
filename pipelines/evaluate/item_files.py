"""Items of an evaluation in files, each a part of its own: some rows of one split, as answered."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.ipc

from pipelines.parts import KILLS_ITS_WORKER, Attempt, Part, PartFile, check_all_there, make_part
from pipelines.sources.source import Rejected
from semsam.data.manifest import Vocabulary
from semsam.data.row_order import some_rows
from semsam.data.schema import Record
from semsam.data.sealed import seal, unseal_as
from semsam.data.shards import Split
from semsam.evaluation.items import ITEMS_VERSION, ImageItem, from_table, to_table
from semsam.evaluation.open_vocabulary import TrainedNames
from semsam.storage import Folder

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class ItemTask:
    """Some rows of a split to be answered.  Picklable: it travels to every worker."""

    dataset: str
    root: str  # Of the split,
    data_digest: str  # and of its shards.
    rows: tuple[tuple[int, ...], ...]  # Of each part.
    output: str  # Where the parts go, local or `s3://`.
    asked: dict[str, Any]  # All else that the answers follow from, as plain values.
    max_left_out: int = 0  # Images that may end their workers; one more ends the job.

    def fingerprint(self, position: int) -> str:
        """SHA-256 of all that the items of a part follow from, the code excepted."""
        values = [ITEMS_VERSION, self.dataset, self.data_digest, self.rows[position], self.asked]
        return hashlib.sha256(orjson.dumps(values, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def folder(self) -> Folder:
        return Folder(self.output)


@dataclass(frozen=True)
class ItemManifest:
    """What lies in a folder of items, written when all of it is there; numbers need nothing else."""

    dataset: str
    split: str
    data_digest: str
    vocabulary: Vocabulary
    asked: dict[str, Any]
    parts: tuple[Part[ItemReport], ...]

    @property
    def left_out(self) -> list[Rejected]:
        """The images that ended their workers."""
        return [one for part in self.parts for one in part.report.left_out]

    @property
    def trained(self) -> TrainedNames | None:
        """The names that the model was trained on; None where that is not known."""
        names = self.asked.get("trained")
        if names is None:
            return None
        pairs = tuple((one, part) for one, part in names["pairs"])
        return TrainedNames(tuple(names["objects"]), tuple(names["parts"]), pairs)

    def items(self, folder: Folder) -> Iterator[list[ImageItem]]:
        """The items, part by part, in the order of their rows.  Raises `ValueError` as `read_items` does."""
        return (read_items(folder, part) for part in self.parts)


@dataclass(frozen=True)
class ItemReport:
    """What the sidecar of a file of items says of it."""

    num_images: int
    left_out: tuple[Rejected, ...]  # Images that end their worker.


def part_name(position: int) -> str:
    """The name of the part at a position."""
    return f"items-{position:05d}"


def write_items(
    task: ItemTask, split: Split, position: int, answer: Callable[[Record], ImageItem]
) -> tuple[Part[ItemReport], bool]:
    """A file of the items of some rows, and whether it was found finished; otherwise it is written now.

    An image that ends its worker is left out and named; `RuntimeError` where that is more than the task allows.
    """
    folder = task.folder()

    def make(attempt: Attempt) -> tuple[list[PartFile], ItemReport]:
        items, left_out = [], []
        for row in task.rows[position]:
            with attempt.working_on(str(row)):
                record = split.record(row)
                if str(row) in attempt.left_out:
                    detail = f"row {row} of {split.root}"
                    left_out.append(Rejected(KILLS_ITS_WORKER, record.sample_id, detail))
                    check_left_out({task.dataset: left_out}, task.max_left_out)
                    continue
                items.append(answer(record))
        sink = pa.BufferOutputStream()
        with pyarrow.ipc.new_file(sink, to_table([]).schema) as writer:
            writer.write_table(to_table(items))
        name, data = f"{part_name(position)}.arrow", sink.getvalue().to_pybytes()
        folder.write(name, data)
        return [PartFile.of(name, data)], ItemReport(len(items), tuple(left_out))

    return make_part(folder, part_name(position), task.fingerprint(position), ItemReport, make)


def check_left_out(left_out: Mapping[str, Sequence[Rejected]], most: int) -> None:
    """Raise `RuntimeError`, naming the first, where more images are left out than may be."""
    lines = [
        f"{dataset} {one.sample_id}: {one.reason} ({one.detail})" for dataset, some in left_out.items() for one in some
    ]
    if len(lines) > most:
        raise RuntimeError(f"{len(lines)} images are left out, more than max_left_out = {most}: {lines[0]}")


def read_items(folder: Folder, part: Part[ItemReport]) -> list[ImageItem]:
    """The items of a part.  Raises `ValueError` where the file is not the one that was written."""
    [file] = part.files
    data = folder.read(file.name)
    path = f"{folder.path}/{file.name}"
    if PartFile.of(file.name, data) != file:
        raise ValueError(f"{path}: not the file that its sidecar means; remove the sidecar and evaluate again")
    try:
        return from_table(pyarrow.ipc.open_file(pa.BufferReader(data)).read_all())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_manifest(task: ItemTask, split: Split, parts: Sequence[Part[ItemReport]]) -> ItemManifest:
    """Vouch for all items of a dataset."""
    manifest = split.manifest
    found = ItemManifest(
        manifest.dataset, manifest.split, task.data_digest, manifest.vocabulary, task.asked, tuple(parts)
    )
    check_all_there(task.folder(), parts)
    task.folder().write(MANIFEST_NAME, seal(dataclasses.asdict(found)))
    return found


def read_manifest(folder: Folder) -> ItemManifest:
    """What lies in a folder of items.  Raises `ValueError` where an evaluation has not come to its end."""
    path = f"{folder.path}/{MANIFEST_NAME}"
    data = folder.read_if_there(MANIFEST_NAME)
    if data is None:
        raise ValueError(f"{path}: no such file: no evaluation has come to its end here")
    return unseal_as(ItemManifest, data, path, "the manifest of an evaluation's items")


def is_items(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is what an evaluation keeps of a dataset."""
    return MANIFEST_NAME in names and any(name.startswith("items-") for name in names)


def verify_items(folder: Folder) -> str:
    """Read all items and say what they are; `ValueError` names the first file that is not as it was written."""
    manifest = read_manifest(folder)
    count = sum(len(items) for items in manifest.items(folder))
    return f"{manifest.dataset}/{manifest.split}, answers to {count} images in {len(manifest.parts)} parts"


def chosen_rows(split: Split, limit: int | None) -> list[int]:
    """The rows to look at: all, or so many of them, spread over the split and the same in every run."""
    count = len(split) if limit is None else limit
    rows: list[int] = some_rows(split.manifest.dataset, len(split), count).tolist()
    return rows


def item_task(
    split: Split,
    rows: Sequence[int],
    rows_per_task: int,
    output: str,
    asked: dict[str, Any],
    max_left_out: int = 0,
) -> ItemTask:
    """These rows of a split, in parts of `rows_per_task`."""
    manifest = split.manifest
    parts = tuple(tuple(rows[start : start + rows_per_task]) for start in range(0, len(rows), rows_per_task))
    digest = hashlib.sha256((manifest.digest() + manifest.vocabulary_digest).encode()).hexdigest()
    return ItemTask(manifest.dataset, split.root, digest, parts, output, asked, max_left_out)
