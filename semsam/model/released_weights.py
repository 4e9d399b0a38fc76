"""The authors' released checkpoints (SA-1B, Swin-T and Swin-L) into our model, every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

_HEAD = r"sem_seg_head\.predictor\."
_PIXEL = r"sem_seg_head\.pixel_decoder\."

# Released name -> ours.  The first rule that matches a whole name decides.
_RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.patch_embed\.(.+)", r"backbone.patch_embed.\1"),
    (r"backbone\.norm(\d)\.(.+)", r"backbone.norms.\1.\2"),
    (r"backbone\.layers\.(\d)\.downsample\.(.+)", r"backbone.merges.\1.\2"),
    (r"backbone\.layers\.(\d)\.blocks\.(\d+)\.attn\.(.+)", r"backbone.stages.\1.\2.attention.\3"),
    (r"backbone\.layers\.(\d)\.blocks\.(\d+)\.mlp\.(.+)", r"backbone.stages.\1.\2.\3"),
    (r"backbone\.layers\.(\d)\.blocks\.(\d+)\.(.+)", r"backbone.stages.\1.\2.\3"),
    (_PIXEL + r"input_proj\.(.+)", r"pixel_decoder.input_projections.\1"),
    (_PIXEL + r"transformer\.level_embed", r"pixel_decoder.level_embed"),
    (_PIXEL + r"transformer\.encoder\.layers\.(\d)\.self_attn\.(.+)", r"pixel_decoder.layers.\1.self_attention.\2"),
    (_PIXEL + r"transformer\.encoder\.layers\.(.+)", r"pixel_decoder.layers.\1"),
    (_PIXEL + r"mask_features\.(.+)", r"pixel_decoder.mask_features.\1"),
    (_PIXEL + r"adapter_1\.norm\.(.+)", r"pixel_decoder.lateral_norm.\1"),
    (_PIXEL + r"adapter_1\.weight", r"pixel_decoder.lateral.weight"),
    (_PIXEL + r"layer_1\.norm\.(.+)", r"pixel_decoder.output_norm.\1"),
    (_PIXEL + r"layer_1\.weight", r"pixel_decoder.output.weight"),
    (_HEAD + r"class_embed", r"mask_decoder.heads.objects.projection"),
    (_HEAD + r"class_embed_part", r"mask_decoder.heads.parts.projection"),
    (_HEAD + r"mask_embed\.(.+)", r"mask_decoder.heads.mask.\1"),
    (_HEAD + r"iou_prediction_head\.(.+)", r"mask_decoder.heads.iou.\1"),
    (_HEAD + r"_bbox_embed\.(.+)", r"mask_decoder.heads.box.\1"),
    (_HEAD + r"decoder_norm\.(.+)", r"mask_decoder.heads.norm.\1"),
    (_HEAD + r"decoder\.ref_point_head\.(.+)", r"mask_decoder.position_mlp.\1"),
    (_HEAD + r"decoder\.layers\.(\d)\.cross_attn\.(.+)", r"mask_decoder.layers.\1.cross_attention.\2"),
    (_HEAD + r"decoder\.layers\.(\d)\.self_attn\.out_proj\.(.+)", r"mask_decoder.layers.\1.self_attention.output.\2"),
    (_HEAD + r"decoder\.layers\.(\d)\.norm1\.(.+)", r"mask_decoder.layers.\1.cross_norm.\2"),
    (_HEAD + r"decoder\.layers\.(\d)\.norm2\.(.+)", r"mask_decoder.layers.\1.self_norm.\2"),
    (_HEAD + r"decoder\.layers\.(\d)\.norm3\.(.+)", r"mask_decoder.layers.\1.feedforward_norm.\2"),
    (_HEAD + r"decoder\.layers\.(\d)\.(linear[12])\.(.+)", r"mask_decoder.layers.\1.\2.\3"),
    (_HEAD + r"mask_tokens\.weight", r"prompt_encoder.levels.weight"),
    (_HEAD + r"pb_embedding\.weight", r"prompt_encoder.kinds.weight"),
    (_HEAD + r"label_enc\.weight", r"prompt_encoder.any_prompt.weight"),
)
# One tensor for queries, keys and values; ours are two modules.
_IN_PROJECTION = re.compile(_HEAD + r"decoder\.layers\.(\d)\.self_attn\.in_proj_(weight|bias)")
# Second names of tensors that have a rule above.
_ALIASES = re.compile(_HEAD + r"((decoder\.)?bbox_embed\.\d+\..+|decoder\.norm\..+)")
# Computed from the window size; a vocabulary mapping of training; the criterion's class weights.
_UNUSED = re.compile(r".+\.relative_position_index|" + _HEAD + r"lang_mapper|criterion\.empty_weight")
# What the released training never had: generic queries, names, and where their scores start.
NOT_RELEASED = re.compile(
    r"text_encoder\..+|mask_decoder\.proposal_.+|mask_decoder\.heads\.(objects|parts)\.(log_scale|bias)"
)


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The model's tensors in a released `.pth`, by released name; nothing in the file is executed.

    Raises `ValueError`, naming the file, when it is no such checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of tensors: {error}") from None
    content = content.get("model", content) if isinstance(content, Mapping) else {}
    state = {name.removeprefix("model."): value for name, value in content.items() if name.startswith("model.")}
    if not state:
        raise ValueError(f"{path}: holds no tensor whose name starts with 'model.'")
    return state


def load_released(model: nn.Module, released: Mapping[str, Tensor]) -> list[str]:
    """Copy released tensors into a `SemanticSam`; gives the names of ours that the release has no weights for.

    Raises `ValueError` listing every released name that is unknown, missing or of the wrong shape.
    """
    own = model.state_dict()
    converted, faults = convert_released(released)
    kept = [name for name in own if NOT_RELEASED.fullmatch(name)]
    faults += [f"nothing for {name}" for name in own if name not in converted and name not in kept]
    for name, tensor in converted.items():
        if name not in own:
            faults.append(f"no place for {name}")
        elif own[name].shape != tensor.shape:
            faults.append(f"{name} has shape {list(tensor.shape)}, the model's is {list(own[name].shape)}")
    if faults:
        raise ValueError("released checkpoint does not fit: " + "; ".join(sorted(faults)))
    model.load_state_dict(converted, strict=False)
    return kept


def convert_released(released: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Released tensors under our names, and what is wrong with the released names."""
    converted: dict[str, Tensor] = {}
    faults = []
    for name, tensor in released.items():
        if _UNUSED.fullmatch(name) or _ALIASES.fullmatch(name):
            continue
        in_projection = _IN_PROJECTION.fullmatch(name)
        if in_projection:
            layer, kind = in_projection.groups()
            of_layer = f"mask_decoder.layers.{layer}.self_attention"
            two_thirds = len(tensor) // 3 * 2
            converted[f"{of_layer}.query_key.{kind}"] = tensor[:two_thirds]
            converted[f"{of_layer}.value.{kind}"] = tensor[two_thirds:]
            continue
        rule = next((rule for rule in _RULES if re.fullmatch(rule[0], name)), None)
        if rule is None:
            faults.append(f"unknown {name}")
            continue
        # The second row of `label_enc` is never used.
        kept = tensor[:1] if name.endswith("label_enc.weight") else tensor
        converted[re.sub(rule[0], rule[1], name)] = kept
    return converted, faults
