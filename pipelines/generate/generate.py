"""Automatic masks of all photos below a folder, by a pool of model actors.

Photos are sorted by path and cut into groups; one task turns one group into one file.  A job that was killed finds the
files that are finished by their sidecars and makes the others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import orjson
import pyarrow as pa
import ray.data

from pipelines.dropped import Dropped
from pipelines.generate.coco_results import IMAGES_NAME, RESULTS_NAME, write_coco_results
from pipelines.generate.mask_files import MaskOptions, MaskReport, part_name, write_masks
from pipelines.model_pool import Pool, load_predictor
from pipelines.parts import (
    RAY_RETRIES,
    OnActors,
    Part,
    PartFile,
    answer,
    check_all_there,
    check_is_ours,
    find_part,
    parts_of,
    remove_strangers,
)
from pipelines.progress import Progress
from pipelines.sources.source import Files, Rejected
from semsam.automatic_masks import AutomaticMasks
from semsam.data.sealed import seal
from semsam.storage import Folder

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MANIFEST_NAME, REJECTED_NAME = "manifest.json", "rejected.json"
_OUR_FILE = re.compile(rf"masks-\d{{5,}}\.(arrow|parquet|json|attempt)|{RESULTS_NAME}|{IMAGES_NAME}")
_VOUCHING = re.compile(rf"masks-\d{{5,}}\.(json|attempt)|{MANIFEST_NAME}")


@dataclass(frozen=True)
class Task:
    """Photos to be answered, and where their masks go."""

    files: Files
    output: str  # Local or `s3://`.
    options: MaskOptions
    max_rejected: float = 0.01
    redo: bool = False  # Take no finished file for granted.
    verify: bool = False  # Read all bytes of finished files before they are taken for granted.
    coco_categories: dict[str, int] | None = None  # Ids by object name; None: no COCO results are written.


@dataclass(frozen=True)
class Generated:
    """What lies in the output folder: its `manifest.json`."""

    photos: str
    files: tuple[PartFile, ...]
    num_images: int
    num_masks: int
    rejected: dict[str, int]  # By reason; every one of them is in `rejected.json`.
    options: MaskOptions


def check_output(folder: Folder) -> None:
    """Raise `ValueError` where masks would replace files of others."""
    check_is_ours(folder, re.compile(f"{_OUR_FILE.pattern}|{REJECTED_NAME}"), _VOUCHING)


def find_photos(files: Files) -> list[str]:
    """The paths of all images below the root, sorted; files of other kinds and hidden ones are left alone."""
    return [
        path
        for path in files.glob("**/*")
        if path.lower().endswith(SUFFIXES) and not PurePosixPath(path).name.startswith(".")
    ]


def generate(task: Task, pool: Pool, progress_interval: float) -> Generated:
    """Write the masks of all photos and return what was written.

    Needs a Ray connection unless everything is finished.  Raises `ValueError` where there is no photo, and, when all
    files are written, where more than `max_rejected` of the photos are unusable; there is no manifest then.
    """
    photos = find_photos(task.files)
    if not photos:
        raise ValueError(f"{task.files.path}: no image found ({', '.join(SUFFIXES)})")
    step = task.options.images_per_file
    groups = [photos[start : start + step] for start in range(0, len(photos), step)]
    print(f"generate: {len(photos)} images in {len(groups)} files", flush=True)
    folder = Folder(task.output)
    folder.remove(MANIFEST_NAME)  # It would vouch for files that are about to change.
    done = {} if task.redo else _find_finished(task, folder, groups)
    progress = Progress("generate", len(photos), interval=progress_interval)
    progress.add(sum(len(groups[position]) for position in done), found=True)
    for position, part in _generate_missing(task, groups, done.keys(), pool, progress.note_actors):
        done[position] = part
        progress.add(len(groups[position]))
    progress.close()
    return _finish(task, folder, [done[position] for position in range(len(groups))], len(photos))


def _find_finished(task: Task, folder: Folder, groups: Sequence[Sequence[str]]) -> dict[int, Part[MaskReport]]:
    def look(position: int) -> Part[MaskReport] | None:
        made_from = task.options.fingerprint(task.files.path, groups[position])
        return find_part(folder, part_name(position), made_from, MaskReport, verify=task.verify)

    with ThreadPoolExecutor(16) as threads:
        found = threads.map(look, range(len(groups)))
        return {position: part for position, part in enumerate(found) if part is not None}


def _generate_missing(
    task: Task, groups: Sequence[Sequence[str]], done: Collection[int], pool: Pool, on_actors: OnActors
) -> Iterator[tuple[int, Part[MaskReport]]]:
    """The groups that are not done, with their new parts, as they are finished."""
    missing = sorted(set(range(len(groups))) - set(done))
    if not missing:
        return
    blocks = [pa.table({"position": [position], "images": [list(groups[position])]}) for position in missing]
    options = {"fn_constructor_kwargs": {"task": task}, "max_task_retries": RAY_RETRIES, **pool.options(len(blocks))}
    for keys, part, _ in parts_of(ray.data.from_arrow(blocks), _Generate, MaskReport, on_actors, **options):
        yield keys["position"], part


class _Generate:
    """An actor: one group of photos to one file of masks."""

    def __init__(self, task: Task) -> None:
        import torch

        torch.set_num_threads(1)
        options = task.options
        predictor = load_predictor(options.model, options.image_size, options.prompt_style)
        predictor.set_vocabulary(options.objects, options.parts)
        self._task, self._generator = task, AutomaticMasks(predictor, options.masks)

    def __call__(self, rows: pa.Table) -> pa.Table:
        [position], [images] = rows["position"].to_pylist(), rows["images"].to_pylist()
        task = self._task

        def make() -> tuple[Part[MaskReport], bool]:
            return write_masks(self._generator, task.options, task.files, images, task.output, position, task.redo)

        return answer(f"{part_name(position)}.{task.options.file_format}", {"position": position}, make)


def _finish(task: Task, folder: Folder, parts: Sequence[Part[MaskReport]], num_photos: int) -> Generated:
    rejected = [one for part in parts for one in part.report.rejected]
    dropped = Dropped.of(rejected)
    remove_strangers(folder, _OUR_FILE, parts)
    folder.write(REJECTED_NAME, _listing(rejected))
    for line in dropped.lines():
        print(f"rejected: {line}")
    if dropped.total() > task.max_rejected * num_photos:
        first = f"{dropped.total()} of {num_photos} images are unusable, more than max_rejected = {task.max_rejected:g}"
        raise ValueError("\n  ".join([f"{task.files.path}: {first}", *dropped.lines()]))
    if task.coco_categories is not None:
        write_coco_results(folder, parts, task.coco_categories)
    generated = Generated(
        photos=task.files.path,
        files=tuple(file for part in parts for file in part.files),
        num_images=sum(part.report.num_images for part in parts),
        num_masks=sum(part.report.num_masks for part in parts),
        rejected=dropped.counts,
        options=task.options,
    )
    check_all_there(folder, parts)
    folder.write(MANIFEST_NAME, seal(dataclasses.asdict(generated)))
    return generated


def _listing(rejected: Sequence[Rejected]) -> bytes:
    by_reason: dict[str, list[dict[str, str]]] = {}
    for one in rejected:
        by_reason.setdefault(one.reason, []).append({"image": one.sample_id, "detail": one.detail})
    return orjson.dumps(by_reason, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
