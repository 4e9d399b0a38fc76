"""Whatever happens to a stored file is noticed, by that file's name, or changes nothing that is read.

A seeded sweep over every kind of file that the project stores: each is cut short, has bits flipped, changes places with
another of its kind, is replaced by something foreign, or by what an older version or run has written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from jobs.generate import GenerateJob, generate_task
from pipelines.generate.generate import find_photos, generate
from pipelines.generate.mask_files import MaskReport, read_masks, write_masks
from pipelines.generate.verify import verify_masks
from pipelines.model_pool import Pool, load_predictor
from pipelines.parts import read_sidecar
from pipelines.prepare.shard_writer import ShardOptions, ShardReport, SplitTask, write_shard
from pipelines.sources import SOURCES
from semsam.automatic_masks import AutomaticMasks
from semsam.config import ConfigError, load_config, parse_config
from semsam.data.sealed import SEAL
from semsam.data.shards import open_split
from semsam.model.semantic_sam import SemanticSam
from semsam.storage import Folder, existing_folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import load_state
from semsam.training.engine import Worker
from semsam.training.partition_reading import Wanted, load_partitions
from semsam.training.partitions import MOMENTS, WEIGHT
from semsam.training.recipe import Recipe
from semsam.training.train import check_log, train
from semsam.training.train_log import read_log
from semsam.training.training_data import TrainingData, find_checkpoint
from tests.conftest import ROOT
from tests.painted_shards import VOCABULARIES, write_painted_shards
from tests.unit.pipelines.conftest import write_image

CASES = 8  # Of each damage to each file.


@dataclass(frozen=True)
class Stored:
    """One file of something stored, and how it is read."""

    kind: str
    name: str  # Below the folder.
    sibling: str  # Another file of its kind.
    older: Callable[[bytes], bytes]
    read: Callable[[Path], Any]
    # Whether it may be missing: a checkpoint without its state is one that was never finished.
    may_be_gone: bool = False


def rows_of(folder: Path) -> list[Any]:
    split = open_split(str(folder), "pascal_part", "train")
    return [split.record(i) for i in range(len(split))]


def names_of(folder: Path) -> list[Any]:
    rows: list[Any] = open_split(str(folder), "pascal_part", "train").row_categories().to_pylist()
    return rows


def older_json(data: bytes) -> bytes:
    """As an earlier version wrote it: without a digest of its own, and of an earlier schema."""
    values = orjson.loads(data)
    values.pop(SEAL, None)
    return orjson.dumps({**values, "schema_version": 1}, option=orjson.OPT_INDENT_2)


def other_bytes(data: bytes) -> bytes:
    """As an earlier run with other settings may have left it: of the same size."""
    return data[: len(data) // 2] + bytes(b ^ 0x55 for b in data[len(data) // 2 :])


def splits() -> list[Stored]:
    split, other = "pascal_part/train", "coco_panoptic/train"
    return [
        Stored("shard", f"{split}/shard-00000.arrow", f"{split}/shard-00001.arrow", other_bytes, rows_of),
        Stored("rows of a shard", f"{split}/shard-00000.rows", f"{split}/shard-00001.rows", other_bytes, rows_of),
        Stored("manifest", f"{split}/manifest.json", f"{other}/manifest.json", older_json, rows_of),
        Stored("row names", f"{split}/row_categories.arrow", f"{other}/row_categories.arrow", other_bytes, names_of),
    ]


@pytest.fixture(scope="module")
def stored_splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painted_shards(tmp_path_factory.mktemp("splits"), 6, VOCABULARIES)


def damages(stored: Stored, folder: Path, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each damage by its name."""
    path, sibling = folder / stored.name, folder / stored.sibling
    data = path.read_bytes()

    def swap() -> None:
        other = sibling.read_bytes()
        sibling.write_bytes(data)
        path.write_bytes(other)

    for _ in range(CASES):
        cut, place, bit = int(rng.integers(len(data))), int(rng.integers(len(data))), 1 << int(rng.integers(8))
        flipped = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
        yield f"cut at {cut}", lambda cut=cut: path.write_bytes(data[:cut])
        yield f"bit {bit} of byte {place} flipped", lambda flipped=flipped: path.write_bytes(flipped)
        foreign = [b"", b"{}", b"\0" * len(data), b"PK\x03\x04 a zip", rng.bytes(len(data)), b"null", data * 2]
        chosen = foreign[int(rng.integers(len(foreign)))]
        yield f"foreign: {chosen[:9]!r}...", lambda chosen=chosen: path.write_bytes(chosen)
    yield "changed places", swap
    yield "older", lambda: path.write_bytes(stored.older(data))
    if not stored.may_be_gone:
        yield "gone", path.unlink


