"""Which part of every trained parameter, and of what the optimizer keeps of it, lies on this worker.

A checkpoint is made of these parts, so that nothing has to be gathered to write one, and any number of workers under
any ZeRO stage can read it back.  What this file knows of DeepSpeed's insides is checked by the tests, which save under
one stage and go on under another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

WEIGHT, EMA = "weight", "ema"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, by the names that torch gives them.


@dataclass(frozen=True)
class Partition:
    """Elements from `start` on of a flattened parameter, in fp32.

    `values` are views by quantity (see `quantities`): writing to them changes the run.
    `is_copy` where another worker has the same and answers for it.
    """

    name: str
    start: int
    values: Mapping[str, Tensor]
    is_copy: bool = False


def quantities(with_average: bool) -> tuple[str, ...]:
    """What there is of every trained parameter."""
    return (WEIGHT, *MOMENTS, EMA) if with_average else (WEIGHT, *MOMENTS)


def whole_partitions(module: nn.Module, optimizer: Optimizer, rank: int, world_size: int) -> Iterator[Partition]:
    """Every parameter whole: without sharding.  Workers share in answering for them."""
    for place, (name, parameter) in enumerate(_trained(module)):
        values = _values(optimizer, parameter, 0, parameter.numel())
        yield Partition(name, 0, values, is_copy=place % world_size != rank)


def flat_partitions(module: nn.Module, zero: Any) -> Iterator[Partition]:
    """This worker's partitions under ZeRO 1 and 2; `zero` is DeepSpeed's optimizer.

    Each parameter group is one flat vector, cut into a piece for each worker without regard to where parameters end.
    """
    for name, parameter in _trained(module):
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:  # Else it lies on other workers.
            flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
            at = mapping.hp_fragment_address
            values = _values(zero.optimizer, flat, at.start, at.numel)
            yield Partition(name, mapping.lp_fragment_address.start, values)


def split_partitions(module: nn.Module, zero: Any, rank: int) -> Iterator[Partition]:
    """This worker's partitions under ZeRO 3: equal parts of parameters, the last filled with padding."""
    for name, parameter in _trained(module):
        group, at, piece = zero.grad_position[zero.get_param_id(parameter)]
        start = rank * piece
        size = min(piece, parameter.ds_numel - start)  # type: ignore[attr-defined]
        if size > 0:
            yield Partition(name, start, _values(zero.optimizer, zero.fp32_partitioned_groups_flat[group], at, size))


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _values(optimizer: Optimizer, tensor: Tensor, start: int, size: int) -> dict[str, Tensor]:
    kept = {quantity: value for quantity, value in optimizer.state[tensor].items() if quantity != "step"}
    return {
        quantity: value.detach().view(-1).narrow(0, start, size) for quantity, value in {WEIGHT: tensor, **kept}.items()
    }
