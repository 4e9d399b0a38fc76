"""What a job's workers need of a cluster: refused at once where it can never be had, waited for where it may come."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.client import ray as client
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

PROGRESS_INTERVAL = 10.0  # Seconds between the lines of a job that waits.
WAIT = 900.0  # Seconds: an autoscaler may take minutes for a machine with GPUs.
_REPORT_TIMEOUT = 10.0  # Seconds for the cluster's own account of itself.


@dataclass(frozen=True)
class Workers:
    """Processes that must run at once, each with all its resources on one machine, and what settings ask for them."""

    count: int
    cpus: float
    gpus: float
    count_setting: str
    cpus_setting: str
    gpus_setting: str
    wait_setting: str
    wait: float = WAIT  # Seconds to wait for what others use, or what an autoscaler may add.
    shares_cpus: bool = False  # Whether a cluster of this machine alone may count more CPUs than there are.

    def needs(self) -> dict[str, float]:
        """What one of them needs, as Ray counts it."""
        return {name: need for name, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need}

    def __str__(self) -> str:
        each = " each" if self.count > 1 else ""
        return f"{_counted(self.count, 'worker')} with {_resources(self.needs())}{each}"


def actors(count: int, gpus: float, wait: float) -> Workers:
    """The actors of a job whose settings are `num_actors`, `gpus_per_actor` and `wait_for_resources`."""
    return Workers(count, 1, gpus, "num_actors", "num_actors", "gpus_per_actor", "wait_for_resources", wait)


def room_for(workers: Workers, machines: Iterable[Mapping[str, float]]) -> int:
    """How many such workers these machines, with all that they have, could run at once."""
    needs = workers.needs().items()
    return sum(
        min((int(machine.get(name, 0) / need + 1e-6) for name, need in needs), default=workers.count)
        for machine in machines
    )


def refusal(workers: Workers, machines: Sequence[Mapping[str, float]]) -> str:
    """Why the workers can never run on these machines, beginning with the setting to change; empty if they can."""
    room = room_for(workers, machines)
    if room >= workers.count:
        return ""
    there = f"machines: {_machines(machines)}"
    for name, setting in (("GPU", workers.gpus_setting), ("CPU", workers.cpus_setting)):
        need = workers.needs().get(name, 0)
        if need > max((machine.get(name, 0) for machine in machines), default=0):
            return f"{setting}: no machine has {_resources({name: need})} for {workers}; {there}"
    return f"{workers.count_setting}: there is room for {room} of {workers}; {there}"


def cpus_here(workers: Sequence[Workers] = ()) -> int:
    """How many CPUs a cluster of this machine alone counts: those it has, or as many as workers are to share.

    At least two, so that the jobs' defaults run anywhere.
    """
    return max([os.cpu_count() or 1, 2, *(math.ceil(one.count * one.cpus) for one in workers if one.shares_cpus)])


def refuse_here(workers: Sequence[Workers]) -> None:
    """Raise `ValueError` for the first of the workers that can never run on a cluster of this machine alone."""
    import torch

    machine = {"CPU": cpus_here(), "GPU": torch.cuda.device_count()}
    for one in workers:
        reason = refusal(replace(one, cpus=0) if one.shares_cpus else one, [machine])
        if reason:
            raise ValueError(reason)


def refuse_there(workers: Workers) -> None:
    """Raise `ValueError` for workers that can never run on the cluster that this process is connected to."""
    reason = refusal(workers, _machines_of_cluster())
    if reason and not _asked_there(_may_grow_enough, workers):
        raise ValueError(reason)


def wait_for(workers: Workers) -> None:
    """Return when the cluster that this process is connected to has room for the workers.

    Raises `ValueError` with the setting to change: at once where the room can never be had, and after `workers.wait`
    seconds otherwise.
    """
    refuse_there(workers)
    group = placement_group([workers.needs()] * workers.count, strategy="PACK")
    try:
        _wait_until_ready(group, workers)
    finally:
        remove_placement_group(group)


def _wait_until_ready(group: PlacementGroup, workers: Workers) -> None:
    deadline = time.monotonic() + workers.wait
    while not group.wait(min(PROGRESS_INTERVAL, max(deadline - time.monotonic(), 0.1))):
        reason = refusal(workers, _machines_of_cluster())
        if reason and not _asked_there(_may_grow_enough, workers):
            raise ValueError(reason)
        if reason and _asked_there(_is_given_up, group.id.hex()):
            raise ValueError(
                f"{workers.count_setting}: the autoscaler can add no machines for {workers} ({workers.cpus_setting}, "
                f"{workers.gpus_setting}); machines: {_machines(_machines_of_cluster())}"
            )
        why = "for machines that may be added" if reason else "until others end their work"
        left = deadline - time.monotonic()
        if left <= 0:
            raise ValueError(
                f"{workers.wait_setting}: waited {workers.wait:g} s {why}, and there is still no room for {workers} "
                f"({workers.count_setting}); {_in_use(workers)}"
            )
        print(f"waiting {why}: {workers}; {_in_use(workers)}; {left:.0f} s left", flush=True)


def _asked_there(question: Callable[..., bool], *arguments: Any) -> bool:
    """The answer of a function that only a process of the cluster can give: a client (`ray://`) is none."""
    if not client.is_connected():
        return question(*arguments)
    answer: bool = ray.get(ray.remote(num_cpus=0)(question).remote(*arguments))
    return answer


def _machines_of_cluster() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _may_grow_enough(workers: Workers) -> bool:
    """Whether an autoscaler is there that might add enough machines, as far as it tells."""
    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        kinds = [(dict(group.resources), group.max_count) for group in config.node_group_configs]
        room = sum(room_for(workers, [machine]) * (workers.count if most < 0 else most) for machine, most in kinds)
        return room >= workers.count
    return any(_node_types())


def _node_types() -> Iterator[str]:
    """The types by which an autoscaler calls the machines; none without one."""
    yield from filter(None, (node.ray_node_type_name for node in _status().cluster_resource_state.node_states))
    # Version 1 tells them in its own report; where nothing scales, that has a type of its own for each machine.
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    yield from (name for name in report.get("active_nodes") or () if not re.fullmatch("node_[0-9a-f]{40,}", name))


def _is_given_up(group: str) -> bool:
    """Whether the autoscaler says that it cannot make room for a group, though it has nothing else to do."""
    given_up = _status().autoscaling_state.infeasible_gang_resource_requests
    return any(group in one.details for one in given_up) and not any(_used().values())


def _status() -> GetClusterStatusReply:
    """The cluster's account of its machines, and that of its autoscaler (of version 2: earlier ones give none)."""
    client = GcsClient(ray.get_runtime_context().gcs_address)
    return GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=_REPORT_TIMEOUT))


def _in_use(workers: Workers) -> str:
    total, used = ray.cluster_resources(), _used()
    return ", ".join(f"{used[name]:g} of {_counted(total.get(name, 0), name)} in use" for name in workers.needs())


def _used() -> dict[str, float]:
    total, free = ray.cluster_resources(), ray.available_resources()
    return {name: total.get(name, 0) - free.get(name, 0) for name in ("CPU", "GPU")}


def _machines(machines: Iterable[Mapping[str, float]]) -> str:
    """How many machines there are of which size, the commonest first."""
    kinds = Counter(
        _resources({name: machine[name] for name in ("CPU", "GPU") if machine.get(name)}) for machine in machines
    )
    return ", ".join(f"{count} with {kind}" for kind, count in kinds.most_common()) or "none"


def _resources(amounts: Mapping[str, float]) -> str:
    return " and ".join(_counted(amount, name) for name, amount in amounts.items()) or "no CPU"


def _counted(count: float, what: str) -> str:
    return f"{count:g} {what}{'' if 0 < count <= 1 else 's'}"
