"""`jobs.export`: released weights and training checkpoints become folders that load, and nothing is lost on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from jobs.export import UNUSED_FILE, ExportJob, main, run
from jobs.verify import VerifyJob
from jobs.verify import run as verify
from semsam.config import ConfigError, config_values, parse_config
from semsam.data.sealed import seal
from semsam.model.model_folder import from_pretrained
from semsam.model.presets import PRESETS
from semsam.model.released_weights import LANGUAGE_MAPPER, read_released, save_released, to_released
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import TextSettings
from semsam.model.tokenizer import byte_letters

DEBUG = PRESETS["debug"]


@pytest.fixture
def model() -> SemanticSam:
    return SemanticSam.untrained("debug", seed=5)


@pytest.fixture
def released(model: SemanticSam, tmp_path: Path) -> Path:
    """A file with the released names, of the debug model's size."""
    path = tmp_path / "released.pth"
    save_released(path, model.state_dict(), DEBUG, {LANGUAGE_MAPPER: torch.randn(64, 64)})
    return path


@pytest.fixture
def checkpoint(model: SemanticSam, tmp_path: Path) -> Path:
    """What a training leaves after a step, all that it goes on from included."""
    folder = tmp_path / "run" / "checkpoint-1"
    model.save(folder)
    sections = {"model": config_values(DEBUG), "job": {"run": {"name": "test"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(sections))
    (folder / "files.json").unlink()
    (folder / "state.json").write_bytes(seal({"files": {}}))
    for name in ("weight-00000.safetensors", "exp_avg-00000.safetensors"):
        (folder / name).write_bytes(b"for going on")
    return folder


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_released_file_becomes_a_folder_that_loads(
    released: Path, model: SemanticSam, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"released={released}", "preset=debug", f"out={tmp_path / 'out'}"])
    loaded, expected = SemanticSam.load(tmp_path / "out").state_dict(), model.state_dict()
    carried = [name for name in expected if name.startswith(("backbone.", "pixel_decoder.", "prompt_encoder."))]
    assert same({name: loaded[name] for name in carried}, {name: expected[name] for name in carried})
    lines = capsys.readouterr().out.splitlines()
    assert f"  of no use to the model: {LANGUAGE_MAPPER} (kept for the way back)" in lines
    assert any(line.startswith("  not in the release, random: text_encoder.network") for line in lines)
    assert lines[-1] == f"checkpoint in {tmp_path / 'out'}"


def test_a_released_file_comes_back_bit_for_bit(released: Path, tmp_path: Path) -> None:
    run(parse(released=str(released), preset="debug", out=str(tmp_path / "out")))
    outputs = run(parse(checkpoint=str(tmp_path / "out"), to_released=str(tmp_path / "new" / "back.pth")))
    assert outputs == [f"released names in {tmp_path}/new/back.pth"]
    assert same(read_released(tmp_path / "new" / "back.pth"), read_released(released))


def test_what_the_release_lacks_is_random_in_the_same_way_each_time(released: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(parse(released=str(released), preset="debug", out=str(tmp_path / name)))
    assert same(SemanticSam.load(tmp_path / "a").state_dict(), SemanticSam.load(tmp_path / "b").state_dict())


def test_what_a_training_wrote_for_itself_is_said_and_left(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(released, weights_only=True)
    content["model"]["model.criterion.empty_weight"] = torch.ones(2)
    torch.save(content, released)
    run(parse(released=str(released), preset="debug", out=str(tmp_path / "out")))
    assert "  of no use to the model: criterion.empty_weight\n" in capsys.readouterr().out


def test_a_training_checkpoint_becomes_weights_alone(checkpoint: Path, model: SemanticSam, tmp_path: Path) -> None:
    run(parse(checkpoint=str(checkpoint), out=str(tmp_path / "out")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.yaml",
        "files.json",
        "model.safetensors",
    ]
    loaded = SemanticSam.load(tmp_path / "out")
    assert loaded.settings == DEBUG
    assert same(loaded.state_dict(), model.state_dict())


def test_a_trained_model_gets_released_names(checkpoint: Path, tmp_path: Path) -> None:
    run(parse(checkpoint=str(checkpoint), to_released=str(tmp_path / "a.pth")))
    run(parse(released=str(tmp_path / "a.pth"), preset="debug", out=str(tmp_path / "out")))
    assert (tmp_path / "out" / UNUSED_FILE).is_file()


def test_released_tensors_kept_for_the_way_back_are_checked_like_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    run(parse(checkpoint=str(checkpoint), to_released=str(tmp_path / "a.pth")))
    run(parse(released=str(tmp_path / "a.pth"), preset="debug", out=str(tmp_path / "out")))
    kept = tmp_path / "out" / UNUSED_FILE
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    back = parse(checkpoint=str(tmp_path / "out"), to_released=str(tmp_path / "b.pth"))
    for damage in (lambda: None, kept.unlink):
        damage()
        with pytest.raises(ValueError, match=str(kept)):
            run(back)
        [finding] = verify(VerifyJob(str(tmp_path / "out")))
        assert str(kept) in finding.fault
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.slow
def test_onnx_files_are_written(checkpoint: Path, tmp_path: Path) -> None:
    outputs = run(parse(checkpoint=str(checkpoint), onnx=str(tmp_path / "onnx")))
    assert outputs == [f"ONNX in {tmp_path}/onnx"]
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["image_encoder.onnx", "prompt_decoder.onnx"]


@pytest.fixture
def swin(model: SemanticSam, tmp_path: Path) -> Path:
    """The debug backbone as a file of a Swin classifier."""
    released = to_released(model.state_dict(), DEBUG)
    found = {name.removeprefix("backbone."): t for name, t in released.items() if name.startswith("backbone.")}
    found = {name: tensor for name, tensor in found.items() if not name.startswith("norm")}
    torch.save({"model": found | {"head.weight": torch.ones(9, 256)}}, tmp_path / "swin.pth")
    return tmp_path / "swin.pth"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A small text encoder with UniCL's names, and a tokenizer without merges."""
    folder = tmp_path / "clip"
    folder.mkdir()
    letters = sorted(byte_letters())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    ids = {token: index for index, token in enumerate(tokens)} | {"<|startoftext|>": 49_406, "<|endoftext|>": 49_407}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": 64, "num_hidden_layers": 0, "num_attention_heads": 2, "max_position_embeddings": 9}
    (folder / "config.json").write_text(json.dumps(sizes))
    shapes = {"token_embedding.weight": (49_408, 64), "positional_embedding": (9, 64)}
    shapes |= {"ln_final.weight": (64,), "ln_final.bias": (64,)}
    weights = {f"text_encoder.{name}": torch.randn(shape) for name, shape in shapes.items()}
    torch.save(weights | {"text_projection": torch.randn(64, 64)}, folder / "pytorch_model.bin")
    return folder


def test_a_beginning_is_made_of_pretrained_parts(
    swin: Path, clip: Path, model: SemanticSam, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(parse(preset="debug", backbone=str(swin), text=str(clip), out=str(tmp_path / "out")))
    begun = SemanticSam.load(tmp_path / "out")
    assert same(begun.backbone.stages.state_dict(), model.backbone.stages.state_dict())
    assert begun.settings.text.tokenizer == str(clip)
    begun.encode_names(["dog"])  # Which would warn of random weights.
    lines = capsys.readouterr().out.splitlines()
    assert "  of no use to the model: head.weight (1 tensors)" in lines
    assert "  not in the file, as at a beginning: backbone.norms (8 tensors)" in lines
    assert f"{clip}: 5 weights of the text encoder; its tokenizer is read there ever after" in lines


def test_a_released_file_gets_a_text_encoder(released: Path, clip: Path, model: SemanticSam, tmp_path: Path) -> None:
    run(parse(released=str(released), preset="debug", text=str(clip), out=str(tmp_path / "out")))
    loaded = SemanticSam.load(tmp_path / "out")
    assert same(loaded.pixel_decoder.state_dict(), model.pixel_decoder.state_dict())
    assert (tmp_path / "out" / UNUSED_FILE).is_file()


def test_a_random_text_encoder_is_said_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = replace(DEBUG, text=TextSettings(dim=64, num_layers=1, num_heads=1))
    monkeypatch.setitem(PRESETS, "silent", silent)
    save_released(tmp_path / "a.pth", SemanticSam(silent).state_dict(), silent)
    run(parse(released=str(tmp_path / "a.pth"), preset="silent", out=str(tmp_path / "out")))
    assert "WARNING: the text encoder is random" in capsys.readouterr().out


def test_folders_may_be_on_s3(bucket: str, released: Path, tmp_path: Path) -> None:
    run(parse(released=str(released), preset="debug", out=f"{bucket}/ours"))
    run(parse(checkpoint=f"{bucket}/ours", out=f"{bucket}/copy", to_released=str(tmp_path / "back.pth")))
    assert same(read_released(tmp_path / "back.pth"), read_released(released))
    assert same(SemanticSam.load(f"{bucket}/copy").state_dict(), SemanticSam.load(f"{bucket}/ours").state_dict())


def test_a_folder_with_a_checkpoint_is_not_written_over(checkpoint: Path, released: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=rf"out: {checkpoint} already holds a checkpoint"):
        run(parse(released=str(released), preset="debug", out=str(checkpoint)))
    assert (checkpoint / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        ("out", "theirs/model.safetensors", "out: .*/theirs already holds 'model.safetensors'"),
        ("onnx", "theirs/prompt_decoder.onnx", "onnx: .*/theirs already holds 'prompt_decoder.onnx'"),
        ("to_released", "theirs/x.pth", "to_released: .*/theirs/x.pth is there already"),
    ],
)
def test_files_of_others_are_not_written_over(
    checkpoint: Path, tmp_path: Path, setting: str, name: str, message: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text("weeks of work")
    with pytest.raises(ValueError, match=message):
        run(parse(checkpoint=str(checkpoint), **{setting: str(path if setting == "to_released" else path.parent)}))
    assert path.read_text() == "weeks of work"


def test_a_file_that_does_not_fit_leaves_nothing(released: Path, tmp_path: Path) -> None:
    content = torch.load(released, weights_only=True)
    del content["model"]["model.backbone.norm0.weight"]
    torch.save(content, released)
    with pytest.raises(ValueError, match=r"released\.pth: 1 key\(s\) do not fit\n  missing: backbone\.norm0\.weight"):
        run(parse(released=str(released), preset="debug", out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpoint": "y", "backbone": "x.pth", "out": "x"}, "name one source"),
        ({"out": "x"}, "name one source"),
        ({"released": "x.pth", "checkpoint": "y", "out": "x"}, "name one source"),
        ({"checkpoint": "y"}, "name at least one output"),
        ({"released": "x.pth", "preset": "huge", "out": "x"}, "no preset 'huge'"),
        ({"checkpoint": "y", "to_released": "s3://bucket/x.pth"}, "to_released must be on this machine"),
        ({"checkpoint": "y", "out": "x", "form": "onnx"}, "form: unknown setting"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**values)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none"):
        run(parse(checkpoint=str(tmp_path / "none"), out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match=r"none\.pth: No such file"):
        run(parse(released=str(tmp_path / "none.pth"), out=str(tmp_path / "out")))


def parse(**values: Any) -> ExportJob:
    return parse_config(ExportJob, values, "test")


def test_a_checkpoint_becomes_a_model_folder(model: SemanticSam, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "hub"
    assert run(ExportJob(checkpoint=str(checkpoint), pretrained=str(target))) == [f"model folder in {target}"]
    assert same(from_pretrained(target).state_dict(), model.state_dict())
    assert "| made from | `checkpoint-1` |" in (target / "README.md").read_text()
    with pytest.raises(ValueError, match=f"pretrained: {target} already holds 'config.json'"):
        run(ExportJob(checkpoint=str(checkpoint), pretrained=str(target)))
    with pytest.raises(ValueError, match="pretrained: /x is `out` as well"):
        ExportJob(checkpoint=str(checkpoint), out="/x", pretrained="/x")
