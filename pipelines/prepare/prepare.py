"""Native datasets to Arrow shards and manifests, on all cores of a cluster.

Three steps: every split's index is read by one task and cut into blocks of entries, which stay in Ray's object store;
Ray Data turns each block into a shard; a split whose shards are all there gets its manifest.
"""

from __future__ import annotations

import base64
import bisect
import dataclasses
import hashlib
import itertools
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayTaskError

from pipelines.dropped import Dropped
from pipelines.parts import RAY_RETRIES, Part, answer, check_all_there, check_is_ours, parts_of, remove_strangers
from pipelines.prepare.shard_writer import ShardReport, SplitTask, write_shard
from pipelines.progress import Progress
from pipelines.sources.source import EXCLUDED, REASONS_BY_DESIGN, Entry, Index, Rejected, Source
from semsam.data.manifest import MANIFEST_NAME, IndexFile, Manifest
from semsam.data.row_categories import ROW_CATEGORIES_NAME, from_bytes, to_bytes
from semsam.data.shard_file import shard_name
from semsam.storage import Folder

ENTRIES = pa.schema(
    [
        pa.field("task", pa.int32()),  # Position of the split in the job.
        pa.field("shard", pa.int32()),
        pa.field("sample_id", pa.string()),
        pa.field("image", pa.string()),
        pa.field("annotations", pa.large_binary()),
    ]
)
_OUR_FILE = re.compile(r"shard-\d{5,}\.(arrow|rows|json|attempt)")
_VOUCHING = re.compile(rf"shard-\d{{5,}}\.(json|attempt)|{MANIFEST_NAME}")


@dataclass(frozen=True)
class IndexSummary:
    """What is known of a split before any image is opened."""

    num_entries: int
    num_shards: int
    dropped: Dropped
    dropped_regions: Dropped  # Rows of annotations that belong to no image, or that cannot be read.
    absent: tuple[str, ...]  # Kinds of annotation that this copy lacks altogether.
    excluded: frozenset[str]  # The ids of `SplitTask.exclude` that were there.
    shared_ids: tuple[str, ...]  # All ids, where other datasets have the same images under the same ones.


def check_output(folder: Folder) -> None:
    """Raise `ValueError` where shards would replace files of others."""
    check_is_ours(folder, re.compile(f"{_OUR_FILE.pattern}|{ROW_CATEGORIES_NAME}"), _VOUCHING)


def prepare(tasks: Sequence[SplitTask], progress_interval: float) -> list[Manifest]:
    """Prepare splits side by side and return their manifests, in order.

    Needs a Ray connection.  Raises `ValueError` for an index that cannot be read or shows more unusable images than
    the split's `max_rejected`, before any shard is written; and, after all other splits are finished, for the splits
    of which too much had to be dropped.  Those get no manifest, so that nothing can be trained on them by mistake.
    """
    print(f"prepare: reading the index of {len(tasks)} splits", flush=True)
    summaries, blocks = _index(tasks)
    faults = [fault for task, summary in zip(tasks, summaries, strict=True) if (fault := _index_fault(task, summary))]
    if faults:
        raise ValueError("\n".join(faults))
    _tell_of_ids(tasks, summaries)
    for task in tasks:
        Folder(task.output).remove(MANIFEST_NAME)  # It would vouch for shards that are about to change.
    finished: dict[int, tuple[str, Manifest]] = {}
    parts: list[list[Part[ShardReport]]] = [[] for _ in tasks]
    progress = Progress("prepare", sum(s.num_entries for s in summaries), interval=progress_interval)
    for position, part, is_found in _write_shards(tasks, blocks):
        progress.add(part.report.shard.entries, is_found)
        parts[position].append(part)
        if len(parts[position]) == summaries[position].num_shards:
            finished[position] = _finish(tasks[position], summaries[position], parts[position])
    progress.close()
    for position, task in enumerate(tasks):
        if position not in finished:  # Its index was all it had.
            finished[position] = _finish(task, summaries[position], [])
    faults = [fault for _, (fault, _) in sorted(finished.items()) if fault]
    if faults:
        raise ValueError("\n".join(faults))
    return [finished[position][1] for position in range(len(tasks))]


