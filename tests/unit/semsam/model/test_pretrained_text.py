"""Text encoders from a Hugging Face folder: both kinds of names, strict about keys and kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam.model.pretrained_text import OWN, load_text, text_settings, with_text
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import ClipTextTransformer, TextEncoder, TextSettings
from semsam.model.tokenizer import byte_letters

DIM, LAYERS, CONTEXT = 64, 2, 20
BASE = TextSettings(dim=DIM, num_layers=LAYERS, num_heads=2, context=CONTEXT)
CONFIG = {"hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    """Random weights under the names of `transformers`, the image side's among them."""
    random = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "vision_model.post_layernorm.weight": (5,),
        "visual_projection.weight": (DIM, 5),
        "text_model.embeddings.token_embedding.weight": (49_408, DIM),
        "text_model.embeddings.position_embedding.weight": (CONTEXT, DIM),
        "text_model.final_layer_norm.weight": (DIM,),
        "text_model.final_layer_norm.bias": (DIM,),
        "text_projection.weight": (DIM, DIM),
    }
    for layer in range(LAYERS):
        parts = {f"self_attn.{name}_proj": (DIM, DIM) for name in ("q", "k", "v", "out")}
        parts |= {"mlp.fc1": (4 * DIM, DIM), "mlp.fc2": (DIM, 4 * DIM), "layer_norm1": (DIM,), "layer_norm2": (DIM,)}
        for part, shape in parts.items():
            shapes[f"text_model.encoder.layers.{layer}.{part}.weight"] = shape
            shapes[f"text_model.encoder.layers.{layer}.{part}.bias"] = shape[:1]
    return {name: 0.2 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


def write(weights: dict[str, Tensor], folder: Path, config: object = CONFIG) -> Path:
    letters = sorted(byte_letters())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    ids = {token: index for index, token in enumerate(tokens)} | {"<|startoftext|>": 49_406, "<|endoftext|>": 49_407}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    return folder


def embed_slowly(weights: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """The text's embedding by the formulas, from weights under the names of `transformers`."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = weights["text_model.embeddings.token_embedding.weight"][tokens]
    x = x + weights["text_model.embeddings.position_embedding.weight"][: len(tokens)]
    for layer in range(LAYERS):
        at = f"text_model.encoder.layers.{layer}"
        y = norm(f"{at}.layer_norm1", x)
        q, k, v = (linear(f"{at}.self_attn.{part}_proj", y).chunk(2, dim=1) for part in "qkv")
        heads = []
        for head in range(2):
            scores = q[head] @ k[head].t() / (DIM / 2) ** 0.5
            later = torch.ones_like(scores).triu(1).bool()
            heads.append(scores.masked_fill(later, -torch.inf).softmax(1) @ v[head])
        x = x + linear(f"{at}.self_attn.out_proj", torch.cat(heads, dim=1))
        y = linear(f"{at}.mlp.fc1", norm(f"{at}.layer_norm2", x))
        x = x + linear(f"{at}.mlp.fc2", y * torch.sigmoid(1.702 * y))
    return norm("text_model.final_layer_norm", x)[-1] @ weights["text_projection.weight"].t()


def loaded_encoder(folder: Path) -> ClipTextTransformer:
    settings = text_settings(folder, TextSettings())
    encoder = ClipTextTransformer(settings).eval()
    weights = load_text(folder, settings).weights
    encoder.load_state_dict({name.removeprefix(OWN): tensor for name, tensor in weights.items()})
    return encoder


def test_a_clip_folder_gives_the_embeddings_of_clip(clip: dict[str, Tensor], tmp_path: Path) -> None:
    encoder = loaded_encoder(write(clip, tmp_path / "clip", {"text_config": CONFIG, "model_type": "clip"}))
    expected = [embed_slowly(clip, encoder.tokenize([name])[0].tolist()) for name in ("dog", "a car")]
    torch.testing.assert_close(encoder(["dog", "a car"]), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["text_encoder.", "lang_encoder."])
def test_unicls_names_give_the_same_encoder(clip: dict[str, Tensor], tmp_path: Path, prefix: str) -> None:
    renamed = {"image_encoder.norm.weight": torch.ones(3), "image_projection": torch.ones(3, DIM)}
    names = {"layer_norm": "ln_", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out": "attn.out"}
    names |= {"text_model.encoder.layers": f"{prefix}resblocks", "text_model.final_ln_": f"{prefix}ln_final"}
    names |= {"text_model.embeddings.token": f"{prefix}token", "text_projection.weight": "text_projection"}
    names["text_model.embeddings.position_embedding.weight"] = f"{prefix}positional_embedding"
    for name, tensor in clip.items():
        if name.startswith("vis") or "q_proj" in name or "k_proj" in name:
            continue
        if "v_proj" in name:
            tensor = torch.cat([clip[name.replace("v_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("self_attn.v_proj.", "attn.in_proj_")
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor.t().contiguous() if name == "text_projection" else tensor
    one, other = loaded_encoder(write(clip, tmp_path / "clip")), loaded_encoder(write(renamed, tmp_path / "unicl"))
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_every_key_is_accounted_for(clip: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write(clip, tmp_path / "clip")
    loaded = load_text(folder, text_settings(folder, TextSettings()))
    assert set(loaded.unused) == {"logit_scale", "vision_model.post_layernorm.weight", "visual_projection.weight"}
    # Queries, keys and values are one tensor here and three there.
    assert len(loaded.weights) + 2 * 2 * LAYERS + len(loaded.unused) == len(clip)


def test_older_weight_files_are_read(clip: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write(clip, tmp_path / "clip")
    settings = text_settings(folder, TextSettings())
    expected = load_text(folder, settings).weights
    torch.save(clip | {"text_model.embeddings.position_ids": torch.arange(CONTEXT)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = load_text(folder, settings)
    assert "text_model.embeddings.position_ids" in found.unused
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.weights.items())


def test_a_model_takes_over_a_text_encoder_and_nothing_else(clip: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write(clip, tmp_path / "clip")
    model = SemanticSam.untrained("debug")
    changed, _ = with_text(model, folder)
    assert changed.settings == replace(model.settings, text=text_settings(folder, model.settings.text))
    before, after = model.state_dict(), changed.state_dict()
    kept = [name for name in before if not name.startswith("text_encoder.")]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert len(kept) == len([name for name in after if not name.startswith("text_encoder.")])
    changed.save(tmp_path / "saved")
    # No warning of random weights: they are not.
    torch.testing.assert_close(
        SemanticSam.load(tmp_path / "saved").encode_names(["dog"]), changed.encode_names(["dog"])
    )


def test_without_any_folder_random_weights_are_said() -> None:
    with pytest.warns(UserWarning, match="no pretrained text encoder"):
        TextEncoder(BASE)(["dog"], 0)


def dropped(weights: dict[str, Tensor]) -> None:
    del weights["text_model.encoder.layers.1.self_attn.k_proj.bias"]


def added(weights: dict[str, Tensor]) -> None:
    weights["text_model.encoder.layers.2.layer_norm1.bias"] = torch.ones(DIM)


def misshapen(weights: dict[str, Tensor]) -> None:
    weights["text_projection.weight"] = torch.ones(DIM, 5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            dropped,
            r"safetensors: 1 key\(s\) do not fit\n  missing: text_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias$",
        ),
        (added, r"unexpected: text_model\.encoder\.layers\.2\.layer_norm1\.bias$"),
        (misshapen, r"text_projection\.weight: \[64, 5\] instead of \[64, 64\]$"),
    ],
)
def test_a_key_that_does_not_fit_is_named(
    clip: dict[str, Tensor], tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    weights = dict(clip)
    spoil(weights)
    folder = write(weights, tmp_path / "clip")
    with pytest.raises(ValueError, match=message):
        load_text(folder, text_settings(folder, TextSettings()))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "hidden_act": "gelu"}, "hidden_act is gelu"),
        ({**CONFIG, "vocab_size": 1000}, "vocab_size is 1000"),
        ({**CONFIG, "num_attention_heads": 7}, "dim 64 must be a multiple of num_heads 7"),
    ],
)
def test_an_encoder_of_another_kind_is_refused(config: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = write({}, tmp_path / "clip", config)
    with pytest.raises(ValueError, match=f"{folder}/config.json: {message}"):
        text_settings(folder, TextSettings())


def test_what_is_missing_in_a_folder_is_said(clip: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write(clip, tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{folder}: no weights"):
        load_text(folder, BASE)
    (folder / "vocab.json").unlink()
    with pytest.raises(ValueError, match=rf"text\.tokenizer: {folder}: no tokenizer"):
        text_settings(folder, BASE)
