"""Which part of every parameter, and of what the optimizer knows of it, lives on this worker.

A checkpoint is made of these parts, so that nothing has to be gathered to write one, and any number of workers under
any ZeRO stage can read it back.  What is said here of DeepSpeed's insides is checked by the tests, which save under one
stage and go on under another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, by the names that torch gives them.


@dataclass(frozen=True)
class Fragment:
    """Elements `start` to `start + len(weights)` of a flattened parameter: views, which writing to changes the run.

    A parameter that is not trained has no moments.
    """

    name: str
    start: int
    weights: Float[Tensor, " n"]
    moments: Mapping[str, Float[Tensor, " n"]] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + self.weights.numel()


def begin_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], num_updates: int) -> None:
    """Give AdamW the state that it has after `num_updates` updates, with zeros for the moments.

    It makes its state in its first update; to be filled from a checkpoint it must be there before.
    """
    for parameter in parameters:
        state: dict[str, Tensor] = optimizer.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros(())
            state.update({key: torch.zeros_like(parameter) for key in MOMENTS})
        state["step"].fill_(num_updates)


def full_fragments(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Fragment]:
    """Every parameter whole: without sharding."""
    return [
        Fragment(
            name,
            0,
            parameter.detach().view(-1),
            {key: optimizer.state[parameter][key].view(-1) for key in MOMENTS} if parameter.requires_grad else {},
        )
        for name, parameter in model.named_parameters()
    ]


def zero12_fragments(model: nn.Module, zero: Any) -> list[Fragment]:
    """This worker's fragments under ZeRO 1 and 2: `zero` is DeepSpeed's optimizer.

    Each parameter group is one flat vector, cut into one piece per worker without regard to where a parameter ends.
    Weights that are not trained are whole on every worker.
    """
    fragments = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            fragments.append(Fragment(name, 0, parameter.detach().view(-1)))
            continue
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:  # Another worker's.
            continue
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        at, size = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
        fragments.append(
            Fragment(
                name,
                mapping.lp_fragment_address.start,
                flat.detach().narrow(0, at, size),
                {key: zero.optimizer.state[flat][key].narrow(0, at, size) for key in MOMENTS},
            )
        )
    return fragments


def zero3_fragments(model: nn.Module, zero: Any, rank: int) -> list[Fragment]:
    """This worker's fragments under ZeRO 3: an equal piece of every parameter, the last one filled up with padding."""
    fragments = []
    for name, parameter in model.named_parameters():
        piece = parameter.ds_tensor.detach().view(-1)  # type: ignore[attr-defined]
        start = rank * piece.numel()
        size = min(piece.numel(), parameter.ds_numel - start)  # type: ignore[attr-defined]
        if size <= 0:
            continue
        if not parameter.requires_grad:
            fragments.append(Fragment(name, start, piece.narrow(0, 0, size)))
            continue
        group, at, _ = zero.grad_position[parameter.ds_id]  # type: ignore[attr-defined]
        flat = zero.fp32_partitioned_groups_flat[group]
        fragments.append(
            Fragment(
                name,
                start,
                flat.detach().narrow(0, at, size),
                {key: zero.optimizer.state[flat][key].narrow(0, at, size) for key in MOMENTS},
            )
        )
    return fragments
