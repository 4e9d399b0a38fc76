"""The training of one worker, from the latest checkpoint to the last step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
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
    Folder,
    RunState,
    checkpoint_folder,
    keep_last,
    latest_checkpoint,
    load_moments,
    load_state,
    load_weights,
    save_checkpoint,
)
from semsam.training.engine import Engine, ParameterState, Worker, make_engine
from semsam.training.optimizer import set_lr
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

    def run_state(self, recipe: Recipe, step: int) -> RunState:
        """What a checkpoint after `step` updates says of its run."""
        return RunState(
            step=step,
            cursor=step * recipe.training.global_batch,
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
    check_same_run(folder, state, material.run_state(recipe, state.step), recipe)
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
    checkpoint, first = find_checkpoint(run, recipe, material)
    step = make_step(recipe, material.vocabulary)
    if checkpoint is not None:
        step.model.load_weights(load_weights(checkpoint), checkpoint.uri)
    step.to(worker.device)
    training = recipe.training
    micro_batch = -(-training.global_batch // (worker.world_size * training.accumulation))
    engine = make_engine(step, recipe.optimizer, worker, training.zero_stage, micro_batch, training.accumulation)
    if checkpoint is not None:
        _restore(engine, checkpoint, first)
        if worker.rank == 0:
            print(f"going on after step {first} from {checkpoint.uri}", flush=True)
    recorder = None
    if worker.rank == 0:
        recorder = Recorder(recipe, material, run, first, run_name, tracking)
    try:
        Loop(recipe, config, material, run, worker, step, engine, recorder).run(first)
    except BaseException:
        if recorder is not None:
            recorder.close(failed=True)
        raise
    if recorder is not None:
        recorder.close(failed=False)


@dataclass(frozen=True)
class Loop:
    """The steps of one worker, with everything that they need."""

    recipe: Recipe
    config: str
    material: Material
    run_folder: Folder
    worker: Worker
    step: TrainingStep
    engine: Engine
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
                batches, normalizers = self._next(reader)
                lr = set_lr(self.engine.optimizer, index, training.steps, self.recipe.optimizer)
                terms, norm = self._update(batches, normalizers)
                if self.recorder is not None:
                    values = {"lr": lr, "grad_norm": norm, "data_wait": reader.data_wait}
                    self.recorder.add(index, terms | values | {"seconds": time.perf_counter() - started})
                if (index + 1) % training.checkpoint_every == 0 or index + 1 == training.steps:
                    self.save(index + 1)

    def save(self, step: int) -> None:
        """Write the checkpoint after `step` updates."""
        kept = dict(self.step.model.named_parameters())
        buffers = {name: tensor for name, tensor in self.step.model.state_dict().items() if name not in kept}
        folder = checkpoint_folder(self.run_folder, step) if self.recorder is not None else None
        state = self.material.run_state(self.recipe, step)
        save_checkpoint(folder, _without_prefix(self.engine.state()), buffers, self.config, state)
        if self.recorder is not None:
            self.recorder.flush()
            keep_last(self.run_folder, self.recipe.training.keep_last)
        self.worker.barrier()

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


def _restore(engine: Engine, checkpoint: Folder, num_updates: int) -> None:
    """Set fp32 weights and moments of a checkpoint, whose weights the module already has."""
    weights = load_weights(checkpoint)
    names = [state.name for state in _without_prefix(engine.state())]
    moments = load_moments(checkpoint, {name: weights[name].shape for name in names})
    states = (ParameterState(f"{_PREFIX}{name}", weights[name], moments.get(name, {})) for name in names)
    engine.load(states, num_updates if moments else 0)


def _without_prefix(states: Iterator[ParameterState]) -> Iterator[ParameterState]:
    return (dataclasses.replace(state, name=state.name.removeprefix(_PREFIX)) for state in states)


def _names(batches: list[Batch]) -> str:
    return ", ".join(f"{s.dataset} {s.sample_id}" for batch in batches for s in batch.samples if s.index >= 0)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
