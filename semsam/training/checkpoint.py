"""Checkpoints: folders of safetensors and JSON that mean the same to any number of workers and any ZeRO stage.

    <run>/checkpoint-<step>/
        config.yaml              sections `model` (all an inference needs) and `job`
        model.safetensors        weights in fp32, by name
        optimizer.json           which piece holds which range of which parameter's moment
        optimizer-00000.safetensors ...
        state.json               step and identity of the run; written last, so that without it a checkpoint is no one

`<run>` is a local folder or `s3://`.  Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow.fs
import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from semsam.data.shards import open_filesystem
from semsam.model.semantic_sam import CONFIG_FILE, WEIGHTS_FILE
from semsam.training.engine import MOMENTS, ParameterState

STATE_FILE = "state.json"
INDEX_FILE = "optimizer.json"
PIECE_BYTES = 2**30


@dataclass(frozen=True)
class RunState:
    """Where a run stands, and what it must be continued with to stay the same run."""

    step: int  # Updates made; the next step has this number.
    cursor: int  # Samples consumed.
    seed: int
    global_batch: int
    num_steps: int
    vocabulary_digest: str
    manifest_digests: dict[str, str]  # By dataset.
    schema_version: int
    versions: dict[str, str]  # Of this code and of the packages below it.


class Folder:
    """Files by name in a local folder or below an `s3://` prefix."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._filesystem, self._path = open_filesystem(self.uri)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether files can be appended to."""
        return isinstance(self._filesystem, pyarrow.fs.LocalFileSystem)

    def read(self, name: str) -> bytes:
        """A file's bytes; `ValueError` names a file that is not there."""
        try:
            with self._filesystem.open_input_stream(f"{self._path}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise ValueError(f"{self.uri}/{name}: no such file") from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that nobody ever sees a part of it."""
        path = f"{self._path}/{name}"
        if not self.is_local:
            with self._filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        self._filesystem.create_dir(self._path)
        with self._filesystem.open_output_stream(f"{path}.part") as stream:
            stream.write(data)
        self._filesystem.move(f"{path}.part", path)

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return bool(self._filesystem.get_file_info(f"{self._path}/{name}").type == pyarrow.fs.FileType.File)

    def folders(self) -> list[str]:
        """Names of the folders in this one; none where it does not exist."""
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory)

    def delete(self) -> None:
        """Remove this folder, if it is there, with what is in it."""
        if self._filesystem.get_file_info(self._path).type == pyarrow.fs.FileType.Directory:
            self._filesystem.delete_dir(self._path)


def checkpoint_steps(run: Folder) -> list[int]:
    """The steps of all complete checkpoints of a run, ascending."""
    found = [re.fullmatch(r"checkpoint-(\d+)", name) for name in run.folders()]
    return sorted(int(match[1]) for match in found if match and (run / match[0]).exists(STATE_FILE))


def checkpoint_folder(run: Folder, step: int) -> Folder:
    """Where the checkpoint of a step lies, or will."""
    return run / f"checkpoint-{step}"


def latest_checkpoint(run: Folder) -> Folder | None:
    """The complete checkpoint with the most steps; None in a run that has none."""
    steps = checkpoint_steps(run)
    return checkpoint_folder(run, steps[-1]) if steps else None


def save_checkpoint(
    folder: Folder | None, states: Iterator[ParameterState], buffers: Mapping[str, Tensor], config: str, state: RunState
) -> None:
    """Write a checkpoint.  Every worker must call this, for `states` is collective; `folder` is None on all but one."""
    if folder is None:
        for _ in states:
            pass
        return
    folder.delete()  # What an interrupted attempt left.
    weights = {name: _on_host(tensor) for name, tensor in buffers.items()}
    pieces = _PieceWriter(folder)
    for parameter in states:
        weights[parameter.name] = _on_host(parameter.weight)
        for moment, value in parameter.moments.items():
            pieces.add(parameter.name, moment, _on_host(value).flatten())
    pieces.finish()
    folder.write(WEIGHTS_FILE, safetensors.torch.save(weights))
    folder.write(CONFIG_FILE, config.encode())
    folder.write(STATE_FILE, orjson.dumps(dataclasses.asdict(state), option=orjson.OPT_INDENT_2))


