"""Native datasets to Arrow shards: `python -m jobs.prepare <config.yaml> [section.field=value ...]`.

    python -m jobs.prepare datasets.ade20k.root=/data/ADEChallengeData2016 output=/data/shards

A job that was killed goes on where it stopped when it is started again with the same settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from pydantic import Field

from jobs.arguments import read_arguments
from jobs.cluster import connect, joined, main_exit, readable_folder, stable_path
from jobs.needs import Needs
from jobs.resources import WAIT, Workers
from pipelines.prepare.prepare import check_output, prepare
from pipelines.prepare.shard_writer import ShardOptions, SplitTask
from pipelines.sources import SOURCES, check_datasets
from pipelines.sources.coco_json import sample_id
from pipelines.sources.source import Source
from semsam.config import Count, Positive, PositiveFloat, Share, settings
from semsam.data.images import MAX_PIXELS
from semsam.data.manifest import Manifest
from semsam.data.schema import SPLITS
from semsam.storage import Folder, read_file


@settings
class DatasetSettings:
    """Where one dataset lies and how it is prepared."""

    root: str  # The folder of the dataset's own release, local or s3://.
    splits: tuple[str, ...] = SPLITS
    # The share of a split's images, and of its regions, that may be unusable; beyond it the job fails.
    max_rejected: Share = 0.01
    # Other folders that its images may lie in, absolute or as seen from the root: PACO's are COCO's (`../coco`).
    neighbours: tuple[str, ...] = ()
    # Kinds of annotation that this copy may lack altogether, though less is learnt from it without ("instances").
    allow_absent: tuple[str, ...] = ()
    # Images to leave out: ids, or a file with one to a line (jobs.prepare lists images that two datasets share so).
    exclude: tuple[str | int, ...] | str = ()
    max_pixels: Positive = MAX_PIXELS  # Of an image; a larger one is counted as unusable, and never decoded.
    # Larger train images are made smaller, with their masks; evaluation splits keep their pixels.  0: none are.
    max_long_side: Count | None = None  # None: what the dataset's source says, 1024 for sa1b and 0 for the other six.
    # What the source of this dataset alone knows, such as val_share (see its class in pipelines/sources).
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.splits) - set(SPLITS))
        if unknown or not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits must be some of {list(SPLITS)}, not {list(self.splits)}")
        if self.max_long_side and "train" not in self.splits:
            raise ValueError("max_long_side is for the train split, which is not among splits")

    def excluded(self) -> tuple[str, ...]:
        """The ids to leave out, as sources write them; `ValueError` for a file of them that cannot be read."""
        if isinstance(self.exclude, str):
            try:
                ids: list[str | int] = list(read_file(self.exclude).decode().split())
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"exclude: {self.exclude}: {error}") from None
        else:
            ids = list(self.exclude)
        return tuple(sorted({sample_id(int(one)) if str(one).isdecimal() else str(one) for one in ids}))

    def source(self, dataset: str) -> Source:
        """The dataset's source with these settings."""
        source = SOURCES[dataset].with_options(self.options)
        return replace(source, allow_absent=self.allow_absent, max_pixels=self.max_pixels)

    def long_side(self, dataset: str, split: str) -> int:
        """The limit for one split; 0 for none."""
        if split != "train":
            return 0
        return SOURCES[dataset].train_long_side if self.max_long_side is None else self.max_long_side


