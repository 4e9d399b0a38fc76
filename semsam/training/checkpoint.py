"""Checkpoints: folders of safetensors and JSON that mean the same to any number of workers and any ZeRO stage.

    <run>/checkpoint-<step>/
        config.yaml                 sections `model` (all an inference needs) and `job`
        model.safetensors           the weights to use, in fp32, by name: with an average (EMA) that, else those trained
        weight-00000.safetensors    what training goes on from, in pieces, one per worker (see pieces.py):
        exp_avg-00000.safetensors       weights and AdamW's moments,
        exp_avg_sq-00000.safetensors
        ema-00000.safetensors           and the weights' average, where one is kept
        worker-00000.json           a worker's word that its pieces are written, with their digests
        state.json                  step and identity of the run, digests of all other files, and how far the log went;
                                    written last, so that without it a checkpoint is none

`<run>` is a local folder or `s3://`.  Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from semsam.data.sealed import seal, unseal
from semsam.model.weight_files import STATE_FILE as STATE_FILE
from semsam.model.weight_files import FileDigest, check_listed
from semsam.storage import Folder


@dataclass(frozen=True)
class LogMark:
    """How far a run's log went, and the CRC-32 of it up to there."""

    size: int
    crc32: int


@dataclass(frozen=True)
class RunState:
    """Where a run stands, and what it must be continued with to stay the same run."""

    step: int  # Updates made; the next step has this number.
    cursor: int  # Samples consumed.
    num_pieces: int  # Workers that wrote the checkpoint.
    seed: int
    global_batch: int
    num_steps: int
    vocabulary_digest: str
    manifest_digests: dict[str, str]  # By dataset.
    schema_version: int
    versions: dict[str, str]  # Of this code and of the packages below it.
    files: dict[str, FileDigest] = field(default_factory=dict)  # All others of the checkpoint.
    log: LogMark | None = None

    def to_json(self) -> bytes:
        """Indented JSON with a digest of its own; `load_state` reads it back."""
        return seal(dataclasses.asdict(self))


def checkpoint_steps(run: Folder) -> list[int]:
    """The steps of all complete checkpoints of a run, ascending."""
    return sorted(step for step in _all_steps(run) if checkpoint_folder(run, step).exists(STATE_FILE))


def checkpoint_folder(run: Folder, step: int) -> Folder:
    """Where the checkpoint of a step lies, or will."""
    return run / f"checkpoint-{step}"


def latest_checkpoint(run: Folder) -> Folder | None:
    """The complete checkpoint with the most steps; None in a run that has none."""
    steps = checkpoint_steps(run)
    return checkpoint_folder(run, steps[-1]) if steps else None


def load_state(folder: Folder) -> RunState:
    """The run state of a checkpoint; `ValueError` names a file that does not hold one, or that of another step."""
    path = f"{folder.path}/{STATE_FILE}"
    try:
        state = TypeAdapter(RunState).validate_python(unseal(folder.read(STATE_FILE), path))
    except ValidationError as error:
        raise ValueError(f"{path}: not a checkpoint's state: {error}") from None
    if folder.path.rpartition("-")[2] != str(state.step):
        raise ValueError(f"{path}: this is the state after step {state.step}; was a folder moved?")
    return state


def advice_without(run: Folder, step: int) -> str:
    """How to go on without the checkpoint of a step, which is damaged."""
    before = [one for one in checkpoint_steps(run) if one < step]
    if not before:
        return f"{run.path} has no checkpoint before that of step {step}"
    here, earlier = checkpoint_folder(run, step).path, checkpoint_folder(run, before[-1]).path
    return f"the checkpoint before it is {earlier}: delete {here}, and the run goes on from there"


def verify_checkpoint(folder: Folder) -> str:
    """Read all bytes of a checkpoint and say what it is; `ValueError` names the first file that is not as written."""
    state = load_state(folder)
    for name in state.files:
        check_listed(folder, name, state.files)
    return f"step {state.step} of {state.num_steps}, {len(state.files) + 1} files by {state.num_pieces} workers"


def is_whole(folder: Folder) -> bool:
    """Whether a checkpoint's state can be read and all its files are there at their sizes."""
    try:
        state = load_state(folder)
    except ValueError:
        return False
    sizes = folder.sizes()
    return all(sizes.get(name) == digest.size for name, digest in state.files.items())


def keep_last(run: Folder, count: int, is_kept: Callable[[int], bool] = lambda step: False) -> None:
    """Delete the checkpoints before the last `count` that are whole, but for the steps that are kept in any case.

    One that is damaged does not count, so that the last good one stays however many came after it.
    """
    steps = checkpoint_steps(run)
    whole = [step for step in steps if is_whole(checkpoint_folder(run, step))]
    for step in steps:
        if whole and step < whole[-count:][0] and not is_kept(step):
            checkpoint_folder(run, step).delete(first=STATE_FILE)


def remove_incomplete(run: Folder) -> None:
    """Delete what interrupted attempts left.  Only while nobody writes to the run."""
    for step in set(_all_steps(run)) - set(checkpoint_steps(run)):
        checkpoint_folder(run, step).delete()


def _all_steps(run: Folder) -> list[int]:
    found = [re.fullmatch(r"checkpoint-(\d+)", name) for name in run.folders()]
    return [int(match[1]) for match in found if match]
