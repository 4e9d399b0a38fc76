"""The authors' released checkpoints, to our names and back, bit for bit.

Strict: every key of a released file is used, or known to be of no use; anything else is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from semsam.model.backbone import relative_positions
from semsam.model.presets import ModelSettings
from semsam.model.semantic_sam import SemanticSam
from semsam.model.weight_files import misfits, read_tensors, refuse

PREFIX = "model."
PREDICTOR = "sem_seg_head.predictor."
ENCODER = "sem_seg_head.pixel_decoder.transformer.encoder."

# Our names and the released ones.  The first rule that matches counts; what no rule matches is not in the release.
RULES = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"backbone\.patches\.", "backbone.patch_embed.proj."),
        (r"backbone\.patch_norm\.", "backbone.patch_embed.norm."),
        (r"backbone\.norms\.(\d)\.", r"backbone.norm\1."),
        (r"backbone\.merges\.(\d)\.", r"backbone.layers.\1.downsample."),
        (r"backbone\.stages\.(\d)\.blocks\.(\d+)\.attention_norm\.", r"backbone.layers.\1.blocks.\2.norm1."),
        (r"backbone\.stages\.(\d)\.blocks\.(\d+)\.mlp_norm\.", r"backbone.layers.\1.blocks.\2.norm2."),
        (r"backbone\.stages\.(\d)\.blocks\.(\d+)\.expand\.", r"backbone.layers.\1.blocks.\2.mlp.fc1."),
        (r"backbone\.stages\.(\d)\.blocks\.(\d+)\.contract\.", r"backbone.layers.\1.blocks.\2.mlp.fc2."),
        (
            r"backbone\.stages\.(\d)\.blocks\.(\d+)\.attention\.bias_table",
            r"backbone.layers.\1.blocks.\2.attn.relative_position_bias_table",
        ),
        (r"backbone\.stages\.(\d)\.blocks\.(\d+)\.attention\.qkv\.", r"backbone.layers.\1.blocks.\2.attn.qkv."),
        (r"backbone\.stages\.(\d)\.blocks\.(\d+)\.attention\.output\.", r"backbone.layers.\1.blocks.\2.attn.proj."),
        (r"pixel_decoder\.inputs\.(\d)\.conv\.", r"sem_seg_head.pixel_decoder.input_proj.\1.0."),
        (r"pixel_decoder\.inputs\.(\d)\.norm\.", r"sem_seg_head.pixel_decoder.input_proj.\1.1."),
        (r"pixel_decoder\.map_embedding", "sem_seg_head.pixel_decoder.transformer.level_embed"),
        (r"pixel_decoder\.layers\.(\d+)\.attention_norm\.", ENCODER + r"layers.\1.norm1."),
        (r"pixel_decoder\.layers\.(\d+)\.feedforward_norm\.", ENCODER + r"layers.\1.norm2."),
        (r"pixel_decoder\.layers\.(\d+)\.feedforward\.layers\.0\.", ENCODER + r"layers.\1.linear1."),
        (r"pixel_decoder\.layers\.(\d+)\.feedforward\.layers\.1\.", ENCODER + r"layers.\1.linear2."),
        (r"pixel_decoder\.layers\.(\d+)\.attention\.", ENCODER + r"layers.\1.self_attn."),
        (r"pixel_decoder\.(lateral)\.conv\.", "sem_seg_head.pixel_decoder.adapter_1."),
        (r"pixel_decoder\.(lateral)\.norm\.", "sem_seg_head.pixel_decoder.adapter_1.norm."),
        (r"pixel_decoder\.(smooth)\.conv\.", "sem_seg_head.pixel_decoder.layer_1."),
        (r"pixel_decoder\.(smooth)\.norm\.", "sem_seg_head.pixel_decoder.layer_1.norm."),
        (r"pixel_decoder\.mask_features\.", "sem_seg_head.pixel_decoder.mask_features."),
        (r"prompt_encoder\.levels\.", PREDICTOR + "mask_tokens."),
        (r"prompt_encoder\.kinds\.", PREDICTOR + "pb_embedding."),
        (r"prompt_encoder\.prompt\.", PREDICTOR + "label_enc."),
        (r"mask_decoder\.norm\.", PREDICTOR + "decoder_norm."),
        (r"mask_decoder\.box_positions\.", PREDICTOR + "decoder.ref_point_head."),
        (r"mask_decoder\.layers\.(\d+)\.self_norm\.", PREDICTOR + r"decoder.layers.\1.norm2."),
        (r"mask_decoder\.layers\.(\d+)\.cross_norm\.", PREDICTOR + r"decoder.layers.\1.norm1."),
        (r"mask_decoder\.layers\.(\d+)\.feedforward_norm\.", PREDICTOR + r"decoder.layers.\1.norm3."),
        (r"mask_decoder\.layers\.(\d+)\.feedforward\.layers\.0\.", PREDICTOR + r"decoder.layers.\1.linear1."),
        (r"mask_decoder\.layers\.(\d+)\.feedforward\.layers\.1\.", PREDICTOR + r"decoder.layers.\1.linear2."),
        (r"mask_decoder\.layers\.(\d+)\.cross_attention\.", PREDICTOR + r"decoder.layers.\1.cross_attn."),
        (
            r"mask_decoder\.layers\.(\d+)\.self_attention\.projection_bias",
            PREDICTOR + r"decoder.layers.\1.self_attn.in_proj_bias",
        ),
        (
            r"mask_decoder\.layers\.(\d+)\.self_attention\.projection",
            PREDICTOR + r"decoder.layers.\1.self_attn.in_proj_weight",
        ),
        (
            r"mask_decoder\.layers\.(\d+)\.self_attention\.output\.",
            PREDICTOR + r"decoder.layers.\1.self_attn.out_proj.",
        ),
        (r"mask_decoder\.heads\.box\.", PREDICTOR + "_bbox_embed."),
        (r"mask_decoder\.heads\.mask\.", PREDICTOR + "mask_embed."),
        (r"mask_decoder\.heads\.iou\.", PREDICTOR + "iou_prediction_head."),
        # Stored the other way round.
        (r"mask_decoder\.heads\.objects\.projection\.weight", PREDICTOR + "class_embed"),
        (r"mask_decoder\.heads\.parts\.projection\.weight", PREDICTOR + "class_embed_part"),
    )
)
# Inside deformable attention.
ATTENTION_NAMES = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "values": "value_proj",
    "output": "output_proj",
}
DEFORMABLE = re.compile(r"(self_attn|cross_attn)\.(offsets|weights|values|output)\.")
TRANSPOSED = (PREDICTOR + "class_embed", PREDICTOR + "class_embed_part")
# A projection from names to queries that only the release's training with names would use.
LANGUAGE_MAPPER = PREDICTOR + "lang_mapper"
RELATIVE_INDEX = "attn.relative_position_index"
# In files written during training, and of no use afterwards.
TRAINING_ONLY = re.compile(r"criterion\.|pixel_(mean|std)$")


@dataclass(frozen=True)
class ConvertedWeights:
    """A released checkpoint as weights of `SemanticSam`.

    `weights` lacks the `new` ones, which the release has nothing for: they must be initialised.  `unused` are released
    tensors that the model has no place for, and that `to_released` needs to give the same file back; `ignored` are
    names of what a training writes for itself.
    """

    weights: dict[str, Tensor]
    unused: dict[str, Tensor]
    ignored: tuple[str, ...]
    new: tuple[str, ...]


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a released `.pth`, the prefix `model.` removed.  Nothing but tensors is unpickled."""
    content = read_tensors(path)
    twice = [name for name in content if f"{PREFIX}{name}" in content]
    if twice:
        raise ValueError("\n  ".join([f"{path}: {len(twice)} key(s) with and without the prefix {PREFIX}", *twice]))
    return {name.removeprefix(PREFIX): tensor for name, tensor in content.items()}


