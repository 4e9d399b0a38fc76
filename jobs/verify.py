"""Is what lies in a folder what was written?  `python -m jobs.verify <folder>`, local or s3://.

    python -m jobs.verify /data/shards

Finds the shards, runs with their checkpoints, models, masks and items of evaluations at and below the folder, reads
every byte of them, and prints a table.  Exit status 1 where anything is damaged, or where there is nothing to look at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs.arguments import read_arguments
from jobs.cluster import main_exit, stable_path
from jobs.needs import Needs
from pipelines.evaluate.item_files import is_items, verify_items
from pipelines.generate.verify import is_masks, verify_masks
from semsam.config import Positive, settings
from semsam.data.manifest import MANIFEST_NAME
from semsam.data.shards import Split
from semsam.model.semantic_sam import CONFIG_FILE, WEIGHTS_FILE, SemanticSam
from semsam.model.weight_files import STATE_FILE, read_checked, read_fingerprints
from semsam.storage import Folder
from semsam.training.checkpoint import verify_checkpoint

MAX_DEPTH = 4  # Of folders below the one that was named: <output>/shards/<dataset>/<split>.


@settings
class VerifyJob:
    """What to look at."""

    folder: str  # Of shards, of a run, of a checkpoint, of a model or of masks, or any folder above them.
    threads: Positive = 4


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    kind: str
    path: str
    seen: str  # What there is of it.
    fault: str  # Empty where all is well.


def run(job: VerifyJob) -> list[Finding]:
    """A finding for everything in the folder, sorted by path.  Raises `ValueError` where there is nothing to see."""
    folder = Folder(stable_path(job.folder, "folder"))
    if not folder.is_there():
        raise ValueError(f"{folder.path}: no such folder")
    with ThreadPoolExecutor(job.threads) as pool:
        checks = [pool.submit(_check, *found) for found in _find(folder, MAX_DEPTH)]
        findings = sorted((check.result() for check in checks), key=lambda finding: finding.path)
    if not findings:
        raise ValueError(f"{folder.path}: neither shards, checkpoints, models, masks nor items here or below")
    return findings


def table(findings: Sequence[Finding]) -> str:
    """A line for each finding."""
    return "\n".join(
        f"{'damaged' if finding.fault else 'ok':<9}{finding.kind:<12}{finding.path}  {finding.fault or finding.seen}"
        for finding in findings
    )


def _find(folder: Folder, depth: int) -> Iterator[tuple[str, Folder, Callable[[Folder], str]]]:
    """What can be looked at, here and below: its kind, its folder, and what reads all of it."""
    names = folder.sizes().keys()
    if is_masks(names):
        yield "masks", folder, verify_masks
    elif is_items(names):
        yield "items", folder, verify_items
    elif MANIFEST_NAME in names:
        yield "shards", folder, _verify_split
    elif STATE_FILE in names:
        yield "checkpoint", folder, verify_checkpoint
    elif {CONFIG_FILE, WEIGHTS_FILE} <= names:
        yield "model", folder, _verify_model
    elif depth:
        for name in folder.folders():
            yield from _find(folder / name, depth - 1)


def _check(kind: str, folder: Folder, verify: Callable[[Folder], str]) -> Finding:
    try:
        return Finding(kind, folder.path, verify(folder), "")
    except (ValueError, OSError) as error:
        return Finding(kind, folder.path, "", str(error))


def _verify_split(folder: Folder) -> str:
    split = Split(folder.path)
    split.verify()
    return f"{split.manifest.dataset}/{split.manifest.split}, {len(split)} images in {len(split.rows_of_shard)} shards"


def _verify_model(folder: Folder) -> str:
    count = sum(parameter.numel() for parameter in SemanticSam.load(folder.path).parameters())
    noted = read_fingerprints(folder)
    for name in noted.keys() - {CONFIG_FILE, WEIGHTS_FILE}:
        read_checked(folder, name, noted[name])
    return f"{count} parameters" + ("" if noted else ", read; of whose bytes nothing was noted")


def needs(job: VerifyJob) -> Needs:
    """What the job would need."""
    return Needs.of([job.folder], [])


def main(arguments: Sequence[str]) -> None:
    """Verify the folder of a command line; its last line says whether all is well."""
    findings = run(read_arguments(VerifyJob, arguments, __doc__, first=("folder",), needs=needs))
    print(table(findings))
    damaged = sum(bool(finding.fault) for finding in findings)
    if damaged:
        raise ValueError(f"{damaged} of {len(findings)} damaged")
    print(f"all {len(findings)} as they were written")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