@settings
class PrepareJob:
    """What to prepare from where."""

    datasets: dict[str, DatasetSettings]  # By name, one of those in pipelines/sources.
    output: str = "outputs/shards"  # Local or s3://; shards go to <output>/<dataset>/<split>/.
    rows_per_shard: Positive = 512
    jpeg_quality: Annotated[Positive, Field(le=100)] = 92  # Of resized images; others keep their bytes.
    progress_interval: PositiveFloat = 10.0  # Seconds between lines where there is no terminal.
    wait_for_resources: PositiveFloat = WAIT  # Seconds to wait for a CPU that others use or that an autoscaler may add.
    redo: bool = False  # Write finished shards again: for source files that changed in place.
    verify: bool = False  # Read all bytes of finished shards before they are taken for granted.

    def __post_init__(self) -> None:
        check_datasets("datasets", self.datasets)
        if not self.datasets:
            raise ValueError(f"datasets: name at least one of {list(SOURCES)}, each with its root")
        for dataset, one in self.datasets.items():
            try:
                one.source(dataset)
            except ValueError as error:
                raise ValueError(f"datasets.{dataset}.options.{error}") from None


def run(job: PrepareJob) -> list[Manifest]:
    """Prepare every split of every dataset and return the manifests.

    Raises `ValueError` for a root that is not there before any worker starts, and as `pipelines.prepare.prepare` does.
    """
    tasks = split_tasks(job)
    with connect(workers(job)):
        manifests = prepare(tasks, job.progress_interval)
    print(table(manifests))
    return manifests


def split_tasks(job: PrepareJob) -> list[SplitTask]:
    """One task per split, in the order of the configuration; roots are looked for."""
    output = stable_path(job.output, "output")
    tasks = []
    for dataset, one in job.datasets.items():
        files = readable_folder(one.root, f"datasets.{dataset}.root", one.neighbours)
        try:
            excluded = one.excluded()
        except ValueError as error:
            raise ValueError(f"datasets.{dataset}.{error}") from None
        source = one.source(dataset).found_in(files)
        for split in one.splits:
            check_output(Folder(f"{output}/{dataset}/{split}"))
            tasks.append(
                SplitTask(
                    source=source,
                    files=files,
                    split=split,
                    output=f"{output}/{dataset}/{split}",
                    options=ShardOptions(job.rows_per_shard, one.long_side(dataset, split), job.jpeg_quality, excluded),
                    code_version=_code_version(),
                    max_rejected=one.max_rejected,
                    redo=job.redo,
                    verify=job.verify,
                )
            )
    return tasks


def workers(job: PrepareJob) -> Workers:
    """What the job needs of a cluster: a task at a time, and no setting says more."""
    cluster = "RAY_ADDRESS"
    return Workers(1, 1, 0, cluster, cluster, cluster, "wait_for_resources", job.wait_for_resources)


def table(manifests: Sequence[Manifest]) -> str:
    """What was kept and what was dropped, a line per split and one per reason."""
    lines = [f"{'dataset':<16}{'split':<8}{'images':>10}{'regions':>12}{'shards':>8}  dropped"]
    for manifest in manifests:
        images, regions = sum(manifest.dropped_samples.values()), sum(manifest.dropped_regions.values())
        counts = f"{manifest.num_samples:>10}{manifest.num_regions:>12}{len(manifest.shards):>8}"
        dropped = f"images {images}, regions {regions}" if images or regions else "nothing"
        lines.append(f"{manifest.dataset:<16}{manifest.split:<8}{counts}  {dropped}")
        lines += [f"  {kind}: not in this copy; what needs them will say so" for kind in manifest.absent]
        for what, reasons in (("images", manifest.dropped_samples), ("regions", manifest.dropped_regions)):
            for reason, count in reasons.items():
                example = manifest.examples[reason][0]
                lines.append(f"  {what}: {count} x {reason} (e.g. {example.sample_id}: {example.detail})")
    return "\n".join(lines)


def _code_version() -> str:
    try:
        return version("semsam")
    except PackageNotFoundError:  # A working directory that was shipped to a cluster, not installed.
        return "not installed"


def needs(job: PrepareJob) -> Needs:
    """What the job would need."""
    return Needs.of([one.root for one in job.datasets.values()], [job.output], workers(job))


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last line says where the shards are."""
    job = read_arguments(PrepareJob, arguments, __doc__, needs=needs)
    with joined(workers(job)):
        run(job)
    print(f"shards and manifests in {stable_path(job.output, 'output')}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
