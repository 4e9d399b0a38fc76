"""What turns a loss into an update: plain PyTorch, or DeepSpeed's ZeRO behind the same few methods.

Nothing outside this file knows deepspeed, which is imported only when it is asked for.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from semsam.training.optimizer import (
    OptimizerSettings,
    begin_state,
    make_optimizer,
    parameter_groups,
    set_num_updates,
    update_average,
)
from semsam.training.partitions import Partition, flat_partitions, split_partitions, whole_partitions

T = TypeVar("T")

_BUCKET = 2**24  # Elements to a message, about.
_NO_CLIPPING = 1e30  # DeepSpeed computes the norm only where it clips.


@dataclass(frozen=True)
class Worker:
    """One training process among `world_size`.  With more than one, torch.distributed is initialised."""

    rank: int
    world_size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def sum_each(self, tensors: Sequence[Tensor]) -> None:
        """The sum over all workers of each of the fp32 tensors, in place.

        Many at a time: one by one, small ones cost a message each, which on gloo took as long as the step itself.
        """
        if self.world_size == 1:
            return
        ends = itertools.accumulate(tensor.numel() for tensor in tensors)
        for _, bucket in itertools.groupby(zip(ends, tensors, strict=True), lambda one: one[0] // _BUCKET):
            some = [tensor for _, tensor in bucket]
            summed = self.sum(torch.cat([tensor.flatten() for tensor in some]))
            for tensor, part in zip(some, summed.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def broadcast(self, values: Tensor, source: int = 0) -> Tensor:
        """The values that the worker `source` has, in place."""
        if self.world_size > 1:
            dist.broadcast(values, source)
        return values

    @torch.no_grad()
    def broadcast_each(self, tensors: Sequence[Tensor]) -> None:
        """The first worker's values of each of the tensors, in place; many at a time, as in `sum_each`."""
        if self.world_size == 1:
            return
        by_type = sorted(tensors, key=lambda tensor: str(tensor.dtype))
        ends = itertools.accumulate(tensor.numel() for tensor in by_type)
        buckets = itertools.groupby(zip(ends, by_type, strict=True), lambda one: (str(one[1].dtype), one[0] // _BUCKET))
        for _, bucket in buckets:
            some = [tensor for _, tensor in bucket]
            # As bytes: not every backend sends every type.
            sent = torch.cat([tensor.flatten() for tensor in some])
            self.broadcast(sent.view(torch.uint8))
            for tensor, part in zip(some, sent.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def share(self, value: T) -> T:
        """The first worker's value, on all workers; it must pickle."""
        if self.world_size == 1:
            return value
        shared: list[Any] = [value]
        dist.broadcast_object_list(shared, 0)
        return cast(T, shared[0])

    def gather(self, value: str) -> list[str]:
        """The texts of all workers, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found


class Engine(Protocol):
    """Runs a module whose output is (loss, terms) on this worker's share of the global batch."""

    optimizer: torch.optim.Optimizer

    def forward_backward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of one accumulation batch, without gradient; gradients add up until `step`.

        Where the loss is not finite, they are not finite either.
        """
        ...

    def step(self) -> float:
        """Clip and update, after the last accumulation batch; returns the norm of the global batch's gradient.

        A norm that is not finite, the same on all workers, updates nothing.
        """
        ...

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The global batch's whole gradients, between `forward_backward` and `step`.  All workers must iterate."""
        ...

    def partitions(self) -> list[Partition]:
        """What lies on this worker of the trained parameters and of the optimizer's state, to save it or to fill it.

        The weights of a module that an engine was made for must be there before; filling changes the copy that
        updates are made to.
        """
        ...

    def set_num_updates(self, num_updates: int) -> None:
        """Go on after so many updates, once the partitions are filled."""
        ...


def make_engine(
    module: nn.Module,
    settings: OptimizerSettings,
    worker: Worker,
    zero_stage: int | None,
    micro_batch: int,
    accumulation: int,
    ema_decay: float | None = None,
) -> Engine:
    """The engine for a module in fp32 on the worker's device; `zero_stage` None is plain PyTorch.

    With `ema_decay` it keeps an average of the weights, as a third moment.
    """
    if zero_stage is None:
        return PlainEngine(module, settings, worker, ema_decay)
    return DeepSpeedEngine(module, settings, worker, zero_stage, micro_batch, accumulation, ema_decay)


class PlainEngine:
    """PyTorch alone: every worker has all weights, and gradients are summed over workers before the update."""

    def __init__(
        self, module: nn.Module, settings: OptimizerSettings, worker: Worker, ema_decay: float | None = None
    ) -> None:
        self.module = module
        self.optimizer: torch.optim.Optimizer = make_optimizer(parameter_groups(module, settings), settings)
        self._settings = settings
        self._worker = worker
        self._ema_decay = ema_decay
        self._is_reduced = False
        begin_state(self.optimizer, _updated_by(self.optimizer), ema_decay is not None)

    def forward_backward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.module(*inputs)
        _spoilt(loss).backward()
        self._is_reduced = False
        return loss.detach(), terms

    def step(self) -> float:
        self._reduce()
        norm = _clip(self.module, self._settings)
        if math.isfinite(norm):
            self.optimizer.step()
            if self._ema_decay is not None:
                update_average(self.optimizer, self._ema_decay)
        self.optimizer.zero_grad()
        return norm

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        self._reduce()
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                yield name, cast(Tensor, parameter.grad)

    def partitions(self) -> list[Partition]:
        return list(whole_partitions(self.module, self.optimizer, self._worker.rank, self._worker.world_size))

    def set_num_updates(self, num_updates: int) -> None:
        set_num_updates(self.optimizer, num_updates)

    def _reduce(self) -> None:
        if self._is_reduced:
            return
        gradients = []
        for parameter in _updated_by(self.optimizer):
            if parameter.grad is None:  # An update of zeros, as a sharded optimizer makes it.
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._worker.sum_each(gradients)
        self._is_reduced = True


class DeepSpeedEngine:
    """DeepSpeed with ZeRO stage 0 to 3 and torch's own AdamW, on CUDA or CPU.

    Stage 1 shards the optimizer's state, 2 the gradients too, 3 the weights too.  DeepSpeed's own bf16 mode stays off:
    it would round the weights, where the module's autocast rounds what is computed from them.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: OptimizerSettings,
        worker: Worker,
        stage: int,
        micro_batch: int,
        accumulation: int,
        ema_decay: float | None = None,
    ) -> None:
        deepspeed = _import_deepspeed(worker.device)
        self._settings = settings
        self._worker = worker
        self._ema_decay = ema_decay
        self._stage = stage
        # DeepSpeed averages over workers and accumulation steps; our losses are parts of a sum.
        self._scale = worker.world_size * accumulation
        clip = settings.clip_norm or _NO_CLIPPING
        # One buffer for the gradients and a reduction of each worker's piece alone save a GPU memory and traffic; on a
        # CPU they are copies, and a tenth of a small model's step.
        is_cuda = worker.device.type == "cuda"
        zero = {"stage": stage, "contiguous_gradients": is_cuda, "reduce_scatter": is_cuda}
        self.optimizer: torch.optim.Optimizer = make_optimizer(parameter_groups(module, settings), settings)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation,
                # At stage 0 DeepSpeed clips but does not tell the norm: that is done in `step` instead.
                "gradient_clipping": clip if stage else 0.0,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 2**31,
            },
        )
        flat = self._engine.optimizer.fp32_partitioned_groups_flat if stage == 3 else _updated_by(self.optimizer)
        begin_state(self.optimizer, flat, ema_decay is not None)

    def forward_backward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self._engine(*inputs)
        self._engine.backward(_spoilt(loss) * self._scale)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # Counts the batch; updates only after the last one.
        return loss.detach(), terms

    def step(self) -> float:
        if self._stage:
            self._engine.step()  # Of itself updates nothing where the norm is not finite, and says infinity.
            norm = float(self._engine.get_global_grad_norm())
        else:
            norm = _clip(self._engine.module, self._settings)
            if math.isfinite(norm):
                self._engine.step()
            else:  # As if it had.
                self._engine.zero_grad()
                self._engine.micro_steps += 1
        if math.isfinite(norm) and self._ema_decay is not None:
            update_average(self.optimizer, self._ema_decay)
        return norm

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                yield name, safe_get_full_grad(parameter)

    def partitions(self) -> list[Partition]:
        module, worker = self._engine.module, self._worker
        if self._stage == 3:
            return list(split_partitions(module, self._engine.optimizer, worker.rank))
        if self._stage:
            return list(flat_partitions(module, self._engine.optimizer))
        return list(whole_partitions(module, self.optimizer, worker.rank, worker.world_size))

    def set_num_updates(self, num_updates: int) -> None:
        set_num_updates(self.optimizer, num_updates)


def _spoilt(loss: Tensor) -> Tensor:
    """The loss, whose gradient is nowhere finite if it is not: a term may hide from its gradient."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def _updated_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the optimizer updates: parameters, or flat pieces of many of them."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def _clip(module: nn.Module, settings: OptimizerSettings) -> float:
    """Clip the gradients; their norm before that."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return float(nn.utils.clip_grad_norm_(parameters, settings.clip_norm or _NO_CLIPPING))


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, made ready for the device."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    if device.type == "cpu":
        # It would compile a shared-memory transport for over a minute; gloo carries what a CPU run has to say.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return deepspeed
