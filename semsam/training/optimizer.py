"""AdamW as the paper uses it: which parameter learns how fast, and how fast at which step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semsam.config import Count, PositiveFloat, PositiveShare, Share, ShareBelowOne, Weight, settings
from semsam.training.partitions import EMA, MOMENTS

# Parameters that say where and not how much: shrinking them towards zero has no meaning.
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
_POSITIONS = ("bias_table", "map_embedding", "log_scale")


@settings
class OptimizerSettings:
    """AdamW and its learning rate over the run; `milestones` are fractions of the run's steps."""

    lr: PositiveFloat = 1e-4
    weight_decay: Weight = 0.05
    backbone_factor: Weight = 0.1
    text_factor: Weight = 0.1
    # Names below which nothing learns, such as `backbone` or `pixel_decoder`; the text encoder has training.text.
    frozen: tuple[str, ...] = ()
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    clip_norm: Weight = 0.01  # Of the whole model's gradient; 0: no clipping.
    schedule: Literal["multi_step", "cosine", "constant"] = "multi_step"
    warmup_steps: Count = 10
    milestones: tuple[PositiveShare, ...] = (0.888889, 0.962961)  # Steps 327,778 and 355,092 of 368,750.
    decay: Share = 0.1  # At each milestone; of the cosine the last value.

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must be increasing fractions of the run, not {self.milestones}")


def lr_factor(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """What the learning rate of step `step` (the first is 0) is multiplied by."""
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.schedule == "constant":
        return warmup
    if settings.schedule == "multi_step":
        return float(warmup * settings.decay ** sum(step >= m * num_steps for m in settings.milestones))
    progress = min(1.0, step / max(1, num_steps - 1))
    return warmup * (settings.decay + (1 - settings.decay) * (1 + math.cos(math.pi * progress)) / 2)


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups for an optimizer, each with `lr_scale`, its part of the learning rate.

    The groups and their order depend on the model alone, so that they mean the same to every worker.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for owner_name, owner in model.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            full_name = f"{owner_name}.{name}"
            decay = 0.0 if _is_free_of_decay(owner, name, parameter) else settings.weight_decay
            scale = _lr_scale(full_name, settings)
            group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale})
            group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the groups; `set_lr` gives every step its rate."""
    scaled = [group | {"lr": settings.lr * group["lr_scale"]} for group in groups]
    # foreach=False: the same order of operations for a list of tensors and for one flat tensor of all of them.
    return torch.optim.AdamW(scaled, lr=settings.lr, betas=settings.betas, eps=settings.eps, foreach=False)


def set_lr(optimizer: torch.optim.Optimizer, step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Set the groups' learning rates for a step; returns that of a group without a factor."""
    lr = settings.lr * lr_factor(step, num_steps, settings)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def begin_state(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor], with_average: bool) -> None:
    """Give AdamW the state of a beginning, which it would make at its first update: too late to be filled from a file.

    `tensors` are what it updates, and their average starts as a copy of them.
    """
    for tensor in tensors:
        state = {moment: torch.zeros_like(tensor) for moment in MOMENTS}
        if with_average:
            state[EMA] = tensor.detach().clone()
        optimizer.state[tensor] = {"step": torch.tensor(0.0), **state}


def set_num_updates(optimizer: torch.optim.Optimizer, num_updates: int) -> None:
    """Tell AdamW how many updates its moments have seen."""
    for state in optimizer.state.values():
        state["step"].fill_(num_updates)


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Bring the averages up to what was just updated.

    The decay begins low and rises to `decay`, so that the random weights of the beginning are soon forgotten.
    """
    for tensor, state in optimizer.state.items():
        num_updates = float(state["step"])
        state[EMA].lerp_(tensor.detach(), 1 - min(decay, (1 + num_updates) / (10 + num_updates)))


def _is_free_of_decay(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    return isinstance(owner, _EMBEDDINGS + _NORMS) or name in _POSITIONS or parameter.shape == (1,)


def _lr_scale(full_name: str, settings: OptimizerSettings) -> float:
    parts = full_name.split(".")
    if "backbone" in parts:
        return settings.backbone_factor
    if "text_encoder" in parts:
        return settings.text_factor
    return 1.0
