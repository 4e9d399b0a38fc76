"""Masks of everything in a folder of photos: `python -m jobs.generate <config.yaml> [section.field=value ...]`.

    python -m jobs.generate jobs/configs/generate.yaml images=/data/photos output=/data/masks gpus_per_actor=1

A job that was killed goes on where it stopped when it is started again with the same settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import field
from typing import Literal

from jobs.arguments import read_arguments
from jobs.cluster import connect, joined, main_exit, readable_folder, stable_path
from jobs.needs import Needs
from jobs.resources import WAIT, Workers, actors
from pipelines.generate.generate import Generated, Task, check_output, generate
from pipelines.generate.mask_files import MaskOptions
from pipelines.model_pool import ModelReference, Pool, weights_digest
from pipelines.sources.categories import load_categories, vocabulary_names
from semsam.automatic_masks import AutomaticMaskSettings
from semsam.config import Gpus, Positive, PositiveFloat, Seed, Share, settings
from semsam.data.images import MAX_PIXELS
from semsam.data.vocabularies import clean_name
from semsam.model.presets import preset
from semsam.predictor import ImageSize, PromptStyle
from semsam.setting_kinds import did_you_mean
from semsam.storage import Folder


@settings
class GenerateJob:
    """What to look at with which model; the defaults are the released mask generator's, masks at the photos' size."""

    images: str  # A folder or `s3://bucket/prefix`; images in its sub-folders are found, too.
    output: str = "outputs/masks"
    checkpoint: str | None = None  # A folder, local or s3://; None: random weights of `preset`.
    preset: str = "debug"
    seed: Seed = 0
    # Names to choose from: lists of one's own, or one of the seven datasets'.  None: masks are not named.
    objects: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    vocabulary: str | None = None
    image_size: ImageSize = ImageSize(640, 1333)  # The release sets no limit to the long side.
    prompt_style: PromptStyle = field(default_factory=PromptStyle)
    masks: AutomaticMaskSettings = field(default_factory=AutomaticMaskSettings)
    file_format: Literal["arrow", "parquet"] = "parquet"
    # Write the results json of COCO's tools beside the files.  Like all masks, these are of the photos as their EXIF
    # turns them.
    coco_results: bool = False
    max_pixels: Positive = MAX_PIXELS  # Of a photo; larger ones are rejected by their header, and never decoded.
    images_per_file: Positive = 64  # What a task does, and what is lost of the work when it is killed.
    max_rejected: Share = 0.01  # The share of images that may be unusable; beyond it the job fails.
    redo: bool = False  # Make finished files again: for photos that changed in place.
    verify: bool = False  # Read all bytes of finished files before they are taken for granted.
    num_actors: Positive | None = None  # None: two, or the one that there is room for.
    # The pool grows up to so many while work waits and the cluster has room, and lets idle ones go.  None: it does not.
    max_actors: Positive | None = None
    gpus_per_actor: Gpus = 0.0  # May be a share of one.
    # Seconds to wait for CPUs and GPUs that others use or that an autoscaler may add.
    wait_for_resources: PositiveFloat = WAIT
    progress_interval: PositiveFloat = 10.0  # Seconds between lines where there is no terminal.

    def __post_init__(self) -> None:
        known = vocabulary_names()
        if self.vocabulary is not None and self.vocabulary not in known:
            raise ValueError(
                f"vocabulary {self.vocabulary!r} is not one of {known}{did_you_mean(self.vocabulary, known)}"
            )
        preset(self.preset)
        _pool(self)
        if self.vocabulary is not None and (self.objects or self.parts):
            raise ValueError("give either vocabulary or objects and parts")
        for names in (self.objects, self.parts):
            if not all(name.strip() for name in names) or len(set(names)) < len(names):
                raise ValueError(f"objects and parts are lists of different names, none of them empty, not {names}")


def run(job: GenerateJob) -> Generated:
    """Write the masks of every image and return what was written.

    Raises `ValueError` for a folder or checkpoint that cannot be read, before any worker starts, and see
    `pipelines.generate.generate.generate`.
    """
    task = generate_task(job)
    if job.checkpoint is None:
        print(f"no checkpoint: masks of the preset {job.preset} with random weights, which mean nothing")
    with connect(workers(job)):
        generated = generate(task, _pool(job), job.progress_interval)
    rejected = sum(generated.rejected.values())
    print(f"{generated.num_masks} masks in {generated.num_images} images, {rejected} images rejected")
    return generated


def workers(job: GenerateJob) -> Workers:
    """What the job needs of a cluster."""
    return actors(job.num_actors or 1, job.gpus_per_actor, job.wait_for_resources)


def _pool(job: GenerateJob) -> Pool:
    return Pool(job.num_actors, job.gpus_per_actor, job.max_actors)


def generate_task(job: GenerateJob) -> Task:
    """The task that a configuration describes; folder, model and levels are looked at."""
    files = readable_folder(job.images, "images")
    output = stable_path(job.output, "output")
    check_output(Folder(output))
    checkpoint = None if job.checkpoint is None else stable_path(job.checkpoint, "checkpoint")
    reference = ModelReference(checkpoint, job.preset, job.seed)
    model = reference.load("cpu")
    levels = model.settings.num_levels
    if any(not 0 <= level < levels for level in job.masks.levels or ()):
        raise ValueError(f"masks.levels {list(job.masks.levels or ())}: the model's are 0 to {levels - 1}")
    objects, parts, ids = names_of(job)
    options = MaskOptions(
        model=reference,
        model_digest=weights_digest(model),
        image_size=job.image_size,
        prompt_style=job.prompt_style,
        masks=job.masks,
        objects=objects,
        parts=parts,
        file_format=job.file_format,
        images_per_file=job.images_per_file,
        max_pixels=job.max_pixels,
    )
    categories = dict(zip(objects, ids, strict=True)) if job.coco_results else None
    return Task(files, output, options, job.max_rejected, job.redo, job.verify, categories)


def names_of(job: GenerateJob) -> tuple[tuple[str, ...], tuple[str, ...], list[int]]:
    """Object names, part names, and the objects' ids: those of the dataset's own files, else 1, 2, 3..."""
    if job.vocabulary is None:
        return job.objects, job.parts, list(range(1, len(job.objects) + 1))
    categories = load_categories(job.vocabulary)
    ids: dict[str, int] = {}
    for row in categories.document["objects"]:  # Names that are the same once cleaned share the first one's id.
        ids.setdefault(clean_name(row["name"]), row["id"])
    parts = dict.fromkeys(clean_name(name) for name in categories.vocabulary.parts)
    return tuple(ids), tuple(parts), list(ids.values())


def needs(job: GenerateJob) -> Needs:
    """What the job would need."""
    return Needs.of([job.images, job.checkpoint], [job.output], workers(job))


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last line says where the masks are."""
    job = read_arguments(GenerateJob, arguments, __doc__, needs=needs)
    with joined(workers(job)):
        run(job)
    print(f"masks and manifest in {stable_path(job.output, 'output')}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
