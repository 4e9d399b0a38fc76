"""Whatever happens to a file of a run, going on from it says which one it was and what can be done."""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
import safetensors.torch
import torch

from semsam.data.sealed import seal
from semsam.model.semantic_sam import SemanticSam
from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import checkpoint_steps, keep_last, load_state
from semsam.training.engine import Worker
from semsam.training.faults import TrainingFault
from semsam.training.partition_files import partition_file, write_partitions
from semsam.training.partition_reading import Wanted, load_partitions
from semsam.training.recipe import Recipe
from semsam.training.train import train
from semsam.training.train_log import LOG_FILE, read_log

CPU = Worker(0, 1, torch.device("cpu"))
PIECES = [partition_file(quantity, 0) for quantity in ("weight", "exp_avg", "exp_avg_sq")]
FILES = [f"checkpoint-4/{name}" for name in (*PIECES, "model.safetensors", "config.yaml", "state.json")] + [LOG_FILE]


def run(recipe: Recipe, folder: Path) -> None:
    train(recipe, {}, RunFolder(folder), CPU, "test", None)


@pytest.fixture(scope="module")
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    return make_recipe(steps=4, checkpoint_every=1, keep_last=9)


@pytest.fixture(scope="module")
def sound(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    run(recipe, folder)
    return folder


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    path.write_bytes(data)


def damage(run: Path, name: str, how: str) -> None:
    path = run / name
    rng = np.random.default_rng([ord(letter) for letter in name + how])
    if how == "cut":
        path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))])
    elif how == "flipped":
        flip(path, int(rng.integers(path.stat().st_size)))
    elif how == "flipped at the start":
        flip(path, int(rng.integers(300)))
    elif how == "gone":
        path.unlink()
    elif how == "older":
        older = run / name.replace("checkpoint-4", "checkpoint-3")
        path.write_bytes(older.read_bytes() if older != path else path.read_bytes()[:-300])


WAYS = ("cut", "flipped", "flipped at the start", "gone", "older")
# A checkpoint without its state is none, and the settings of all steps are the same.
HARMLESS = {("checkpoint-4/state.json", "gone"), ("checkpoint-4/config.yaml", "older")}


@pytest.mark.parametrize(
    ("name", "how"), [(name, how) for name in FILES for how in WAYS if (name, how) not in HARMLESS]
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_it(copy: Path, recipe: Recipe, name: str, how: str) -> None:
    damage(copy, name, how)
    with pytest.raises(ValueError, match=f"{copy}/{name}: ") as caught:
        run(recipe, copy)
    if name != LOG_FILE:
        assert f"; the checkpoint before it is {copy}/checkpoint-3: delete {copy}/checkpoint-4 to" in str(caught.value)


def test_a_whole_checkpoint_under_another_step_s_name_is_refused(copy: Path, recipe: Recipe) -> None:
    (copy / "checkpoint-3").rename(copy / "checkpoint-9")
    with pytest.raises(ValueError, match=r"checkpoint-9/state.json: this is the state after step 3"):
        run(recipe, copy)


def test_pieces_that_changed_places_are_noticed(copy: Path, recipe: Recipe) -> None:
    first, second = (copy / "checkpoint-4" / name for name in PIECES[1:])
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    with pytest.raises(ValueError, match=PIECES[1]):
        run(recipe, copy)


def test_going_on_from_the_checkpoint_before_as_the_message_says_ends_alike(copy: Path, recipe: Recipe) -> None:
    whole = (copy / "checkpoint-4/model.safetensors").read_bytes()
    log = list(read_log(Folder(copy)))
    shutil.rmtree(copy / "checkpoint-4")
    run(recipe, copy)
    assert (copy / "checkpoint-4/model.safetensors").read_bytes() == whole
    assert [one["loss"] for one in read_log(Folder(copy))] == [one["loss"] for one in log]


@pytest.mark.parametrize("lines", [b'{"step": 4, "loss": 1}\n{"step"', b"\xff\n", b"[]\n"])
def test_what_follows_the_checkpoint_in_the_log_is_dropped(copy: Path, recipe: Recipe, lines: bytes) -> None:
    before = (copy / LOG_FILE).read_bytes()
    with (copy / LOG_FILE).open("ab") as file:
        file.write(lines)
    run(recipe, copy)
    assert (copy / LOG_FILE).read_bytes() == before


@pytest.mark.parametrize("line", [b"{\n", b"\xff\n", b"[1]\n", b"{}\n", b'{"step": "1"}\n', b'{"step": null}\n', b"\n"])
def test_a_line_of_the_log_that_is_no_step_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / LOG_FILE).write_bytes(b'{"step": 0}\n' + line)
    with pytest.raises(ValueError, match=f"{tmp_path}/{LOG_FILE}: line 2: "):
        list(read_log(Folder(tmp_path)))


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        ({"a:0": 4, "a:2": 3}, "a: its ranges are not"),
        ({"a:0": 4, "a:3": 3}, "a: its ranges are not"),
        ({"a:0": 2, "a:1": 2, "a:4": 3}, "a: its ranges are not"),
        ({"a:-1": 7}, "a: its ranges are not"),
    ],
)
def test_overlapping_ranges_are_refused_by_the_tensor_s_name(
    tmp_path: Path, ranges: dict[str, int], reason: str
) -> None:
    write_partitions(Folder(tmp_path), "ema", 0, {key: torch.zeros(size) for key, size in ranges.items()})
    with pytest.raises(ValueError, match=reason):
        load_partitions(Folder(tmp_path), "ema", 1, {"a": 7}, [])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_neither_written_nor_read(tmp_path: Path, value: float) -> None:
    folder, values = Folder(tmp_path), torch.tensor([0.0, value])
    with pytest.raises(ValueError, match=f"{tmp_path}: not written: ema of a:0 is not finite"):
        write_partitions(folder, "ema", 0, {"a:0": values})
    sums = {"a:0": zlib.crc32(values.numpy().tobytes(), zlib.crc32(b"a:0"))}
    (tmp_path / partition_file("ema", 0)).write_bytes(
        safetensors.torch.save({"a:0": values}, {"crc32": orjson.dumps(sums).decode()})
    )
    with pytest.raises(ValueError, match=f"{partition_file('ema', 0)}: a:0 is not finite"):
        load_partitions(folder, "ema", 1, {"a": 2}, [Wanted("a", 0, torch.zeros(1))])