def _index(tasks: Sequence[SplitTask]) -> tuple[list[IndexSummary], list[ray.ObjectRef]]:
    """A summary of each split, and the blocks of entries of all of them; the entries never come to this process."""
    datasets: dict[tuple[Source, str], list[int]] = defaultdict(list)  # The splits of each are listed together.
    for position, task in enumerate(tasks):
        datasets[task.source, task.files.path].append(position)
    read = ray.remote(num_returns="streaming", max_retries=1)(_read_indexes)
    results = [read.remote({position: tasks[position] for position in group}) for group in datasets.values()]
    summaries: dict[int, IndexSummary] = {}
    blocks: dict[int, list[ray.ObjectRef]] = {}
    for result, group in zip(results, datasets.values(), strict=True):
        for position in group:
            summaries[position] = _get(next(result))
            blocks[position] = list(itertools.islice(result, summaries[position].num_shards))
    ordered = range(len(tasks))
    return [summaries[one] for one in ordered], [block for one in ordered for block in blocks[one]]


def _read_indexes(tasks: Mapping[int, SplitTask]) -> Iterator[IndexSummary | pa.Table]:
    """For each split of a dataset, by its position in the job: a summary, then one table of entries per shard."""
    first = next(iter(tasks.values()))
    indexes = first.source.indexes(first.files, [task.split for task in tasks.values()])
    for (position, task), index in zip(tasks.items(), indexes, strict=True):
        yield from _summary_and_blocks(position, task, index)


def _summary_and_blocks(position: int, task: SplitTask, index: Index) -> Iterator[IndexSummary | pa.Table]:
    excluded = {one: at for one in task.options.exclude if (at := _place(index.entries, one)) is not None}
    kept = np.delete(np.arange(len(index.entries)), list(excluded.values()))
    rows = task.options.rows_per_shard
    starts = range(0, len(kept), rows)
    left_out = (Rejected(EXCLUDED, one, "named in exclude") for one in sorted(excluded))
    yield IndexSummary(
        num_entries=len(kept),
        num_shards=len(starts),
        dropped=Dropped.of(itertools.chain(index.rejected, left_out)),
        dropped_regions=Dropped.of(index.rejected_regions),
        absent=index.absent,
        excluded=frozenset(excluded),
        shared_ids=tuple(index.entries[one].sample_id for one in kept.tolist()) if task.source.image_ids else (),
    )
    for shard, start in enumerate(starts):
        places = kept[start : start + rows]
        # All of them from the first to the last, so that a list of millions may make them at once.
        between = index.entries[int(places[0]) : int(places[-1]) + 1]
        entries = [between[one] for one in (places - places[0]).tolist()]
        columns = [
            [position] * len(entries),
            [shard] * len(entries),
            [entry.sample_id for entry in entries],
            [entry.image for entry in entries],
            [entry.annotations for entry in entries],
        ]
        yield pa.table(columns, schema=ENTRIES)


def _place(entries: Sequence[Entry], sample_id: str) -> int | None:
    """Where an id stands among entries that are sorted by it; None where it does not."""
    place = bisect.bisect_left(entries, sample_id, key=lambda entry: entry.sample_id)
    return place if place < len(entries) and entries[place].sample_id == sample_id else None


