"""Checkpoints: folders of safetensors and JSON that mean the same to any number of workers and any ZeRO stage.

    <run>/checkpoint-<step>/
        config.yaml                 sections `model` (all an inference needs) and `job`
        model.safetensors           the weights to use, in fp32, by name: with an average (EMA) that, else those trained
        weight-00000.safetensors    what training goes on from, in pieces, one per worker (see pieces.py):
        exp_avg-00000.safetensors       weights and AdamW's moments,
        exp_avg_sq-00000.safetensors
        ema-00000.safetensors           and the weights' average, where one is kept
        state.json                  step and identity of the run; written last, so that without it a checkpoint is none

`<run>` is a local folder or `s3://`.  Nothing is unpickled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson
import safetensors
import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from semsam.model.semantic_sam import WEIGHTS_FILE
from semsam.storage import Folder

STATE_FILE = "state.json"


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
    """The run state of a checkpoint; `ValueError` names a file that does not hold one."""
    try:
        return TypeAdapter(RunState).validate_python(orjson.loads(folder.read(STATE_FILE)))
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise ValueError(f"{folder.path}/{STATE_FILE}: not a checkpoint's state: {error}") from None


def load_weights(folder: Folder) -> dict[str, Tensor]:
    """The weights to use of a checkpoint, by name."""
    try:
        return safetensors.torch.load(folder.read(WEIGHTS_FILE))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder.path}/{WEIGHTS_FILE}: cannot be read: {error}") from None


def keep_last(run: Folder, count: int) -> None:
    """Delete all complete checkpoints but the last `count`."""
    for step in checkpoint_steps(run)[:-count]:
        checkpoint_folder(run, step).delete(first=STATE_FILE)


def remove_incomplete(run: Folder) -> None:
    """Delete what interrupted attempts left.  Only while nobody writes to the run."""
    for step in set(_all_steps(run)) - set(checkpoint_steps(run)):
        checkpoint_folder(run, step).delete()


def _all_steps(run: Folder) -> list[int]:
    found = [re.fullmatch(r"checkpoint-(\d+)", name) for name in run.folders()]
    return [int(match[1]) for match in found if match]
