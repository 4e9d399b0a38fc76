"""Checkpoints: folders of safetensors and JSON that mean the same to any number of workers and any ZeRO stage.

    <run>/checkpoint-<step>/
        config.yaml                 sections `model` (all an inference needs) and `job`
        model.safetensors           the weights to use, in fp32, by name: with an average (EMA) that, else those trained
        weight-00000.safetensors    what training goes on from, in pieces, one per worker (see partition_files.py):
        exp_avg-00000.safetensors       weights and AdamW's moments,
        exp_avg_sq-00000.safetensors
        ema-00000.safetensors           and the weights' average, where one is kept
        state.json                  step and identity of the run, size and CRC-32 of every file above and of the run's
                                    log; sealed, and written last: without it a checkpoint is none

`<run>` is a local folder or `s3://`.  Nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from semsam.data.sealed import unseal_as
from semsam.model.semantic_sam import CONFIG_FILE, WEIGHTS_FILE
from semsam.model.weight_files import STATE_FILE, Fingerprint, read_checked, read_fingerprints, read_own_tensors
from semsam.storage import Folder
from semsam.training.followed import read_followed
from semsam.training.partition_files import Header, read_headers, verify_piece

_WHOLE_FILES = (CONFIG_FILE, WEIGHTS_FILE)  # All others are pieces.


@dataclass(frozen=True)
class RunState:
    """Where a run stands, and what it must be continued with to stay the same run."""

    step: int  # Steps done; the next one has this number.
    cursor: int  # Samples consumed.
    num_writers: int  # Workers that wrote the checkpoint.
    seed: int
    global_batch: int
    num_steps: int
    vocabulary_digest: str
    manifest_digests: dict[str, str]  # By dataset.
    schema_version: int
    versions: dict[str, str]  # Of this code and of the packages below it.
    files: dict[str, Fingerprint] = field(default_factory=dict)  # By name; a piece's CRC-32 is that of its header.
    log: Fingerprint | None = None  # Of the run's log up to this step.
    skipped_steps: tuple[int, ...] = ()  # Those of the steps that updated nothing.

    @property
    def num_updates(self) -> int:
        """How often the weights were updated."""
        return self.step - len(self.skipped_steps)


def checkpoint_steps(run: Folder) -> list[int]:
    """The steps of all complete checkpoints of a run, ascending."""
    return sorted(step for step in _all_steps(run) if checkpoint_folder(run, step).exists(STATE_FILE))


def checkpoint_folder(run: Folder, step: int) -> Folder:
    """Where the checkpoint of a step lies, or will."""
    return run / _name(step)


def latest_checkpoint(run: Folder) -> Folder | None:
    """The complete checkpoint with the most steps; None in a run that has none."""
    newest_first = (checkpoint_folder(run, step) for step in sorted(set(_all_steps(run)), reverse=True))
    return next((folder for folder in newest_first if folder.exists(STATE_FILE)), None)


def load_state(folder: Folder) -> RunState:
    """The run state of a checkpoint; `ValueError` names a file that does not hold its own."""
    path = f"{folder.path}/{STATE_FILE}"
    state = unseal_as(RunState, folder.read(STATE_FILE), path, "a checkpoint's state")
    if folder.path.rpartition("/")[2] != _name(state.step):
        raise ValueError(f"{path}: this is the state after step {state.step}, not that of this folder")
    return state


def check_files(folder: Folder, state: RunState) -> dict[str, Header]:
    """The headers of a checkpoint's pieces by name.

    Raises `ValueError`, naming the file, where one of its files is missing, cut or not as it was written.  Of the
    weights this reads nothing: whoever reads the rest of what is here checks it (`partition_reading`, `load_weights`).
    """
    sizes = folder.sizes()
    for name, expected in state.files.items():
        path = f"{folder.path}/{name}"
        if name not in sizes:
            raise ValueError(f"{path}: no such file")
        if name == CONFIG_FILE:
            read_checked(folder, name, expected)
        elif name == WEIGHTS_FILE:
            expected.check(replace(expected, size=sizes[name]), path)
    return read_headers(folder, [name for name in state.files if name not in _WHOLE_FILES], state.files, sizes)


def verify_checkpoint(folder: Folder) -> str:
    """Read all bytes of a checkpoint and say what it is; `ValueError` names the first file that is not as written."""
    state = load_state(folder)
    headers = check_files(folder, state)
    load_weights(folder)
    for header in headers.values():
        verify_piece(folder, header)
    return f"step {state.step} of {state.num_steps}, {len(state.files) + 1} files of {state.num_writers} workers"


def load_weights(folder: Folder) -> dict[str, Tensor]:
    """The weights to use of a checkpoint or an exported model, by name."""
    return read_own_tensors(folder, WEIGHTS_FILE, read_fingerprints(folder).get(WEIGHTS_FILE))


def keep_last(run: Folder, count: int, every: int | None = None, written: int | None = None) -> None:
    """Delete all complete checkpoints but the last `count` sound ones and those whose step is a multiple of `every`.

    Those stay, too, that an evaluation beside the training has marked or has still to see.  That of the step `written`
    has just been read and need not be looked at.
    """
    sound, steps = 0, checkpoint_steps(run)
    kept = _kept_for_evaluation(run, steps)
    for step in reversed(steps):
        folder = checkpoint_folder(run, step)
        if sound < count:
            sound += step == written or _is_sound(folder)
        elif step not in kept and (every is None or step % every):
            folder.delete(first=STATE_FILE)


def _kept_for_evaluation(run: Folder, steps: list[int]) -> set[int]:
    try:
        followed = read_followed(run)
    except ValueError as error:  # No reason to end a training, and none to delete what may be the best.
        print(f"warning: {error}; all checkpoints are kept until it is removed", flush=True)
        return set(steps)
    return set() if followed is None else followed.kept(steps)


@contextmanager
def damaged(folder: Folder) -> Iterator[None]:
    """Add to a `ValueError` what can be done where this checkpoint is damaged."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}; {the_one_before(folder)}") from None


def the_one_before(folder: Folder) -> str:
    """What can be done where this checkpoint is damaged, in words."""
    run, _, name = folder.path.rpartition("/")
    steps = [step for step in checkpoint_steps(Folder(run)) if step < int(name.rpartition("-")[2])]
    if not steps:
        return f"there is no checkpoint before it: delete {folder.path} to begin anew"
    before = checkpoint_folder(Folder(run), steps[-1]).path
    return f"the checkpoint before it is {before}: delete {folder.path} to go on from there"


def _is_sound(folder: Folder) -> bool:
    try:
        check_files(folder, load_state(folder))
    except ValueError:
        return False
    return True


def remove_incomplete(run: Folder) -> None:
    """Delete what interrupted attempts left.  Only while nobody writes to the run."""
    for step in set(_all_steps(run)) - set(checkpoint_steps(run)):
        checkpoint_folder(run, step).delete()


def _name(step: int) -> str:
    return f"checkpoint-{step}"


def _all_steps(run: Folder) -> list[int]:
    found = [re.fullmatch(r"checkpoint-(\d+)", name) for name in run.folders()]
    return [int(match[1]) for match in found if match]
