"""The steps of one worker."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import yaml
from torch import Tensor

from semsam.data.reader import Reader, SampleError, sample_key
from semsam.data.sample import Batch, Sample
from semsam.losses.targets import NORMALIZERS
from semsam.training.checkpoint_writer import CheckpointWriter
from semsam.training.engine import Engine, Worker
from semsam.training.faults import TrainingFault, noting, tell
from semsam.training.notices import Notices, Wish
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
    notices: Notices = field(default_factory=Notices)
    skipped_steps: list[int] = field(default_factory=list)  # Of the run so far.
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
            skip=training.skip_samples,
        )
        with reader:
            for index in range(first, training.steps):
                self.on_step(index)
                notice = self.notices.look()
                if notice and self.worker.rank == 0:
                    print(f"{notice}; a checkpoint is written after step {index + 1}", flush=True)
                started = time.perf_counter()
                batches, normalizers, left_out = self._next(reader)
                lr = set_lr(self.engine.optimizer, index, training.steps, self.recipe.optimizer)
                terms, norm = self._update(batches, normalizers)
                if self.recorder is not None and index not in self.skipped_steps:
                    seconds = time.perf_counter() - started
                    values = {
                        "lr": lr,
                        "grad_norm": norm,
                        "data_wait": reader.data_wait,
                        "seconds": seconds,
                        "images_per_second": training.global_batch / seconds,
                        "masks_left_out": left_out,
                        "skipped_steps": float(len(self.skipped_steps)),
                        "workers": float(self.worker.world_size),
                        "memory_gb": peak_memory_gb(self.worker.device),
                    }
                    with noting(self.faults):
                        self.recorder.add(index, terms | values)
                if notice or self._is_kept(index + 1):
                    self.save(index + 1)

    def save(self, step: int) -> None:
        """Begin to write the checkpoint after `step` steps."""
        self._agree_on_pieces()
        state = self.training_data.run_state(self.recipe, step, self.worker.world_size, tuple(self.skipped_steps))
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
        """Whether a checkpoint is due after `step` steps."""
        training = self.recipe.training
        every = (training.checkpoint_every, training.keep_every or training.steps)
        return step == training.steps or any(step % one == 0 for one in every)

    def _next(self, reader: Reader) -> tuple[list[Batch], Tensor, float]:
        """This worker's batches of the next step; the normalisers and the masks left out of all workers' together."""
        batches: list[Batch] = []
        unreadable = ""
        counts = np.zeros(len(NORMALIZERS) + 3)
        with noting(self.faults):
            self.writer.check()
            try:
                batches = next(reader)
            except SampleError as error:
                unreadable = error.key
                raise
            counts[:-3] = sum(self.step.count_targets(batch) for batch in batches)
            counts[-3] = sum(sample.masks_left_out for batch in batches for sample in batch.samples)
        counts[-2] = self.notices.wish() if self.worker.rank == 0 else Wish.NOTHING
        counts[-1] = len(self.faults)
        summed = self.worker.sum(torch.from_numpy(counts).to(self.worker.device))
        if summed[-1].item():
            tell(self.worker, self.faults, self._how_to_skip([unreadable] if unreadable else []))
        self.notices.agree(Wish(int(summed[-2].item())))
        return batches, summed[:-3].float(), summed[-3].item()

    def _update(self, batches: list[Batch], normalizers: Tensor) -> tuple[dict[str, float], float]:
        """One update; returns the global batch's loss and terms, and its gradient's norm.

        Where any is not finite nothing is updated: the step is added to those skipped, or the run ended.
        """
        total: Tensor | None = None
        names: list[str] = []
        for batch in batches:
            inputs = self.step.to_device(batch, self.worker.device)
            loss, terms = self.engine.forward_backward(inputs, normalizers)
            names = ["loss", *terms]
            values = torch.stack([loss.float(), *(term.float() for term in terms.values())]).double()
            total = values if total is None else total + values
        assert total is not None
        own = dict(zip(names, total.tolist(), strict=True))
        found = dict(zip(names, self.worker.sum(total).tolist(), strict=True))
        norm = self.engine.step()
        if not math.isfinite(found["loss"]) or not math.isfinite(norm):
            self._skip(batches, normalizers, own, found["loss"])
        return found, norm

    def _skip(self, batches: list[Batch], normalizers: Tensor, own: dict[str, float], loss: float) -> None:
        """Leave a step out, or end the run with what it would take to go on; all workers call this."""
        limit = self.recipe.training.max_skipped_steps
        has_room = len(self.skipped_steps) < limit
        suspects = [sample for batch in batches for sample in batch.samples if sample.index >= 0]
        if math.isfinite(loss):
            # Whose it was cannot be told: by now the gradients of all workers are one.
            reason, mine, culprits = "the gradient's norm is not finite", f"worker {self.worker.rank}: ", []
        else:
            odd = [name for name, value in own.items() if not math.isfinite(value)]
            reason, mine = "the loss is not finite", f"{', '.join(odd)} of "
            culprits = [] if has_room else self._culprits(batches, normalizers)
            suspects = culprits or suspects if odd else []
        keys = [sample_key(sample.dataset, sample.sample_id) for sample in suspects]
        told = "; ".join(text for text in self.worker.gather(mine + ", ".join(keys) if keys else "") if text)
        said = f"step {batches[0].step}: {reason}; nothing was updated: {told}"
        if not has_room:
            advice = self._how_to_skip(keys if culprits else [])
            room = f"training.max_skipped_steps={limit + 1}"
            raise TrainingFault(f"{said}{advice}\nto go on without this step, add {room} to the same command")
        self.skipped_steps.append(batches[0].step)
        if self.worker.rank == 0:
            count = f"{len(self.skipped_steps)} of at most {limit} (training.max_skipped_steps)"
            print(f"{said}; skipped, {count}", flush=True)

    @torch.no_grad()
    def _culprits(self, batches: list[Batch], normalizers: Tensor) -> list[Sample]:
        """The samples whose loss, each alone, is not finite; none if all of the step are so: then it is the model.

        All workers call this: their batches have one size.
        """
        found, num_samples = [], 0
        for batch in batches:
            for place, sample in enumerate(batch.samples):
                alone = Batch.of([sample], batch.step, batch.images[place : place + 1])
                loss, _ = self.step(self.step.to_device(alone, self.worker.device), normalizers)
                num_samples += sample.index >= 0
                if sample.index >= 0 and not loss.isfinite():
                    found.append(sample)
        counts = torch.tensor([len(found), num_samples], device=self.worker.device)
        num_found, num_of_all = self.worker.sum(counts).tolist()
        return [] if num_found == num_of_all > 1 else found

    def _how_to_skip(self, keys: list[str]) -> str:
        """What to add to the command line to leave out samples, of which each worker names its own; all call this."""
        found = [key for text in self.worker.gather("\n".join(keys)) for key in text.splitlines()]
        if not found:
            return ""
        skipped = list(dict.fromkeys([*self.recipe.training.skip_samples, *found]))
        listed = yaml.safe_dump(skipped, default_flow_style=True, width=math.inf, allow_unicode=True).strip()
        return f"\nto go on without it, add {shlex.quote(f'training.skip_samples={listed}')} to the same command"
