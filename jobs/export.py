"""Weights from one form to another: `python -m jobs.export <source> <outputs>`.

    python -m jobs.export checkpoint=/data/runs/seven/checkpoint-368750 onnx=/data/onnx

    released=<file.pth> preset=swin_tiny out=<folder>     the authors' weights as a checkpoint folder of ours
    checkpoint=<folder> out=<folder>                      a training's checkpoint, its optimizer left behind
    checkpoint=<folder> pretrained=<folder>               config.json, model.safetensors and a model card, as on the Hub
    checkpoint=<folder> to_released=<file.pth>            under the released names
    checkpoint=<folder> onnx=<folder>                     image encoder and prompt decoder for other runtimes
    preset=swin_tiny backbone=<file.pth> text=<folder> out=<folder>   what a training may begin with (its `model.init`)

`text` puts CLIP's or UniCL's text encoder into any of them: the released files have none.
Folders that are read or written as a whole may be `s3://`.  Needs no cluster.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
from torch import Tensor

from jobs.arguments import read_arguments
from jobs.cluster import main_exit, stable_path
from jobs.needs import Needs
from semsam.config import Seed, settings
from semsam.model.model_folder import FOLDER_FILES, save_pretrained
from semsam.model.onnx_export import DECODER_FILE, ENCODER_FILE, export_onnx
from semsam.model.presets import preset
from semsam.model.pretrained_swin import load_swin
from semsam.model.pretrained_text import with_text
from semsam.model.released_weights import load_released, save_released, unplaced
from semsam.model.semantic_sam import CONFIG_FILE, WEIGHTS_FILE, SemanticSam
from semsam.model.weight_files import FILES_FILE, read_fingerprints, read_own_tensors
from semsam.storage import Folder

# Beside the weights of a converted checkpoint: released tensors that the model has no place for, kept for the way back.
UNUSED_FILE = "released_unused.safetensors"


@settings
class ExportJob:
    """Where weights come from, and what is made of them.  What comes from nowhere is random, by `seed`."""

    preset: str = "swin_tiny"  # Of any source but a checkpoint, which has its own settings.
    released: str | None = None  # A file of the authors.
    checkpoint: str | None = None  # Of a training, or what this job wrote.
    backbone: str | None = None  # A file of a Swin image classifier; not over a released file or a checkpoint.
    text: str | None = None  # A folder with a text encoder of CLIP or UniCL and its tokenizer.
    seed: Seed = 0
    out: str | None = None  # The folder that `SemanticSam.load` reads.
    pretrained: str | None = None  # The folder that `semsam.model.model_folder.from_pretrained` reads.
    to_released: str | None = None
    onnx: str | None = None  # The folder of `semsam.model.onnx_export`'s two files.

    def __post_init__(self) -> None:
        sources = [self.released, self.checkpoint, self.backbone]
        if len([source for source in sources if source is not None]) > 1 or not any([*sources, self.text]):
            raise ValueError("name one source: released=<file>, checkpoint=<folder>, backbone=<file> or text=<folder>")
        if {self.out, self.pretrained, self.to_released, self.onnx} == {None}:
            raise ValueError(
                "name at least one output: out=<folder>, pretrained=<folder>, to_released=<file.pth> or onnx=<folder>"
            )
        if self.out is not None and self.out == self.pretrained:
            raise ValueError(f"pretrained: {self.pretrained} is `out` as well; choose another folder")
        for name in ("released", "to_released", "backbone", "text"):
            if "://" in (getattr(self, name) or ""):
                raise ValueError(f"{name} must be on this machine, not {getattr(self, name)}")
        preset(self.preset)


@dataclass(frozen=True)
class Source:
    """The model to write, and what came with it that it has no place for."""

    model: SemanticSam
    unused: dict[str, Tensor]


def run(job: ExportJob) -> list[str]:
    """Write what the job asks for; gives back where each output is.

    Raises `ValueError`, before anything is written, for a source that cannot be read or whose weights do not fit, and
    for outputs that are there already.
    """
    job = _with_stable_paths(job)
    _check_outputs(job)
    source = _read_source(job)
    outputs = []
    if job.out is not None:
        _write_folder(source, job.out)
        outputs.append(f"checkpoint in {job.out}")
    if job.pretrained is not None:
        save_pretrained(source.model, job.pretrained, _named_source(job))
        outputs.append(f"model folder in {job.pretrained}")
    if job.to_released is not None:
        _write_released(source, job.to_released)
        outputs.append(f"released names in {job.to_released}")
    if job.onnx is not None:
        _write_onnx(source, job.onnx)
        outputs.append(f"ONNX in {job.onnx}")
    return outputs


def _check_outputs(job: ExportJob) -> None:
    """Raise `ValueError` for files that are there already: of whatever they are, another may be in need."""
    outputs = {
        "out": (CONFIG_FILE, WEIGHTS_FILE, FILES_FILE, UNUSED_FILE),
        "pretrained": FOLDER_FILES,
        "onnx": (ENCODER_FILE, DECODER_FILE),
    }
    for setting, names in outputs.items():
        path = getattr(job, setting)
        taken = [name for name in names if path is not None and Folder(path).exists(name)]
        if taken:
            what = "a checkpoint" if CONFIG_FILE in taken else repr(taken[0])
            raise ValueError(f"{setting}: {path} already holds {what}; choose another folder")
    if job.to_released is not None and os.path.lexists(job.to_released):
        raise ValueError(f"to_released: {job.to_released} is there already; choose another name")


def _named_source(job: ExportJob) -> str:
    """What the weights were made from, by name: a path may say more than its owner wants published."""
    given = [path for path in (job.released, job.checkpoint, job.backbone, job.text) if path is not None]
    return ", ".join(f"`{path.rstrip('/').rpartition('/')[2]}`" for path in given)


def _with_stable_paths(job: ExportJob) -> ExportJob:
    names = ("released", "checkpoint", "backbone", "text", "out", "pretrained", "to_released", "onnx")
    given: dict[str, Any] = {
        name: stable_path(path, name) for name in names if (path := getattr(job, name)) is not None
    }
    return replace(job, **given)


def _read_source(job: ExportJob) -> Source:
    if job.released is not None:
        source = _read_released(job)
    elif job.checkpoint is not None:
        source = _read_checkpoint(job.checkpoint)
    else:
        source = _begin(job)
    if job.text is not None:
        model, loaded = with_text(source.model, job.text)
        print(f"{job.text}: {len(loaded.weights)} weights of the text encoder; its tokenizer is read there ever after")
        _print_parts("of no use to the model", loaded.unused)
        source = replace(source, model=model)
    elif job.checkpoint is None and preset(job.preset).text.kind == "clip":
        print(
            "WARNING: the text encoder is random: until it is trained, or given with text=<folder>, names mean nothing"
        )
    return source


def _begin(job: ExportJob) -> Source:
    """A model that nothing has trained yet but its parts."""
    model = SemanticSam.untrained(job.preset, job.seed)
    print(f"{job.preset}: random weights, but for what follows")
    if job.backbone is not None:
        loaded = load_swin(job.backbone, model.settings)
        model.load_weights({**model.state_dict(), **loaded.weights}, job.backbone)
        print(f"{job.backbone}: {len(loaded.weights)} weights of the backbone")
        _print_parts("of no use to the model", loaded.unused)
        _print_parts("not in the file, as at a beginning", loaded.new)
    return Source(model, {})


def _read_released(job: ExportJob) -> Source:
    model, converted = load_released(str(job.released), preset(job.preset), job.seed)
    print(f"{job.released}: {len(converted.weights)} weights of {job.preset} taken over")
    for name in (*converted.unused, *converted.ignored):
        print(f"  of no use to the model: {name}{' (kept for the way back)' if name in converted.unused else ''}")
    _print_parts("not in the release, random", converted.new)
    return Source(model, converted.unused)


def _read_checkpoint(uri: str) -> Source:
    model, folder = SemanticSam.load(uri), Folder(uri)
    noted = read_fingerprints(folder).get(UNUSED_FILE)
    unused = read_own_tensors(folder, UNUSED_FILE, noted) if noted or folder.exists(UNUSED_FILE) else {}
    print(f"{uri}: {len(model.state_dict())} weights")
    return Source(model, unused)


def _write_folder(source: Source, uri: str) -> None:
    source.model.save(uri, {UNUSED_FILE: safetensors.torch.save(source.unused)} if source.unused else None)


def _write_released(source: Source, path: str) -> None:
    weights = source.model.state_dict()
    save_released(path, weights, source.model.settings, source.unused)
    _print_parts("without a released name, left out", unplaced(weights))


def _write_onnx(source: Source, uri: str) -> None:
    folder = Folder(uri)
    with tempfile.TemporaryDirectory() as temporary:
        for path in export_onnx(source.model, temporary):
            folder.write(path.name, path.read_bytes())


def _print_parts(what: str, names: Iterable[str]) -> None:
    """One line for each module that tensors belong to, with how many of them."""
    for part, count in Counter(".".join(name.split(".")[: 3 if ".heads." in name else 2]) for name in names).items():
        print(f"  {what}: {part} ({count} tensors)")


def needs(job: ExportJob) -> Needs:
    """What the job would need."""
    read = [job.released, job.checkpoint, job.backbone, job.text]
    return Needs.of(read, [job.out, job.pretrained, job.to_released, job.onnx])


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last line says where the outputs are."""
    print("; ".join(run(read_arguments(ExportJob, arguments, __doc__, needs=needs))))


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