def load_released(path: str | Path, settings: ModelSettings, seed: int = 0) -> tuple[SemanticSam, ConvertedWeights]:
    """The model with a released checkpoint's weights, and what was converted; the `new` ones are random, by `seed`."""
    converted = from_released(read_released(path), settings, str(path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SemanticSam(settings)
    model.load_weights({**model.state_dict(), **converted.weights}, str(path))
    return model.eval(), converted


def from_released(
    released: Mapping[str, Tensor], settings: ModelSettings, where: str = "released weights"
) -> ConvertedWeights:
    """Our weights from released ones (without prefix).

    Raises `ValueError`, beginning with `where`, that lists every key that is missing, unexpected, of another shape, or
    that differs from the tensor it is another name of.
    """
    ours = model_shapes(settings)
    names = {name: released_name(name) for name in ours}
    expected = released_shapes(settings)
    ignored = tuple(name for name in released if TRAINING_ONLY.match(name))
    released = {name: tensor for name, tensor in released.items() if name not in ignored}
    refuse(where, misfits(released, expected) or _unequal(released, settings))
    weights = {own: _turned(released[name], name) for own, name in names.items() if name is not None}
    new = tuple(own for own, name in names.items() if name is None)
    return ConvertedWeights(weights, {LANGUAGE_MAPPER: released[LANGUAGE_MAPPER]}, ignored, new)


def to_released(
    weights: Mapping[str, Tensor], settings: ModelSettings, unused: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Released names (without prefix) for the weights of a `SemanticSam`, aliases and index buffers included.

    What the release has no place for is left out; of `unused`, as `from_released` gave it, zeros take the place.
    """
    released: dict[str, Tensor] = {}
    for own, tensor in weights.items():
        name = released_name(own)
        if name is not None:
            for alias in aliases(name, settings):
                released[alias] = _turned(tensor, name)
    index = relative_positions(settings.backbone.window)
    for name, shape in released_shapes(settings).items():
        if name.endswith(RELATIVE_INDEX):
            released[name] = index
        elif name == LANGUAGE_MAPPER:
            released[name] = (unused or {}).get(name, torch.zeros(shape))
    return released


def save_released(
    path: str | Path, weights: Mapping[str, Tensor], settings: ModelSettings, unused: Mapping[str, Tensor] | None = None
) -> None:
    """Write a `.pth` with the layout of the released ones; arguments as for `to_released`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    released = to_released(weights, settings, unused)
    part = path.with_name(f"{path.name}.part")
    torch.save({"model": {f"{PREFIX}{name}": tensor for name, tensor in released.items()}}, part)
    part.replace(path)


def unplaced(weights: Iterable[str]) -> list[str]:
    """Those of our weights that `to_released` leaves out."""
    return [own for own in weights if released_name(own) is None]


def released_shapes(settings: ModelSettings) -> dict[str, tuple[int, ...]]:
    """Every key of a released checkpoint of this size, and its shape."""
    shapes: dict[str, tuple[int, ...]] = {LANGUAGE_MAPPER: (settings.text.dim, settings.hidden_dim)}
    for own, shape in model_shapes(settings).items():
        name = released_name(own)
        if name is not None:
            for alias in aliases(name, settings):
                shapes[alias] = shape[::-1] if name in TRANSPOSED else shape
    pixels = settings.backbone.window**2
    for stage, depth in enumerate(settings.backbone.depths):
        for block in range(depth):
            shapes[f"backbone.layers.{stage}.blocks.{block}.{RELATIVE_INDEX}"] = (pixels, pixels)
    return shapes


def released_name(own: str) -> str | None:
    """The released name of one of our weights, None where the release has none."""
    for pattern, theirs in RULES:
        name, found = pattern.subn(theirs, own, count=1) if pattern.match(own) else ("", 0)
        if found:
            return DEFORMABLE.sub(lambda m: f"{m[1]}.{ATTENTION_NAMES[m[2]]}.", name)
    return None


def aliases(name: str, settings: ModelSettings) -> Iterable[str]:
    """All names under which a released file holds one tensor, `name` among them."""
    box_head, norm = PREDICTOR + "_bbox_embed.", PREDICTOR + "decoder_norm."
    yield name
    if name.startswith(box_head):
        for layer in range(settings.decoder_layers):
            for owner in ("", "decoder."):
                yield f"{PREDICTOR}{owner}bbox_embed.{layer}.{name.removeprefix(box_head)}"
    elif name.startswith(norm):
        yield f"{PREDICTOR}decoder.norm.{name.removeprefix(norm)}"


@lru_cache
def model_shapes(settings: ModelSettings) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of our model; not to be changed by callers."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in SemanticSam(settings).state_dict().items()}


def _turned(tensor: Tensor, name: str) -> Tensor:
    return tensor.t().contiguous() if name in TRANSPOSED else tensor


def _unequal(released: Mapping[str, Tensor], settings: ModelSettings) -> list[str]:
    """Keys whose values contradict what they are another name of."""
    index = relative_positions(settings.backbone.window)
    faults = [
        f"{name}: not the relative positions of a window of {settings.backbone.window}"
        for name in released
        if name.endswith(RELATIVE_INDEX) and not torch.equal(released[name].long(), index)
    ]
    for own in model_shapes(settings):
        name = released_name(own)
        for alias in aliases(name, settings) if name is not None else ():
            if not torch.equal(released[alias], released[str(name)]):
                faults.append(f"{alias}: differs from {name}, whose tensor it shares")
    return faults
