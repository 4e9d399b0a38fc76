"""Text transformers of CLIP and UniCL for the text encoder, from a folder as Hugging Face keeps them.

config.json         the sizes; optional for UniCL's own files, whose sizes are those of the preset
model.safetensors   or pytorch_model.bin: the weights, under the names of `transformers` or of UniCL
vocab.json ...      the tokenizer's files (see tokenizer.py)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import torch

from semsam.model.presets import ModelSettings
from semsam.model.pretrained_swin import PretrainedWeights
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import CLIP_VOCABULARY, ClipTextTransformer, TextSettings, load_clip_tokenizer
from semsam.model.weight_files import misfits, read_tensors, refuse

OWN = "text_encoder.network."
CONFIG_FILE, WEIGHTS_FILES = "config.json", ("model.safetensors", "pytorch_model.bin")

# The names that `transformers` gives to ours; queries, keys and values are three there.
CLIP_RULES = (
    (r"tokens\.", "text_model.embeddings.token_embedding."),
    (r"positions\.", "text_model.embeddings.position_embedding."),
    (r"norm\.", "text_model.final_layer_norm."),
    (r"projection\.", "text_projection."),
    (r"layers\.(\d+)\.attention_norm\.", r"text_model.encoder.layers.\1.layer_norm1."),
    (r"layers\.(\d+)\.mlp_norm\.", r"text_model.encoder.layers.\1.layer_norm2."),
    (r"layers\.(\d+)\.qkv\.", r"text_model.encoder.layers.\1.self_attn.{}_proj."),
    (r"layers\.(\d+)\.output\.", r"text_model.encoder.layers.\1.self_attn.out_proj."),
    (r"layers\.(\d+)\.expand\.", r"text_model.encoder.layers.\1.mlp.fc1."),
    (r"layers\.(\d+)\.contract\.", r"text_model.encoder.layers.\1.mlp.fc2."),
)
# And UniCL.  Its projection is stored the other way round.
UNICL_RULES = (
    (r"tokens\.", "text_encoder.token_embedding."),
    (r"positions\.weight", "text_encoder.positional_embedding"),
    (r"norm\.", "text_encoder.ln_final."),
    (r"projection\.weight", "text_projection"),
    (r"layers\.(\d+)\.attention_norm\.", r"text_encoder.resblocks.\1.ln_1."),
    (r"layers\.(\d+)\.mlp_norm\.", r"text_encoder.resblocks.\1.ln_2."),
    (r"layers\.(\d+)\.qkv\.", r"text_encoder.resblocks.\1.attn.in_proj_"),
    (r"layers\.(\d+)\.output\.", r"text_encoder.resblocks.\1.attn.out_proj."),
    (r"layers\.(\d+)\.expand\.", r"text_encoder.resblocks.\1.mlp.c_fc."),
    (r"layers\.(\d+)\.contract\.", r"text_encoder.resblocks.\1.mlp.c_proj."),
)
TURNED = "text_projection"
# The image side, how alike the two sides are, and a constant.
OF_NO_USE = re.compile(
    r"(vision_model|visual_projection|image_encoder|visual)\.|"
    r"(logit_scale|image_projection|vision_projection|text_model\.embeddings\.position_ids)$"
)
UNICL_PREFIX = r"(text_encoder|lang_encoder|text)\."  # All three have been in use.


def text_settings(folder: str | Path, base: TextSettings) -> TextSettings:
    """The settings of the encoder in a folder; what `config.json` does not say is as in `base`.

    Raises `ValueError` for an encoder of another kind, and for a missing tokenizer.
    """
    sizes = _read_sizes(Path(folder) / CONFIG_FILE)
    load_clip_tokenizer(str(folder))
    try:
        return replace(base, kind="clip", tokenizer=str(folder), pretrained=True, **sizes)
    except ValueError as error:
        raise ValueError(f"{folder}/{CONFIG_FILE}: {error}") from None


def load_text(folder: str | Path, settings: TextSettings) -> PretrainedWeights:
    """The text encoder's weights from a folder; `settings` as `text_settings` gave them.

    Raises `ValueError` with every key that is missing, unexpected or misshapen.
    """
    path = next((path for name in WEIGHTS_FILES if (path := Path(folder) / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder}: no weights: neither {' nor '.join(WEIGHTS_FILES)}")
    found = read_tensors(path)
    unused = tuple(name for name in found if OF_NO_USE.match(name))
    used = {name: tensor for name, tensor in found.items() if name not in unused}
    found = {re.sub(f"^{UNICL_PREFIX}", "text_encoder.", name): tensor for name, tensor in used.items()}
    if TURNED in found:
        found[TURNED] = found[TURNED].t().contiguous()
    rules = UNICL_RULES if any(name.startswith("text_encoder.") for name in found) else CLIP_RULES
    with torch.device("meta"):
        own = {name: tuple(tensor.shape) for name, tensor in ClipTextTransformer(settings).state_dict().items()}
    sources = {name: _sources(name, rules) for name in own}
    expected = {
        theirs: (shape[0] // len(sources[name]), *shape[1:]) for name, shape in own.items() for theirs in sources[name]
    }
    refuse(str(path), misfits(found, expected))
    weights = {OWN + name: torch.cat([found[theirs] for theirs in sources[name]]) for name in own}
    return PretrainedWeights(weights, unused, ())


def with_text(model: SemanticSam, folder: str | Path) -> tuple[SemanticSam, PretrainedWeights]:
    """The model with the text encoder of a folder in place of its own, and what was taken from there."""
    text = text_settings(folder, model.settings.text)
    loaded = load_text(folder, text)
    settings: ModelSettings = replace(model.settings, text=text)
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("text_encoder.")}
    changed = SemanticSam(settings)
    changed.load_weights(kept | loaded.weights, str(folder))
    return changed.train(model.training), loaded


def _read_sizes(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    config = config.get("text_config") or config
    _check_kind(config, path)
    names = {"hidden_size": "dim", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    names |= {"max_position_embeddings": "context"}
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def _check_kind(config: Mapping[str, Any], path: Path) -> None:
    activation, vocabulary = config.get("hidden_act", "quick_gelu"), config.get("vocab_size", CLIP_VOCABULARY)
    if activation != "quick_gelu":
        raise ValueError(f"{path}: hidden_act is {activation}; only CLIP's quick_gelu is supported")
    if vocabulary != CLIP_VOCABULARY:
        raise ValueError(f"{path}: vocab_size is {vocabulary} instead of CLIP's {CLIP_VOCABULARY}")


def _sources(own: str, rules: tuple[tuple[str, str], ...]) -> list[str]:
    """The names, in the file, of the tensors that one of ours is made of, one after another."""
    for ours, theirs in rules:
        name, found = re.subn(f"^{ours}", theirs, own)
        if found:
            return [name.format(part) for part in "qkv"] if "{}" in name else [name]
    raise AssertionError(own)
