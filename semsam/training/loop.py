"""The steps of one worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from semsam.data.reader import Reader
from semsam.data.sample import Batch
from semsam.losses.targets import NORMALIZERS
from semsam.training.checkpoint_writer import CheckpointWriter
from semsam.training.engine import Engine, Worker
from semsam.training.faults import TrainingFault, noting, tell
from semsam.training.optimizer import set_lr
from semsam.training.recipe import Recipe
from semsam.training.recorder import Recorder, peak_memory_gb
from semsam.training.step import TrainingStep, model_partitions
from semsam.training.training_data import TrainingData


@dataclass(frozen=True)
class Loop:
    """The steps of one worker, with everything that they need."""

    recipe: Recipe
    training_data: TrainingData
    worker: Worker
    step: TrainingStep
    engine: Engine
    writer: CheckpointWriter
    recorder: Recorder | None
    on_step: Callable[[int], None] = lambda step: None
    faults: list[str] = field(default_factory=list)  # Of this worker, until all workers are told.

    def run(self, first: int) -> None:
        """Steps from `first` on."""
        training = self.recipe.training
        reader = Reader(
            self.training_data.plan,
            self.training_data.splits,
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
                self.on_step(index)
                started = time.perf_counter()
                batches, normalizers, left_out = self._next(reader)
                lr = set_lr(self.engine.optimizer, index, training.steps, self.recipe.optimizer)
                terms, norm = self._update(batches, normalizers)
                if self.recorder is not None:
                    seconds = time.perf_counter() - started
                    values = {
                        "lr": lr,
                        "grad_norm": norm,
                        "data_wait": reader.data_wait,
                        "seconds": seconds,
                        "images_per_second": training.global_batch / seconds,
                        "masks_left_out": left_out,
                        "memory_gb": peak_memory_gb(self.worker.device),
                    }
                    with noting(self.faults):
                        self.recorder.add(index, terms | values)
                if self._is_kept(index + 1):
                    self.save(index + 1)

    def save(self, step: int) -> None:
        """Begin to write the checkpoint after `step` updates."""
        self._agree_on_pieces()
        state = self.training_data.run_state(self.recipe, step, self.worker.world_size)
        with noting(self.faults):
            if self.recorder is not None:  # Before the checkpoint: what it says was done must be in the log.
                state = replace(state, log=self.recorder.flush())
            self.writer.save(model_partitions(self.engine), state)

    def finish(self) -> None:
        """Wait until the checkpoint in work is complete."""
        self._agree_on_pieces()
        with noting(self.faults):
            self.writer.finish()
        if self.faults:  # The first worker's alone: the others are done.
            raise TrainingFault("\n".join(self.faults))

    def _agree_on_pieces(self) -> None:
        """Know that all workers have written their part of the checkpoint in work, or end: it is waited for next."""
        with noting(self.faults):
            self.writer.wait_for_pieces()
        tell(self.worker, self.faults)

    def _is_kept(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates."""
        training = self.recipe.training
        every = (training.checkpoint_every, training.keep_every or training.steps)
        return step == training.steps or any(step % one == 0 for one in every)

    def _next(self, reader: Reader) -> tuple[list[Batch], Tensor, float]:
        """This worker's batches of the next step; the normalisers and the masks left out of all workers' together."""
        batches: list[Batch] = []
        counts = np.zeros(len(NORMALIZERS) + 2)
        with noting(self.faults):
            self.writer.check()
            batches = next(reader)
            counts[:-2] = sum(self.step.count_targets(batch) for batch in batches)
            counts[-2] = sum(sample.masks_left_out for batch in batches for sample in batch.samples)
        counts[-1] = len(self.faults)
        summed = self.worker.sum(torch.from_numpy(counts).to(self.worker.device))
        if summed[-1].item():
            tell(self.worker, self.faults)
        return batches, summed[:-2].float(), summed[-2].item()

    def _update(self, batches: list[Batch], normalizers: Tensor) -> tuple[dict[str, float], float]:
        """One update; returns the global batch's loss and terms, and its gradient's norm."""
        total: Tensor | None = None
        names: list[str] = []
        for batch in batches:
            inputs = self.step.to_device(batch, self.worker.device)
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


def _names(batches: list[Batch]) -> str:
    return ", ".join(f"{s.dataset} {s.sample_id}" for batch in batches for s in batch.samples if s.index >= 0)
