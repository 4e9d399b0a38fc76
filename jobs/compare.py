"""What changed between two evaluations of the same images: `python -m jobs.compare <evaluation> <evaluation>`.

    python -m jobs.compare outputs/before outputs/after show=10

Each headline number with its difference and the 95% interval of that, over the same images in pairs; `*` where the
interval does not hold 0.  Then the images that moved most.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.arguments import read_arguments
from jobs.cluster import main_exit, stable_path
from jobs.evaluate import ITEMS
from jobs.needs import Needs
from pipelines.evaluate.item_files import MANIFEST_NAME, ItemManifest, read_manifest
from pipelines.evaluate.measuring import measured
from semsam.config import Count, Positive, settings
from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.headlines import HEADLINES
from semsam.evaluation.intervals import Interval, paired_intervals
from semsam.evaluation.protocols import metric_name
from semsam.storage import Folder


@settings
class CompareJob:
    """Which evaluations, by their output folders."""

    before: str
    after: str
    resamples: Positive = 1000
    show: Count = 5  # Images that moved most, of each number.


@dataclass(frozen=True)
class Moved:
    """An image whose number changed."""

    sample_id: str
    before: float
    after: float


@dataclass(frozen=True)
class Difference:
    """One number of both evaluations."""

    name: str  # In MLflow.
    before: float
    after: float
    interval: Interval  # Of after - before.
    moved: tuple[Moved, ...]  # Those that moved most, the largest change first.

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves no room for no difference."""
        return not self.interval.low <= 0 <= self.interval.high


def run(job: CompareJob) -> list[Difference]:
    """Every headline number that both evaluations have.

    Raises `ValueError` where their items are not of the same images, asked the same questions.
    """
    folders = [stable_path(path, name) for path, name in ((job.before, "before"), (job.after, "after"))]
    datasets = [_datasets(folder) for folder in folders]
    if datasets[0] != datasets[1]:
        raise ValueError(f"{folders[0]} is of {datasets[0]}, {folders[1]} of {datasets[1]}: not the same datasets")
    found: list[Difference] = []
    for dataset in datasets[0]:
        before, after = (Folder(f"{folder}/{ITEMS}/{dataset}") for folder in folders)
        manifests = read_manifest(before), read_manifest(after)
        _check_same(dataset, *manifests)
        found += _differences(dataset, measured(before, manifests[0]), measured(after, manifests[1]), job)
    return found


def table(differences: Sequence[Difference]) -> str:
    """The numbers as lines."""
    width = max([44, *(len(one.name) + 1 for one in differences)])
    lines = [f"{'metric':<{width}}{'before':>8}{'after':>8}{'change':>9}{'95%':>18}"]
    for one in differences:
        change, low, high = (f"{value:+.3f}" for value in (one.after - one.before, one.interval.low, one.interval.high))
        numbers = f"{one.before:>8.3f}{one.after:>8.3f}{change:>9}{f'{low} to {high}':>18}"
        lines.append(f"{one.name:<{width}}{numbers}{' *' * one.is_sure}")
    for one in differences:
        if one.moved:
            lines.append(f"\n{one.name}: the images that moved most")
            lines += [f"  {image.sample_id:<40}{image.before:>8.3f} -> {image.after:.3f}" for image in one.moved]
    return "\n".join(lines)


def _datasets(folder: str) -> list[str]:
    items = f"{folder}/{ITEMS}"
    names = [name for name in Folder(items).folders() if Folder(f"{items}/{name}").exists(MANIFEST_NAME)]
    if not names:
        raise ValueError(f"{items}: no evaluation has come to its end here")
    return names


def _check_same(dataset: str, before: ItemManifest, after: ItemManifest) -> None:
    for what, one, other in (
        ("split", before.split, after.split),
        ("data", before.data_digest, after.data_digest),
        ("questions", before.asked.get("questions"), after.asked.get("questions")),
    ):
        if one != other:
            raise ValueError(f"{dataset}: the evaluations are not of the same {what}: {one} and {other}")


def _differences(dataset: str, before: DatasetNumbers, after: DatasetNumbers, job: CompareJob) -> Iterator[Difference]:
    if before.sample_ids != after.sample_ids:
        only = sorted(set(before.sample_ids) ^ set(after.sample_ids))
        raise ValueError(
            f"{dataset}: not the same images: {len(only)} are in one evaluation only: {', '.join(only[:3])}"
        )
    for protocol, names in HEADLINES.items():
        if protocol not in before.protocols or protocol not in after.protocols:
            continue
        one, other = before.protocols[protocol], after.protocols[protocol]
        intervals = paired_intervals(one.images, other.images, num_resamples=job.resamples, names=names)
        of_images = one.images.per_image(), other.images.per_image()
        for name, interval in intervals.items():
            moved = _moved(before.sample_ids, of_images[0].get(name), of_images[1].get(name), job.show)
            metric = metric_name(f"{protocol}/{name}", dataset)
            yield Difference(metric, one.values[name], other.values[name], interval, moved)


def _moved(
    sample_ids: Sequence[str], before: np.ndarray | None, after: np.ndarray | None, count: int
) -> tuple[Moved, ...]:
    """The images whose own number changed most; none where a number is not one of single images."""
    if before is None or after is None:
        return ()
    change = np.nan_to_num(abs(after - before))
    order = np.argsort(-change, kind="stable")[:count]
    return tuple(Moved(sample_ids[i], float(before[i]), float(after[i])) for i in order if change[i] > 0)


def needs(job: CompareJob) -> Needs:
    """What the job would need."""
    return Needs.of([job.before, job.after], [])


def main(arguments: Sequence[str]) -> None:
    """Print what a command line asks for."""
    print(table(run(read_arguments(CompareJob, arguments, __doc__, first=("before", "after"), needs=needs))))


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
