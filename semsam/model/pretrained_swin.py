"""Swin weights of an image classifier (the files of microsoft/Swin-Transformer) for the backbone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from semsam.model.presets import ModelSettings
from semsam.model.released_weights import model_shapes, released_name
from semsam.model.weight_files import misfits, read_tensors, refuse

OWN = "backbone."
# What a classifier has and the backbone has not: its head and the norm before it, and constants that are computed here.
OF_NO_USE = re.compile(
    r"(norm|head)\.(weight|bias)$|layers\.\d\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)$"
)
# One for each map: a classifier has none of them.
NEW = re.compile(r"backbone\.norms\.")


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights of `SemanticSam` from elsewhere.

    `unused` names what the file has and the model has no place for; `new` what the same part of the model has and the
    file has not.
    """

    weights: dict[str, Tensor]
    unused: tuple[str, ...]
    new: tuple[str, ...]


def load_swin(path: str | Path, settings: ModelSettings) -> PretrainedWeights:
    """The backbone's weights from a classifier's file.

    Raises `ValueError` with every key that is missing, unexpected or misshapen.  Position tables are not interpolated:
    a file whose windows have another size than the model's does not fit.
    """
    found = read_tensors(path)
    unused = tuple(name for name in found if OF_NO_USE.match(name))
    found = {name: tensor for name, tensor in found.items() if name not in unused}
    own = [name for name in model_shapes(settings) if name.startswith(OWN)]
    new = tuple(name for name in own if NEW.match(name))
    names = {name: str(released_name(name)).removeprefix(OWN) for name in own if name not in new}
    refuse(str(path), misfits(found, {theirs: model_shapes(settings)[name] for name, theirs in names.items()}))
    return PretrainedWeights({name: found[theirs] for name, theirs in names.items()}, unused, new)