def test_keep_last_counts_sound_checkpoints_only_and_keeps_multiples(copy: Path) -> None:
    folder = Folder(copy)
    flip(copy / "checkpoint-4" / "state.json", 50)
    keep_last(folder, 1)
    assert checkpoint_steps(folder) == [3, 4]
    shutil.rmtree(copy / "checkpoint-3")
    keep_last(folder, 1)
    assert checkpoint_steps(folder) == [4]


def test_multiples_of_keep_every_are_made_and_stay(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run(make_recipe(steps=4, checkpoint_every=4, keep_last=1, keep_every=3), tmp_path)
    assert checkpoint_steps(Folder(tmp_path)) == [3, 4]
    assert load_state(Folder(tmp_path / "checkpoint-3")).step == 3


@pytest.fixture(scope="module")
def exported(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    SemanticSam.load(sound / "checkpoint-4").save(folder)
    return folder


@pytest.mark.parametrize("how", ["cut", "flipped", "flipped at the start"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "files.json"])
def test_a_damaged_export_is_refused_by_its_file(exported: Path, tmp_path: Path, name: str, how: str) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "run"))
    damage(folder, name, how)
    with pytest.raises(ValueError, match=f"{folder}/{name}: "):
        SemanticSam.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "state.json"])
def test_a_damaged_checkpoint_is_refused_for_use_too(copy: Path, name: str) -> None:
    damage(copy, f"checkpoint-4/{name}", "flipped")
    with pytest.raises(ValueError, match=f"{copy}/checkpoint-4/{name}: "):
        SemanticSam.load(copy / "checkpoint-4")


def test_weights_of_another_type_or_not_finite_are_refused_by_name(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "run"))
    (folder / "files.json").unlink()  # As from somebody who knows nothing of it.
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    first, second, *_ = sorted(name for name, tensor in weights.items() if tensor.ndim == 2)
    weights[first][0, 0] = torch.nan
    weights[second] = weights[second].double()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="2 weight") as caught:
        SemanticSam.load(folder)
    assert f"{first}: not finite" in str(caught.value)
    assert f"{second}: torch.float64 instead of torch.float32" in str(caught.value)


def test_a_state_that_lists_no_files_is_named(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "run"))
    (folder / "files.json").write_bytes(seal({"files": 3}))
    with pytest.raises(ValueError, match=f"{folder}/files.json: not a list of the files beside it"):
        SemanticSam.load(folder)


def test_the_state_lists_every_file_of_the_checkpoint(sound: Path) -> None:
    folder = sound / "checkpoint-4"
    files = orjson.loads((folder / "state.json").read_bytes())["files"]
    assert set(files) == {path.name for path in folder.iterdir()} - {"state.json"}
    state = load_state(Folder(folder))
    assert {name: dataclasses.asdict(one) for name, one in state.files.items()} == files
    assert state.log is not None
    assert state.log.size == (sound / LOG_FILE).stat().st_size


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: data[:50] + b"9" + data[51:], None])
def test_a_log_that_has_not_kept_what_the_checkpoint_knows_is_refused(
    copy: Path, recipe: Recipe, change: Callable[[bytes], bytes] | None
) -> None:
    path = copy / LOG_FILE
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TrainingFault, match=rf"^{path}: damaged: its first \d+ bytes are not those"):
        train(recipe, {}, RunFolder(copy), CPU, "test", None)


def test_a_checkpoint_from_before_files_were_noted_is_read_as_other_peoples(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "run"))
    (folder / "files.json").unlink()
    (folder / "state.json").write_bytes(orjson.dumps({"step": 4, "cursor": 8}))
    expected, found = (SemanticSam.load(one).state_dict() for one in (exported, folder))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
