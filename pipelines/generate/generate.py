"""Automatic masks of all photos below a folder, by a pool of model actors.

Photos are sorted by path and cut into groups; one task turns one group into one file.  A job that was killed finds the
files that are finished by their sidecars and makes the others.
"""

from __future__ import annotations

import dataclasses
import re
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import orjson
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from pipelines.generate.coco_results import IMAGES_NAME, RESULTS_NAME, write_coco_results
from pipelines.dropped import Dropped
from pipelines.files import Files
from pipelines.generate.mask_files import MaskFile, Options, file_name, find_finished, sidecar_name, write_masks
from pipelines.model_pool import Pool, load_predictor
from pipelines.progress import Progress
from pipelines.sources.source import Rejected
from semsam.automatic_masks import AutomaticMasks
from semsam.storage import Folder

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MANIFEST_NAME, REJECTED_NAME = "manifest.json", "rejected.json"
# For an image that kills its worker: Ray Data's default is to try for ever.
MAX_RETRIES = 5
_OUR_FILE = re.compile(r"masks-\d+\.(arrow|parquet|json)")


@dataclass(frozen=True)
class Task:
    """Photos to be answered, and where their masks go."""

    files: Files
    output: str  # Local or `s3://`.
    options: Options
    max_rejected: float = 0.01
    redo: bool = False  # Take no finished file for granted.
    coco_categories: dict[str, int] | None = None  # Ids by object name; None: no COCO results are written.


@dataclass(frozen=True)
class Generated:
    """What lies in the output folder: its `manifest.json`."""

    photos: str
    files: tuple[MaskFile, ...]
    num_images: int
    num_masks: int
    rejected: dict[str, int]  # By reason; every one of them is in `rejected.json`.
    options: Options


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
        raise ValueError(f"{task.files.root}: no image found ({', '.join(SUFFIXES)})")
    step = task.options.images_per_file
    groups = [photos[start : start + step] for start in range(0, len(photos), step)]
    print(f"generate: {len(photos)} images in {len(groups)} files", flush=True)
    folder = Folder(task.output)
    folder.remove(MANIFEST_NAME)  # It would vouch for files that are about to change.
    done = {} if task.redo else _find_finished(task, folder, groups)
    progress = Progress("generate", len(photos), interval=progress_interval)
    progress.add(sum(len(groups[position]) for position in done), found=True)
    for position, file in _generate_missing(task, groups, done.keys(), pool):
        done[position] = file
        progress.add(len(groups[position]))
    progress.close()
    return _finish(task, folder, [done[position] for position in range(len(groups))], len(photos))


def _find_finished(task: Task, folder: Folder, groups: Sequence[Sequence[str]]) -> dict[int, MaskFile]:
    def look(position: int) -> MaskFile | None:
        made_from = task.options.fingerprint(task.files.root, groups[position])
        return find_finished(folder, position, made_from)

    with ThreadPoolExecutor(16) as threads:
        found = threads.map(look, range(len(groups)))
        return {position: file for position, file in enumerate(found) if file is not None}


def _generate_missing(
    task: Task, groups: Sequence[Sequence[str]], done: Collection[int], pool: Pool
) -> Iterator[tuple[int, MaskFile]]:
    """The groups that are not done, with their new files, as they are finished."""
    missing = sorted(set(range(len(groups))) - set(done))
    if not missing:
        return
    blocks = [pa.table({"position": [position], "images": [list(groups[position])]}) for position in missing]
    with warnings.catch_warnings():
        # Ray Data means to name these parameters in a later version; in this one there is no other way to them.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        results = ray.data.from_arrow(blocks).map_batches(
            _Generate,
            fn_constructor_kwargs={"task": task},
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(size=min(pool.num_actors, len(blocks))),
            num_gpus=pool.num_gpus,
            max_task_retries=MAX_RETRIES,
        )
    try:
        for row in results.iter_rows():
            file = MaskFile.from_json(row["file"])
            if file is None:
                error = RuntimeError(row["error"])
                error.add_note(row["trace"])
                raise error
            yield row["position"], file
    except RayError as error:
        raise RuntimeError(f"a file failed {MAX_RETRIES + 1} times because its worker died, or would not start") from (
            error
        )


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
        file, error, trace = b"", "", ""
        try:
            task = self._task
            file = write_masks(self._generator, task.options, task.files, images, task.output, position).to_json()
        except Exception as fault:  # Ray Data would keep its text to itself.
            error = f"{file_name(position, self._task.options.file_format)}: {type(fault).__name__}: {fault}"
            trace = traceback.format_exc()
        return pa.table({"position": [position], "file": [file], "error": [error], "trace": [trace]})


def _finish(task: Task, folder: Folder, files: Sequence[MaskFile], num_photos: int) -> Generated:
    rejected = [one for file in files for one in file.rejected]
    dropped = Dropped.of(rejected)
    _remove_strangers(folder, files)
    with folder.publishing(REJECTED_NAME) as draft:
        draft.write_bytes(_listing(rejected))
    for line in dropped.lines():
        print(f"rejected: {line}")
    if dropped.total() > task.max_rejected * num_photos:
        first = f"{dropped.total()} of {num_photos} images are unusable, more than max_rejected = {task.max_rejected:g}"
        raise ValueError("\n  ".join([f"{task.files.root}: {first}", *dropped.lines()]))
    if task.coco_categories is not None:
        write_coco_results(folder, files, task.coco_categories)
    generated = Generated(
        photos=task.files.root,
        files=tuple(files),
        num_images=sum(file.num_images for file in files),
        num_masks=sum(file.num_masks for file in files),
        rejected=dropped.counts,
        options=task.options,
    )
    with folder.publishing(MANIFEST_NAME) as draft:
        draft.write_bytes(orjson.dumps(dataclasses.asdict(generated), option=orjson.OPT_INDENT_2))
    return generated


def _listing(rejected: Sequence[Rejected]) -> bytes:
    by_reason: dict[str, list[dict[str, str]]] = {}
    for one in rejected:
        by_reason.setdefault(one.reason, []).append({"image": one.sample_id, "detail": one.detail})
    return orjson.dumps(by_reason, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)


def _remove_strangers(folder: Folder, files: Sequence[MaskFile]) -> None:
    """Delete what an earlier run with more files, of another format, or with COCO results has left."""
    ours = {file.path for file in files} | {sidecar_name(position) for position in range(len(files))}
    for name in folder.names():
        if (_OUR_FILE.fullmatch(name) and name not in ours) or name in (RESULTS_NAME, IMAGES_NAME):
            folder.remove(name)
