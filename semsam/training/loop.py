"""The training of one worker, from the latest checkpoint to the last step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor

from semsam.config import config_values
from semsam.data.plan import Plan
from semsam.data.reader import Reader
from semsam.data.sample import Batch
from semsam.data.schema import SCHEMA_VERSION
from semsam.data.shards import Split
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.criterion import Criterion
from semsam.losses.targets import NORMALIZERS, count_targets
from semsam.model.semantic_sam import SemanticSam
from semsam.tracking import Tracker, TrackingSettings
from semsam.training.checkpoint import (
    RunState,
    checkpoint_folder,
    latest_checkpoint,
    load_state,
    load_weights,
    remove_incomplete,
)
from semsam.training.checkpoint_writer import CheckpointWriter, Whole
from semsam.training.engine import Engine, Worker, make_engine
from semsam.training.folder import Folder
from semsam.training.fragments import WEIGHT, Fragment, quantities
from semsam.training.optimizer import set_lr
from semsam.training.pieces import Wanted, load_pieces
from semsam.training.recipe import Recipe
from semsam.training.same_run import check_same_run
from semsam.training.step import DeviceBatch, TrainingStep
from semsam.training.train_log import TrainLog

RUN_ID_FILE = "mlflow_run_id"
_PREFIX = "model."  # Of the model's parameters in a `TrainingStep`.


class TrainingFault(Exception):  # noqa: N818
    """What makes going on useless, and trying again too; all workers raise it together."""


@dataclass(frozen=True)
class Material:
    """What a recipe trains on."""

    splits: dict[str, Split]
    plan: Plan
    vocabulary: JointVocabulary

    @staticmethod
    def of(recipe: Recipe) -> Material:
        """Open every dataset of the recipe's plan; `ValueError` for one that is not prepared."""
        data, training = recipe.data, recipe.training
        splits = {name: Split(f"{data.root}/{name}/{data.split}") for name in data.datasets()}
        sizes = {name: split.rows_of_shard for name, split in splits.items()}
        plan = Plan(training.seed, sizes, data.plan, training.global_batch, training.steps)
        vocabularies = {name: split.manifest.vocabulary for name, split in splits.items()}
        return Material(splits, plan, JointVocabulary.of(vocabularies))

    def run_state(self, recipe: Recipe, step: int, num_workers: int) -> RunState:
        """What a checkpoint after `step` updates says of its run."""
        return RunState(
            step=step,
            cursor=step * recipe.training.global_batch,
            num_pieces=num_workers,
            seed=recipe.training.seed,
            global_batch=recipe.training.global_batch,
            num_steps=recipe.training.steps,
            vocabulary_digest=self.vocabulary.digest(),
            manifest_digests={name: split.manifest.digest() for name, split in self.splits.items()},
            schema_version=SCHEMA_VERSION,
            versions={name: _version(name) for name in ("semsam", "torch", "numpy", "deepspeed")},
        )


def find_checkpoint(run: Folder, recipe: Recipe, material: Material) -> tuple[Folder | None, int]:
    """The checkpoint to go on from and its step; `ValueError` if it belongs to another training."""
    folder = latest_checkpoint(run)
    if folder is None:
        return None, 0
    state = load_state(folder)
    check_same_run(folder, state, material.run_state(recipe, state.step, state.num_pieces), recipe)
    return folder, state.step


