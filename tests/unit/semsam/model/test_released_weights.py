"""Released checkpoints: every key accounted for, there and back bit for bit, and faults by name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semsam.model.backbone import relative_positions
from semsam.model.presets import PRESETS
from semsam.model.released_weights import (
    LANGUAGE_MAPPER,
    aliases,
    from_released,
    load_released,
    read_released,
    released_shapes,
    save_released,
    to_released,
)
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import TextSettings

DEBUG = PRESETS["debug"]
BOX_HEAD = "sem_seg_head.predictor._bbox_embed.layers.0.weight"


@pytest.fixture
def released() -> dict[str, Tensor]:
    """A checkpoint with the released names, of the debug model's size."""
    model = SemanticSam.untrained("debug")
    return to_released(model.state_dict(), DEBUG, {LANGUAGE_MAPPER: torch.randn(64, 64)})


@pytest.mark.parametrize(("preset", "letter", "count"), [("swin_tiny", "t", 648), ("swin_large", "l", 816)])
def test_every_released_key_is_accounted_for(reference_dir: Path, preset: str, letter: str, count: int) -> None:
    listed = json.loads((reference_dir / f"released_keys_swin_{letter}.json").read_text())
    assert len(listed) == count
    assert released_shapes(PRESETS[preset]) == {key: tuple(shape) for key, shape, _ in listed}


def test_names_of_one_tensor_are_the_released_ones(reference_dir: Path) -> None:
    listed = json.loads((reference_dir / "released_key_aliases.json").read_text())
    settings = PRESETS["swin_tiny"]
    found = [set(aliases(key, settings)) for key in released_shapes(settings)]
    assert sorted(map(sorted, listed)) == sorted(sorted(names) for names in found if len(names) > 1)


def test_there_and_back_is_the_same_file(released: dict[str, Tensor]) -> None:
    converted = from_released(released, DEBUG)
    again = to_released(converted.weights, DEBUG, converted.unused)
    assert again.keys() == released.keys()
    assert all(torch.equal(again[name], released[name]) for name in released)


def test_what_the_release_lacks_is_said(released: dict[str, Tensor]) -> None:
    converted = from_released(released, DEBUG)
    assert converted.new
    parts = ("text_encoder.", "mask_decoder.proposals.", "mask_decoder.heads.objects.", "mask_decoder.heads.parts.")
    assert all(name.startswith(parts) for name in converted.new)
    assert converted.weights.keys() | set(converted.new) == SemanticSam.untrained("debug").state_dict().keys()


def test_a_file_gives_the_model_that_wrote_it(released: dict[str, Tensor], tmp_path: Path) -> None:
    extra = {"model.criterion.empty_weight": torch.ones(2)}
    torch.save({"model": {**{f"model.{k}": v for k, v in released.items()}, **extra}}, tmp_path / "released.pth")
    model, converted = load_released(tmp_path / "released.pth", DEBUG)
    expected = SemanticSam.untrained("debug").state_dict()
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in converted.weights)


def dropped(weights: dict[str, Tensor]) -> None:
    del weights["backbone.norm0.weight"]


def added(weights: dict[str, Tensor]) -> None:
    weights["backbone.norm9.weight"] = torch.ones(1)


def misshapen(weights: dict[str, Tensor]) -> None:
    weights["backbone.norm0.weight"] = torch.ones(5)


def torn_apart(weights: dict[str, Tensor]) -> None:
    weights[BOX_HEAD] = weights[BOX_HEAD] + 1


def reindexed(weights: dict[str, Tensor]) -> None:
    name = "backbone.layers.0.blocks.0.attn.relative_position_index"
    weights[name] = weights[name] + 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (dropped, r"my\.pth: 1 key\(s\) do not fit\n  missing: backbone\.norm0\.weight"),
        (added, r"unexpected: backbone\.norm9\.weight"),
        (misshapen, r"backbone\.norm0\.weight: \[5\] instead of \[32\]"),
        (torn_apart, r"bbox_embed\.0\.layers\.0\.weight: differs from"),
        (reindexed, r"blocks\.0\.attn\.relative_position_index: not the relative positions of a window of 4"),
    ],
)
def test_a_key_that_does_not_fit_is_named(
    released: dict[str, Tensor], spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    spoil(released)
    with pytest.raises(ValueError, match=message):
        from_released(released, DEBUG, "my.pth")


def test_a_checkpoint_of_another_size_is_refused(released: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"mask_features\.bias: \[64\] instead of \[128\]"):
        from_released(released, replace(DEBUG, hidden_dim=128))


@pytest.mark.parametrize("content", [b"not a checkpoint", b""])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.pth"):
        read_released(tmp_path / "bad.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pth: No such file"):
        read_released(tmp_path / "none.pth")


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    torch.save({"model": {"model.backbone": Path("x")}}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match=r"hostile\.pth: not a checkpoint of tensors"):
        read_released(tmp_path / "hostile.pth")


def test_a_key_with_and_without_the_prefix_is_named(tmp_path: Path) -> None:
    torch.save({"model.a": torch.ones(1), "a": torch.zeros(1)}, tmp_path / "twice.pth")
    with pytest.raises(ValueError, match=r"twice\.pth: 1 key\(s\) with and without the prefix model\.\n  a"):
        read_released(tmp_path / "twice.pth")


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "letter"), [("swin_tiny", "t"), ("swin_large", "l")])
def test_the_deterministic_checkpoints_come_back_bit_for_bit(
    reference_dir: Path, tmp_path: Path, preset: str, letter: str
) -> None:
    spec = importlib.util.spec_from_file_location("weights", reference_dir / "deterministic_weights.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(tools := importlib.util.module_from_spec(spec))
    settings = replace(PRESETS[preset], text=TextSettings(kind="byte_ngrams"))
    index = relative_positions(settings.backbone.window)
    made = {}
    for key, shape, _ in json.loads((reference_dir / f"released_keys_swin_{letter}.json").read_text()):
        weight = tools.gen_weight(key, shape)
        made[key] = index if weight is None else torch.from_numpy(weight)
    torch.save({"model": {f"model.{key}": tensor for key, tensor in made.items()}}, tmp_path / "made.pth")
    model, converted = load_released(tmp_path / "made.pth", settings)
    model.save(tmp_path / "ours")
    loaded = SemanticSam.load(tmp_path / "ours").state_dict()
    save_released(tmp_path / "back.pth", loaded, settings, converted.unused)
    back = read_released(tmp_path / "back.pth")
    assert back.keys() == made.keys()
    assert all(back[key].dtype == made[key].dtype and torch.equal(back[key], made[key]) for key in made)
