"""What turns a loss into an update: plain PyTorch, or DeepSpeed's ZeRO behind the same few methods.

Nothing outside this file knows deepspeed, which is imported only when it is asked for.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from semsam.training.optimizer import OptimizerSettings, make_optimizer, parameter_groups

MOMENTS = ("exp_avg", "exp_avg_sq")
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

    def gather(self, value: str) -> list[str]:
        """The texts of all workers, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world_size > 1:
            dist.barrier()


@dataclass(frozen=True)
class ParameterState:
    """A parameter's whole weight in fp32 and AdamW's moments; no moments before the first update."""

    name: str
    weight: Tensor
    moments: dict[str, Tensor]


class Engine(Protocol):
    """Runs a module whose output is (loss, terms) on this worker's share of the global batch."""

    optimizer: torch.optim.Optimizer

    def forward_backward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of one accumulation batch, without gradient; gradients add up until `step`."""
        ...

    def step(self) -> float:
        """Clip and update, after the last accumulation batch; returns the norm of the global batch's gradient.

        A norm that is not finite, the same on all workers, updates nothing.
        """
        ...

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The global batch's whole gradients, between `forward_backward` and `step`.  All workers must iterate."""
        ...

    def state(self) -> Iterator[ParameterState]:
        """The state of every parameter, by name.  All workers must iterate, and together."""
        ...

    def load(self, states: Iterator[ParameterState], num_updates: int) -> None:
        """Go on from `states`, in the order of `state`, after `num_updates` updates.

        The module was given their weights before this engine was made.
        """
        ...


def make_engine(
    module: nn.Module,
    settings: OptimizerSettings,
    worker: Worker,
    zero_stage: int | None,
    micro_batch: int,
    accumulation: int,
) -> Engine:
    """The engine for a module in fp32 on the worker's device; `zero_stage` None is plain PyTorch."""
    if zero_stage is None:
        return PlainEngine(module, settings, worker)
    return DeepSpeedEngine(module, settings, worker, zero_stage, micro_batch, accumulation)


class PlainEngine:
    """PyTorch alone: every worker has all weights, and gradients are summed over workers before the update."""

    def __init__(self, module: nn.Module, settings: OptimizerSettings, worker: Worker) -> None:
        self.module = module
        self.optimizer: torch.optim.Optimizer = make_optimizer(parameter_groups(module, settings), settings)
        self._settings = settings
        self._worker = worker
        self._is_reduced = False

    def forward_backward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.module(*inputs)
        loss.backward()
        self._is_reduced = False
        return loss.detach(), terms

    def step(self) -> float:
        self._reduce()
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self._settings.clip_norm or _NO_CLIPPING))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        self._reduce()
        for name, parameter in self.module.named_parameters():
            assert parameter.grad is not None
            yield name, parameter.grad

    def state(self) -> Iterator[ParameterState]:
        for name, parameter in self.module.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            yield ParameterState(name, parameter.detach(), {m: state[m] for m in MOMENTS if m in state})

    def load(self, states: Iterator[ParameterState], num_updates: int) -> None:
        for (name, parameter), state in zip(self.module.named_parameters(), states, strict=True):
            assert name == state.name
            with torch.no_grad():
                parameter.copy_(state.weight)
            if num_updates:
                moments = {moment: value.to(parameter.device, copy=True) for moment, value in state.moments.items()}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(num_updates)), **moments}

    def _reduce(self) -> None:
        if self._is_reduced:
            return
        for parameter in self.module.parameters():
            if parameter.grad is None:  # An update of zeros, as a sharded optimizer makes it.
                parameter.grad = torch.zeros_like(parameter)
            self._worker.sum(parameter.grad)
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
    ) -> None:
        deepspeed = _import_deepspeed(worker.device)
        self._settings = settings
        self._worker = worker
        self._stage = stage
        # DeepSpeed averages over workers and accumulation steps; our losses are parts of a sum.
        self._scale = worker.world_size * accumulation
        clip = settings.clip_norm or _NO_CLIPPING
        self.optimizer: torch.optim.Optimizer = make_optimizer(parameter_groups(module, settings), settings)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation,
                # At stage 0 DeepSpeed clips but does not tell the norm: that is done in `step` instead.
                "gradient_clipping": clip if stage else 0.0,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 2**31,
            },
        )
        self._make_optimizer_state()

    def forward_backward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self._engine(*inputs)
        self._engine.backward(loss * self._scale)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # Counts the batch; updates only after the last one.
        return loss.detach(), terms

    def step(self) -> float:
        if self._stage:
            self._engine.step()  # Of itself updates nothing where the norm is not finite, and says infinity.
            return float(self._engine.get_global_grad_norm())
        parameters = list(self._engine.module.parameters())
        norm = float(nn.utils.clip_grad_norm_(parameters, self._settings.clip_norm or _NO_CLIPPING))
        if math.isfinite(norm):
            self._engine.step()
        return norm

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in self._engine.module.named_parameters():
            yield name, safe_get_full_grad(parameter)

    def state(self) -> Iterator[ParameterState]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._engine.module.named_parameters():
            if self._stage:
                weight = safe_get_full_fp32_param(parameter)
                read = {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}
            else:
                weight = parameter.detach()
                read = {m: self.optimizer.state[parameter][m] for m in MOMENTS}
            yield ParameterState(name, weight, read)

    def load(self, states: Iterator[ParameterState], num_updates: int) -> None:
        for state_of_one in self.optimizer.state.values():
            state_of_one["step"].fill_(num_updates)
        for (name, parameter), state in zip(self._engine.module.named_parameters(), states, strict=True):
            assert name == state.name
            self._set(parameter, state.weight, None)
            for moment, value in state.moments.items():
                self._set(parameter, value, moment)

    def _make_optimizer_state(self) -> None:
        """AdamW's moments, as zeros, which it would otherwise make at its first update.

        DeepSpeed ties parameters to them when the first of the groups has been updated, and then finds none of the
        others'.
        """
        sharded = self._engine.optimizer
        if self._stage == 3:
            flat = sharded.fp32_partitioned_groups_flat
        else:
            flat = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for tensor in flat:
            moments = {moment: torch.zeros_like(tensor) for moment in MOMENTS}
            self.optimizer.state[tensor] = {"step": torch.tensor(0.0), **moments}
        if 0 < self._stage < 3:
            sharded._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        from deepspeed.utils import (
            safe_get_local_fp32_param,
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self._worker.device)
        if self._stage == 3:
            # DeepSpeed's setter of whole tensors does not know that the last worker's part may be padded.
            size = safe_get_local_fp32_param(parameter).numel()
            padded = value.new_zeros(size * self._worker.world_size)
            padded[: value.numel()] = value.flatten()
            part = padded[self._worker.rank * size : (self._worker.rank + 1) * size]
            if moment is None:
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, moment)
        elif not self._stage:
            target = parameter.data if moment is None else self.optimizer.state[parameter][moment]
            target.copy_(value)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)


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