def make_step(recipe: Recipe, vocabulary: JointVocabulary) -> TrainingStep:
    """The training step with random weights that depend on the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        model = SemanticSam(recipe.model.resolve())
    training = recipe.training
    return TrainingStep(model, Criterion(recipe.criterion), vocabulary, training.seed, training.precision)


def train(
    recipe: Recipe, config: str, run: Folder, worker: Worker, run_name: str, tracking: TrackingSettings | None
) -> None:
    """Train until the recipe's last step; all workers call this with the same arguments.

    `config` is stored with every checkpoint, and the first worker reports to `tracking`.  Raises `TrainingFault` on all
    workers for a sample that cannot be read, and for a loss or gradient that is not finite.
    """
    material = Material.of(recipe)
    first = _first_step(run, recipe, material, worker)
    checkpoint = checkpoint_folder(run, first) if first else None
    step = make_step(recipe, material.vocabulary)
    shapes = {name: p.shape for name, p in step.model.named_parameters() if p.requires_grad}
    if checkpoint is not None:
        _load_weights(step.model, checkpoint, shapes)
    whole = None
    if worker.rank == 0:
        rest = {name: tensor.clone() for name, tensor in step.model.state_dict().items() if name not in shapes}
        whole = Whole(config, shapes, rest)
    step.to(worker.device)
    training = recipe.training
    with_average = training.ema_decay is not None
    micro_batch = -(-training.global_batch // (worker.world_size * training.accumulation))
    engine = make_engine(
        step,
        recipe.optimizer,
        worker,
        training.zero_stage,
        micro_batch,
        training.accumulation,
        training.ema_decay,
    )
    if checkpoint is not None:
        _load_moments(engine, checkpoint, shapes, with_average)
        if worker.rank == 0:
            print(f"going on after step {first} from {checkpoint.uri}", flush=True)
    recorder = None
    if worker.rank == 0:
        recorder = Recorder(recipe, material, run, first, run_name, tracking)
    writer = CheckpointWriter(run, worker.rank, worker.world_size, training.keep_last, with_average, whole)
    try:
        _to_the_end(Loop(recipe, material, worker, step, engine, writer, recorder), first)
    except BaseException:
        if recorder is not None:
            recorder.close(failed=True)
        raise
    if recorder is not None:
        recorder.close(failed=False)


def _first_step(run: Folder, recipe: Recipe, material: Material, worker: Worker) -> int:
    """The step to go on with, which all workers agree on."""
    _, found = find_checkpoint(run, recipe, material)
    first = int(worker.gather(str(found))[0])
    if worker.rank == 0:
        remove_incomplete(run)
    worker.barrier()
    return first


def _to_the_end(loop: Loop, first: int) -> None:
    try:
        loop.run(first)
    except TrainingFault:
        loop.writer.finish()  # All workers are here, so the checkpoint before the fault becomes complete.
        raise
    except BaseException:
        loop.writer.abandon()
        raise
    loop.writer.finish()


@dataclass(frozen=True)
class Loop:
    """The steps of one worker, with everything that they need."""

    recipe: Recipe
    material: Material
    worker: Worker
    step: TrainingStep
    engine: Engine
    writer: CheckpointWriter
    recorder: Recorder | None

    def run(self, first: int) -> None:
        """Steps from `first` on."""
        training = self.recipe.training
        reader = Reader(
            self.material.plan,
            self.material.splits,
            self.recipe.data.sample,
            training.seed,
            self.worker.rank,
            self.worker.world_size,
            training.accumulation,
            first,
            self.recipe.data.reader,
        )
        with reader:
            for index in range(first, training.steps):
                started = time.perf_counter()
                self.writer.check()
                batches, normalizers = self._next(reader)
                lr = set_lr(self.engine.optimizer, index, training.steps, self.recipe.optimizer)
                terms, norm = self._update(batches, normalizers)
                if self.recorder is not None:
                    values = {"lr": lr, "grad_norm": norm, "data_wait": reader.data_wait}
                    self.recorder.add(index, terms | values | {"seconds": time.perf_counter() - started})
                if (index + 1) % training.checkpoint_every == 0 or index + 1 == training.steps:
                    self.save(index + 1)

    def save(self, step: int) -> None:
        """Begin to write the checkpoint after `step` updates."""
        if self.recorder is not None:
            self.recorder.flush()  # Before the checkpoint: what it says was done must be in the log.
        self.writer.save(_of_model(self.engine), self.material.run_state(self.recipe, step, self.worker.world_size))

    def _next(self, reader: Reader) -> tuple[list[Batch], Tensor]:
        """This worker's batches of the next step, and the normalisers of all workers' together."""
        fault, batches = "", []
        counts = np.zeros(len(NORMALIZERS) + 1)
        many_to_one = self.recipe.criterion.click_matching == "many_to_one"
        try:
            batches = next(reader)
            counts[:-1] = sum(count_targets(batch, many_to_one) for batch in batches)
        except ValueError as error:
            fault, counts[-1] = str(error), 1
        summed = self.worker.sum(torch.from_numpy(counts).to(self.worker.device))
        if summed[-1].item():
            raise TrainingFault("\n".join(text for text in self.worker.gather(fault) if text))
        return batches, summed[:-1].float()

    def _update(self, batches: list[Batch], normalizers: Tensor) -> tuple[dict[str, float], float]:
        """One update; returns the global batch's loss and terms, and its gradient's norm."""
        total: Tensor | None = None
        names: list[str] = []
        for batch in batches:
            inputs = DeviceBatch.of(batch, self.material.vocabulary, self.step.seed, self.worker.device)
            loss, terms = self.engine.forward_backward(inputs, normalizers)
            names = ["loss", *terms]
            values = torch.stack([loss.float(), *(term.float() for term in terms.values())]).double()
            total = values if total is None else total + values
        assert total is not None
        own = total.clone()
        found = dict(zip(names, self.worker.sum(total).tolist(), strict=True))
        # Before the update, so that the weights at hand are those that gave this loss.
        if not math.isfinite(found["loss"]):
            self._refuse_loss(batches, own, names)
        norm = self.engine.step()
        if not math.isfinite(norm):
            # Whose it was cannot be told: by now the gradients of all workers are one.
            self._refuse(batches, "the gradient's norm is not finite", f"worker {self.worker.rank}: {_names(batches)}")
        return found, norm

    def _refuse_loss(self, batches: list[Batch], own: Tensor, names: list[str]) -> None:
        mine = ""
        if not torch.isfinite(own).all():
            terms = [name for name, value in zip(names, own.tolist(), strict=True) if not math.isfinite(value)]
            mine = f"{', '.join(terms)} of {_names(batches)}"
        self._refuse(batches, "the loss is not finite", mine)

    def _refuse(self, batches: list[Batch], reason: str, mine: str) -> None:
        found = "; ".join(text for text in self.worker.gather(mine) if text)
        raise TrainingFault(f"step {batches[0].step}: {reason}; nothing was updated: {found}")


class Recorder:
    """The first worker's account of the run: the log, a line of progress now and then, and MLflow."""

    def __init__(
        self,
        recipe: Recipe,
        material: Material,
        run: Folder,
        first: int,
        run_name: str,
        tracking: TrackingSettings | None,
    ) -> None:
        self._training = recipe.training
        self._plan = material.plan
        self._log = TrainLog(run, first)
        self._interval: list[dict[str, float]] = []
        self._tracker: Tracker | None = None
        if tracking is not None and tracking.enabled:
            run_id = run.read(RUN_ID_FILE).decode() if run.exists(RUN_ID_FILE) else None
            self._tracker = Tracker(tracking, run_name, run_id)
            if run_id is None:
                run.write(RUN_ID_FILE, self._tracker.run_id.encode())
                self._tracker.log_params(config_values(recipe))
                self._tracker.log_inputs([split.manifest for split in material.splits.values()], context="training")

    def add(self, step: int, values: dict[str, float]) -> None:
        """Record a step; `values` has the loss, its terms and what else is to be said as numbers."""
        seen = self._plan.samples_seen(step + 1)
        self._log.add({"step": step, **values, "samples_seen": seen})
        self._interval.append(values)
        done = step + 1
        if done % self._training.log_every and done != self._training.steps:
            return
        mean = {name: float(np.mean([one[name] for one in self._interval])) for name in values}
        self._interval = []
        rate = 1 / mean["seconds"]
        print(
            f"step {done}/{self._training.steps}: loss {mean['loss']:.4f}, {rate:.2f} steps/s, "
            f"{rate * self._training.global_batch:.1f} images/s, {(self._training.steps - done) / rate:.0f} s left",
            flush=True,
        )
        if self._tracker is not None:
            numbers = {f"train/{name}": value for name, value in mean.items()}
            self._tracker.log_metrics(numbers | {f"samples_seen/{k}": float(v) for k, v in seen.items()}, done)

    def flush(self) -> None:
        """Store what was recorded."""
        self._log.flush()

    def close(self, failed: bool) -> None:
        """End the account."""
        self._log.flush()
        if self._tracker is not None:
            error = RuntimeError() if failed else None
            self._tracker.__exit__(type(error) if error else None, error, None)