def load_state(folder: Folder) -> RunState:
    """The run state of a checkpoint; `ValueError` names a file that does not hold one."""
    try:
        return TypeAdapter(RunState).validate_python(orjson.loads(folder.read(STATE_FILE)))
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise ValueError(f"{folder.uri}/{STATE_FILE}: not a checkpoint's state: {error}") from None


def load_weights(folder: Folder) -> dict[str, Tensor]:
    """All weights of a checkpoint by name."""
    return _load_tensors(folder, WEIGHTS_FILE)


def load_moments(folder: Folder, shapes: Mapping[str, torch.Size]) -> dict[str, dict[str, Tensor]]:
    """The optimizer's moments, {parameter: {moment: tensor}}, put together from their pieces.

    `shapes` has the model's parameters.  Raises `ValueError` naming every parameter that is missing, unexpected or
    whose pieces do not add up to its shape; no moments at all, in a checkpoint before the first update, are fine.
    """
    index: list[dict[str, Any]] = orjson.loads(folder.read(INDEX_FILE))
    where = f"{folder.uri}/{INDEX_FILE}"
    if not index:
        return {}
    unexpected = sorted({entry["parameter"] for entry in index} - set(shapes))
    faults = [f"unexpected: {name}" for name in unexpected]
    moments = {name: {m: torch.zeros(shape.numel()) for m in MOMENTS} for name, shape in shapes.items()}
    found = {(name, moment): 0 for name in shapes for moment in MOMENTS}
    for piece in sorted({entry["piece"] for entry in index}):
        tensors = _load_tensors(folder, piece)
        for entry in (entry for entry in index if entry["piece"] == piece and entry["parameter"] in shapes):
            name, moment, start, end = (entry[key] for key in ("parameter", "moment", "start", "end"))
            if end <= shapes[name].numel():
                moments[name][moment][start:end] = tensors[f"{moment}:{name}:{start}"]
            found[name, moment] += end - start
    for (name, moment), count in found.items():
        if count != shapes[name].numel():
            faults.append(
                f"{moment} of {name}: {count} numbers instead of {shapes[name].numel()}"
                if count
                else f"missing: {moment} of {name}"
            )
    if faults:
        raise ValueError("\n  ".join([f"{where}: {len(faults)} tensor(s) do not fit this model", *faults]))
    return {name: {m: value.view(shapes[name]) for m, value in of.items()} for name, of in moments.items()}


def keep_last(run: Folder, count: int) -> None:
    """Delete all complete checkpoints but the last `count`."""
    for step in checkpoint_steps(run)[:-count]:
        checkpoint_folder(run, step).delete()


class _PieceWriter:
    """Collects ranges of moments and writes them in files of at most `PIECE_BYTES`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._index: list[dict[str, Any]] = []
        self._open: dict[str, Tensor] = {}
        self._room = PIECE_BYTES // 4
        self._count = 0

    def add(self, parameter: str, moment: str, values: Tensor) -> None:
        start = 0
        while start < len(values):
            end = min(len(values), start + self._room)
            entry = {"parameter": parameter, "moment": moment, "start": start, "end": end, "piece": self._name()}
            self._index.append(entry)
            self._open[f"{moment}:{parameter}:{start}"] = values[start:end].clone()
            self._room -= end - start
            start = end
            if self._room == 0:
                self._flush()

    def finish(self) -> None:
        if self._open:
            self._flush()
        self._folder.write(INDEX_FILE, orjson.dumps(self._index))

    def _name(self) -> str:
        return f"optimizer-{self._count:05d}.safetensors"

    def _flush(self) -> None:
        self._folder.write(self._name(), safetensors.torch.save(self._open))
        self._open = {}
        self._room = PIECE_BYTES // 4
        self._count += 1


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _load_tensors(folder: Folder, name: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(folder.read(name))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder.uri}/{name}: cannot be read: {error}") from None