def sweep(stored: Stored, folder: Path) -> tuple[int, list[str]]:
    """How many damages were tried, and what was wrong with the answers."""
    expected, faults, tried = stored.read(folder), [], 0
    names = [stored.name, stored.sibling]
    for name, damage in damages(stored, folder, np.random.default_rng(len(stored.name))):
        tried += 1
        kept = {one: (folder / one).read_bytes() for one in names}
        try:
            damage()
            faults += [f"{stored.kind}, {name}: {fault}" for fault in answer_faults(stored, folder, expected)]
        finally:
            for one, data in kept.items():
                (folder / one).write_bytes(data)
    return tried, faults


def answer_faults(stored: Stored, folder: Path, expected: Any) -> Iterator[str]:
    """What is wrong with how a damaged file is met: nothing, if it is named or makes no difference."""
    try:
        found = stored.read(folder)
    except (ValueError, OSError) as error:
        blamed = [name for name in (stored.name, stored.sibling) if str(folder / name) in str(error)]
        if not blamed:
            yield f"nameless or wrong blame: {error}"
    except Exception as error:
        yield f"crash: {error!r}"
    else:
        if found != expected:
            yield "silent"


def parts() -> list[Stored]:
    def sidecar(kind: type[Any], name: str) -> Callable[[Path], Any]:
        return lambda folder: read_sidecar(Folder(folder).read(name), str(folder / name), kind)

    def masks(folder: Path) -> list[Any]:
        """As a job reads them: by a sidecar, which is whole here."""
        part = read_sidecar((folder / "kept.json").read_bytes(), "masks-00000.json", MaskReport)
        rows: list[Any] = read_masks(Folder(folder), part).to_pylist()
        return rows

    def manifest(folder: Path) -> str:
        return verify_masks(Folder(folder))

    def two(kind: str, suffix: str, older: Callable[[bytes], bytes], read: Callable[[Path], Any]) -> Stored:
        return Stored(kind, suffix.replace("#", "0"), suffix.replace("#", "1"), older, read)

    masks_json, shard_json = sidecar(MaskReport, "masks-00000.json"), sidecar(ShardReport, "shard-00000.json")
    return [
        two("masks", "masks-0000#.parquet", other_bytes, masks),
        two("sidecar of masks", "masks-0000#.json", older_json, masks_json),
        two("sidecar of a shard", "shard-0000#.json", older_json, shard_json),
        Stored("manifest of masks", "manifest.json", "masks-00001.json", older_json, manifest),
    ]