def _tell_of_ids(tasks: Sequence[SplitTask], summaries: Sequence[IndexSummary]) -> None:
    """Say which ids to exclude are nowhere, and list the images that two splits share."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        wanted[task.source.dataset].update(task.options.exclude)
    for task, summary in zip(tasks, summaries, strict=True):
        wanted[task.source.dataset] -= summary.excluded
    for dataset, unknown in wanted.items():
        if unknown:
            print(
                f"{dataset}: {len(unknown)} ids to exclude are in none of its splits (e.g. {min(unknown)})", flush=True
            )
    listed = [(task, set(one.shared_ids)) for task, one in zip(tasks, summaries, strict=True) if one.shared_ids]
    for (task, ids), (other, other_ids) in itertools.combinations(listed, 2):
        shared = sorted(ids & other_ids)
        if shared and task.source.image_ids == other.source.image_ids:
            folder, name = Folder(posixpath.dirname(posixpath.dirname(task.output))), _shared_name(task, other)
            folder.write(name, "".join(f"{one}\n" for one in shared).encode())
            remedy = f"datasets.{other.source.dataset}.exclude={folder.path}/{name}"
            print(f"{task.name} and {other.name} share {len(shared)} images; to leave them out: {remedy}", flush=True)


def _shared_name(task: SplitTask, other: SplitTask) -> str:
    return f"shared/{'--'.join(one.name.replace('/', '-') for one in (task, other))}.txt"


def _write_shards(
    tasks: Sequence[SplitTask], blocks: Sequence[ray.ObjectRef]
) -> Iterator[tuple[int, Part[ShardReport], bool]]:
    """The split, the shard, and whether it was found finished, for each shard in the order in which they end."""
    if not blocks:
        return
    entries = ray.data.from_arrow_refs(list(blocks))
    options = {"fn_kwargs": {"tasks": tuple(tasks)}, "num_cpus": 1, "max_retries": RAY_RETRIES}
    for keys, part, found in parts_of(entries, _write_block, ShardReport, **options):
        yield keys["task"], part, found


def _write_block(block: pa.Table, tasks: Sequence[SplitTask]) -> pa.Table:
    position, shard = block["task"][0].as_py(), block["shard"][0].as_py()
    columns = (block[name].to_pylist() for name in ("sample_id", "image", "annotations"))
    entries = [Entry(*values) for values in zip(*columns, strict=True)]
    where = f"{tasks[position].name}, {shard_name(shard)}"
    return answer(where, {"task": position}, lambda: write_shard(tasks[position], shard, entries))


def _finish(task: SplitTask, summary: IndexSummary, parts: Sequence[Part[ShardReport]]) -> tuple[str, Manifest]:
    """The manifest, written unless too much was dropped; and in that case what to tell the user."""
    parts = sorted(parts, key=lambda part: part.report.shard.first_entry)
    reports = [part.report for part in parts]
    assert sum(report.shard.entries for report in reports) == summary.num_entries
    samples = Dropped.merge([summary.dropped, *(report.dropped_samples for report in reports)])
    regions = Dropped.merge([summary.dropped_regions, *(report.dropped_regions for report in reports)])
    vocabulary = task.source.vocabulary()
    manifest = Manifest(
        dataset=task.source.dataset,
        split=task.split,
        source_root=task.files.path,
        shards=tuple(report.shard for report in reports),
        num_samples=sum(report.shard.rows for report in reports),
        num_regions=sum(report.num_regions for report in reports),
        dropped_samples=samples.counts,
        dropped_regions=regions.counts,
        examples=Dropped.merge([samples, regions]).examples,
        vocabulary=vocabulary,
        vocabulary_digest=vocabulary.digest(),
        code_version=task.code_version,
        options=orjson.loads(
            orjson.dumps(dataclasses.asdict(task.options) | {"source": dataclasses.asdict(task.source)})
        ),
        absent=summary.absent,
    )
    faults = [
        _fault(task, "images", samples, manifest.num_samples + samples.total()),
        _fault(task, "regions", regions, manifest.num_regions + regions.total()),
    ]
    if not any(faults):
        folder = Folder(task.output)
        remove_strangers(folder, _OUR_FILE, parts)
        manifest = dataclasses.replace(manifest, row_categories=_publish_row_categories(folder, reports))
        check_all_there(folder, parts)
        folder.write(MANIFEST_NAME, manifest.to_json())
    return "\n".join(filter(None, faults)), manifest


def _publish_row_categories(folder: Folder, reports: Sequence[ShardReport]) -> IndexFile | None:
    """What the manifest says of the names of all rows, put together from those of each shard; None without names."""
    encoded = [report.row_categories for report in reports if report.row_categories]
    if not encoded:
        return None
    tables = (from_bytes(base64.b64decode(one), ROW_CATEGORIES_NAME) for one in encoded)
    data = to_bytes(batch for table in tables for batch in table.to_batches())
    folder.write(ROW_CATEGORIES_NAME, data)
    return IndexFile(ROW_CATEGORIES_NAME, len(data), hashlib.sha256(data).hexdigest())


def _index_fault(task: SplitTask, summary: IndexSummary) -> str:
    total = summary.num_entries + summary.dropped.total()
    if total == 0:
        return f"{task.name}: no image found in {task.files.path}"
    return _fault(task, "images", summary.dropped, total)


def _fault(task: SplitTask, what: str, dropped: Dropped, total: int) -> str:
    faults = dropped.without(REASONS_BY_DESIGN)
    if faults.total() <= task.max_rejected * total:
        return ""
    first = (
        f"{task.name}: {faults.total()} of {total} {what} are unusable, more than max_rejected = {task.max_rejected:g}"
    )
    return "\n  ".join([first, *faults.lines()])


def _get(result: ray.ObjectRef) -> IndexSummary:
    try:
        summary: IndexSummary = ray.get(result)
    except RayTaskError as error:
        raise error.cause from error
    return summary