def _load_weights(model: SemanticSam, checkpoint: Folder, shapes: Mapping[str, torch.Size]) -> None:
    """Give a model the weights that a checkpoint's training goes on from."""
    model.load_weights(load_weights(checkpoint), checkpoint.uri)  # Those to use: all names, but maybe averages.
    trained = {name: parameter for name, parameter in model.named_parameters() if name in shapes}
    wanted = [Wanted(name, 0, parameter.data.view(-1)) for name, parameter in trained.items()]
    load_pieces(checkpoint, WEIGHT, load_state(checkpoint).num_pieces, _sizes(shapes), wanted)


def _load_moments(engine: Engine, checkpoint: Folder, shapes: Mapping[str, torch.Size], with_average: bool) -> None:
    """Fill an optimizer's state, for a module that has the weights."""
    state, fragments = load_state(checkpoint), _of_model(engine)
    for quantity in quantities(with_average):
        if quantity == WEIGHT:
            continue
        wanted = [Wanted(one.name, one.start, one.values[quantity]) for one in fragments]
        load_pieces(checkpoint, quantity, state.num_pieces, _sizes(shapes), wanted)
    engine.set_num_updates(state.step)


def _sizes(shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    return {name: shape.numel() for name, shape in shapes.items()}


def _of_model(engine: Engine) -> list[Fragment]:
    return [dataclasses.replace(one, name=one.name.removeprefix(_PREFIX)) for one in engine.fragments()]


def _names(batches: list[Batch]) -> str:
    return ", ".join(f"{s.dataset} {s.sample_id}" for batch in batches for s in batch.samples if s.index >= 0)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