@pytest.fixture(scope="module")
def stored_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of masks, and beside them two shards, each with its sidecar."""
    photos, folder = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("parts")
    for number in (1, 2):
        write_image(photos / "train" / f"sa_{number}", number, 40, 60)
    settings = {
        "images": str(photos),
        "output": str(folder),
        "images_per_file": 1,
        "masks": {"points_per_side": 2, "min_iou": -10, "min_stability": 0, "max_overlap": 1},
        "image_size": {"short_side": 32, "max_long_side": 64},
    }
    task = generate_task(parse_config(GenerateJob, settings, "test"))
    generator = AutomaticMasks(load_predictor(task.options.model, task.options.image_size), task.options.masks)
    for position, photo in enumerate(find_photos(task.files)):
        write_masks(generator, task.options, task.files, [photo], task.output, position)
    generate(task, Pool(), 10.0)
    shutil.copy(folder / "masks-00000.json", folder / "kept.json")
    split = SplitTask(SOURCES["sa1b"], existing_folder(photos), "train", str(folder), ShardOptions(1, 0, 92), "1")
    entries = replace(SOURCES["sa1b"], val_share=0.0).index(split.files, "train").entries
    for position, entry in enumerate(entries):
        write_shard(split, position, [entry])
    return folder


@pytest.mark.parametrize("stored", parts(), ids=lambda stored: stored.kind)
def test_no_damage_to_a_part_is_silent_nameless_or_blamed_on_another(stored: Stored, stored_parts: Path) -> None:
    tried, faults = sweep(stored, stored_parts)
    assert tried >= 3 * CASES + 2
    assert faults == []


@pytest.mark.parametrize("stored", splits(), ids=lambda stored: stored.kind)
def test_no_damage_to_a_split_is_silent_nameless_or_blamed_on_another(stored: Stored, stored_splits: Path) -> None:
    tried, faults = sweep(stored, stored_splits)
    assert tried >= 3 * CASES + 2
    assert faults == []


def checkpoints() -> list[Stored]:
    """The files of a run, read by going on with it; the log and what every inference reads besides."""

    def go_on(folder: Path) -> list[Any]:
        """What going on with the run and using its model read."""
        run, recipe = Folder(folder), small_recipe(folder.parent)
        checkpoint, step = find_checkpoint(run, recipe, TrainingData.of(recipe))
        assert checkpoint is not None
        check_log(run, checkpoint)
        state, model = load_state(checkpoint), SemanticSam.load(checkpoint.path)
        own = {name: parameter for name, parameter in model.named_parameters() if name.startswith(TRAINED)}
        sizes = {name: parameter.numel() for name, parameter in own.items()}
        found = [weight.sum().item() for weight in model.state_dict().values()]
        for quantity in (WEIGHT, *MOMENTS):
            into = {name: torch.zeros(size) for name, size in sizes.items()}
            wanted = [Wanted(name, 0, values) for name, values in into.items()]
            load_partitions(checkpoint, quantity, state.num_writers, sizes, wanted, state.files)
            found += [values.sum().item() for values in into.values()]
        return [step, state, found, list(read_log(run))]

    def exported(folder: Path) -> list[float]:
        model = SemanticSam.load(folder / "exported")
        return [weight.sum().item() for weight in model.state_dict().values()]

    last, before = "checkpoint-2", "checkpoint-1"
    pieces = ("weight-00000.safetensors", "exp_avg-00000.safetensors", "exp_avg_sq-00000.safetensors")
    return [
        *(Stored(name, f"{last}/{name}", f"{before}/{name}", other_bytes, go_on) for name in pieces),
        Stored("weights", f"{last}/model.safetensors", f"{before}/model.safetensors", other_bytes, go_on),
        Stored("settings", f"{last}/config.yaml", f"{last}/state.json", older_json_or_yaml, go_on),
        Stored("state", f"{last}/state.json", f"{before}/state.json", older_json, go_on, may_be_gone=True),
        Stored("log", "train_log.jsonl", f"{last}/config.yaml", other_bytes, go_on),
        Stored("exported weights", "exported/model.safetensors", f"{last}/model.safetensors", other_bytes, exported),
        Stored("exported settings", "exported/config.yaml", f"{last}/config.yaml", older_json_or_yaml, exported),
        Stored("exported digests", "exported/files.json", f"{last}/state.json", older_json, exported),
    ]


def older_json_or_yaml(data: bytes) -> bytes:
    return data.replace(b"hidden_dim", b"hiden_dim")


# With names frozen, what is trained of the small model.
TRAINED = ("backbone", "pixel_decoder", "prompt_encoder", "mask_decoder", "text_encoder")


def small_recipe(folder: Path) -> Recipe:
    """Two steps on painted shards, with a checkpoint after each."""
    values = {
        "data": {
            "root": str(folder / "shards"),
            "plan": {"stages": [{"weights": {"pascal_part": 1}}]},
            "sample": {"augmentation": {"crop_size": 32}, "prompts": {"num_prompts": 2}},
        },
        "model": {"preset": "debug"},
        "criterion": {"num_points": 16},
        "training": {
            "steps": 2,
            "global_batch": 2,
            "zero_stage": None,
            "precision": "fp32",
            "checkpoint_every": 1,
        },
    }
    return parse_config(Recipe, values, "test")


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_painted_shards(folder / "shards", 4, {"pascal_part": VOCABULARIES["pascal_part"]})
    recipe = small_recipe(folder)
    worker = Worker(0, 1, torch.device("cpu"))
    train(recipe, {}, RunFolder(folder / "run"), worker, "test", None)
    SemanticSam.untrained("debug").save(folder / "run" / "exported")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("stored", checkpoints(), ids=lambda stored: stored.kind)
def test_no_damage_to_a_run_is_silent_nameless_or_blamed_on_another(stored: Stored, stored_run: Path) -> None:
    tried, faults = sweep(stored, stored_run)
    assert tried >= 3 * CASES + 2
    assert faults == []


@pytest.mark.parametrize("config", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_damaged_yaml_is_refused_by_name_or_other_settings(config: Path, tmp_path: Path) -> None:
    """Of a person's own file nobody knows what it should say; but it ends no job without a word."""
    path, rng, data = tmp_path / "own.yaml", np.random.default_rng(0), config.read_bytes()
    for _ in range(3 * CASES):
        place, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
        for changed in (data[:place], data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]):
            path.write_bytes(changed)
            message = refusal(path)
            assert not message or str(path) in message


def refusal(path: Path) -> str:
    """Why a YAML is refused; empty where it is read."""
    try:
        load_config(dict, str(path))
    except ConfigError as error:
        return str(error)
    return ""
