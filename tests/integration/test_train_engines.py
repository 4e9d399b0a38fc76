"""Every engine updates, averages, saves and loads alike, and whatever it saves any other one goes on from.

Run as a module this file is one worker of a torch.distributed group: `python -m tests.integration.test_train_engines
<folder> <mode>[<<checkpoint>] ...`; a mode is `plain` or `zero0` to `zero3`, and begins anew or from a checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from semsam.storage import Folder
from semsam.training.attempt import RunFolder
from semsam.training.checkpoint import RunState, checkpoint_folder, load_weights
from semsam.training.checkpoint_writer import CheckpointWriter, Whole
from semsam.training.engine import Engine, Worker, make_engine
from semsam.training.optimizer import OptimizerSettings, set_lr
from semsam.training.partition_reading import Wanted, load_partitions
from semsam.training.partitions import EMA, MOMENTS, WEIGHT
from tests.integration.workers import end_worker, run_workers

STEPS, SAVED = 6, 3
BEGUN = {1: ("plain",), 2: ("plain", "zero0", "zero1", "zero2", "zero3")}
# (workers, engine) that goes on, and (workers, engine) that had saved.
RESUMED = {
    1: ("plain<2zero3", "zero1<2zero2", "zero3<2plain"),
    3: ("plain<2zero1", "zero0<1plain", "zero1<2zero3", "zero2<2zero1", "zero3<2zero2", "zero3<2zero0"),
}


class Odd(nn.Module):
    """Sizes that no number of workers divides, a part that learns nothing and one that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 13)
        self.norm = nn.LayerNorm(13)
        self.scale = nn.Parameter(torch.ones(1))
        self.last = nn.Linear(13, 1001)
        self.frozen = nn.Linear(13, 13).requires_grad_(False)
        self.unused = nn.Linear(13, 5)

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.norm(torch.tanh(self.first(inputs))) * self.scale
        loss = ((self.last(hidden + self.frozen(hidden)) - targets) ** 2).sum() / 100
        return loss, {"loss": loss.detach()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    for modes in (BEGUN, RESUMED):
        for world_size, names in modes.items():
            run_workers("tests.integration.test_train_engines", world_size, folder, (str(folder), *names))
    return folder


ALL = [(n, mode) for modes in (BEGUN, RESUMED) for n, names in modes.items() for mode in names]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("world_size", "mode"), ALL)
def test_every_engine_trains_and_goes_on_as_one_worker_does(results: Path, world_size: int, mode: str) -> None:
    expected, found = (json.loads((results / f"{name}.json").read_text()) for name in ("1plain", f"{world_size}{mode}"))
    first = SAVED if "<" in mode else 0
    assert found["losses"] == pytest.approx(expected["losses"][first:], rel=1e-5)
    assert found["norms"] == pytest.approx(expected["norms"][first:], rel=1e-5)
    assert not found["poisoned_norm"] < float("inf")
    assert found["changed_by_poison"] == []
    assert found["after_poison"] == pytest.approx(expected["after_poison"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "world_size_and_mode", ["2zero0", "2zero1", "2zero2", "2zero3", "3zero3<2zero2", "1plain<2zero3"]
)
def test_the_average_is_what_a_checkpoint_is_used_with(results: Path, world_size_and_mode: str) -> None:
    expected, found = (
        load_weights(checkpoint_folder(Folder(str(results / name)), STEPS)) for name in ("1plain", world_size_and_mode)
    )
    assert set(found) == set(Odd().state_dict())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def work(mode: str, folder: Path, worker: Worker) -> None:
    """Train in a mode and write what came out."""
    kind, _, source = mode.partition("<")
    name = f"{worker.world_size}{mode}"
    torch.manual_seed(0)
    module = Odd()
    shapes = {n: p.shape for n, p in module.named_parameters() if p.requires_grad}
    sizes = {n: shape.numel() for n, shape in shapes.items()}
    whole = Whole("", shapes, {n: t.clone() for n, t in module.state_dict().items() if n not in shapes})
    saved = checkpoint_folder(Folder(str(folder / source)), SAVED) if source else None
    if saved is not None:
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.fill_(float("nan"))
        wanted = [Wanted(n, 0, p.data.view(-1)) for n, p in module.named_parameters() if n in shapes]
        load_partitions(saved, WEIGHT, int(source[0]), sizes, wanted)
    settings = OptimizerSettings(lr=1e-2, clip_norm=0.5, schedule="constant", warmup_steps=0)
    engine = make_engine(module, settings, worker, None if kind == "plain" else int(kind[-1]), 12, 1, 0.99)
    if saved is not None:
        for quantity in (*MOMENTS, EMA):
            wanted = [Wanted(one.name, one.start, one.values[quantity]) for one in engine.partitions()]
            load_partitions(saved, quantity, int(source[0]), sizes, wanted)
        engine.set_num_updates(SAVED)
    writer = CheckpointWriter(
        RunFolder(folder / name), worker.rank, worker.world_size, 9, True, whole if worker.rank == 0 else None
    )
    found = train(engine, settings, worker, writer, SAVED if source else 0)
    found |= poison(engine, worker)
    found["after_poison"] = [update(engine, settings, worker, 0, 1.0), engine.step()]
    if worker.rank == 0:
        (folder / f"{name}.json").write_text(json.dumps(found))


def train(
    engine: Engine, settings: OptimizerSettings, worker: Worker, writer: CheckpointWriter, first: int
) -> dict[str, list[float]]:
    losses, norms = [], []
    for step in range(first, STEPS):
        losses.append(update(engine, settings, worker, step, 1.0))
        norms.append(engine.step())
        if step + 1 in (SAVED, STEPS):
            writer.save(engine.partitions(), RunState(step + 1, 0, worker.world_size, 0, 0, 0, "", {}, 0, {}))
    writer.finish()
    return {"losses": losses, "norms": norms}


def update(engine: Engine, settings: OptimizerSettings, worker: Worker, step: int, factor: float) -> float:
    """Forward and backward of this worker's share of a step's batch; the loss of all."""
    set_lr(engine.optimizer, step, STEPS, settings)
    generator = torch.Generator().manual_seed(step)
    inputs, targets = (torch.randn(12, n, generator=generator) for n in (7, 1001))
    own = slice(worker.rank, None, worker.world_size)
    loss, _ = engine.forward_backward(inputs[own] * factor, targets[own])
    return float(worker.sum(loss.double()))


def poison(engine: Engine, worker: Worker) -> dict[str, object]:
    """Make a step whose gradient is not finite, on the last worker; what of the partitions it changed."""
    before = [{q: v.clone() for q, v in one.values.items()} for one in engine.partitions()]
    update(engine, OptimizerSettings(), worker, 0, float("inf") if worker.rank == worker.world_size - 1 else 1.0)
    norm = engine.step()
    changed = [
        f"{quantity} of {one.name}"
        for one, values in zip(engine.partitions(), before, strict=True)
        for quantity, value in one.values.items()
        if not torch.equal(value, values[quantity])
    ]
    return {"poisoned_norm": norm, "changed_by_poison": changed}


def main() -> None:
    folder, *modes = sys.argv[1:]
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    for mode in modes:
        work(mode, Path(folder), Worker(rank, world_size, torch.device("cpu")))
    end_worker()


if __name__ == "__main__":
    main()
