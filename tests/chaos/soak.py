"""One kill after another, each at a moment that its seed draws, and whether the job ends as if nothing had happened."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.chaos.cluster import KINDS, SURVIVED, Cluster
from tests.chaos.moments import MOMENTS, Killed, State, finished_parts, kill_at
from tests.chaos.running import finish, wait_for
from tests.chaos.world import CHECKPOINT_EVERY, JOBS, SHARDS, STEPS, Place, World

_TRIES = 4  # Until a kill comes at the moment that was meant.
_ORIGIN = r"beginning with random weights|(?=going on after step \d+ from)"  # What workers say when they start.


@dataclass(frozen=True)
class Plan:
    """What a seed kills."""

    seed: int
    kind: str
    job: str
    moment: str
    place: Place  # Where the world and the output are.

    @staticmethod
    def of(seed: int, kind: str | None = None, job: str | None = None) -> Plan:
        """All kinds in turn, and with each of them jobs and moments in turn, or those that are named."""
        turn, place = divmod(seed, len(KINDS))
        kind = kind or KINDS[place]
        job = job or JOBS[(turn + place) % len(JOBS)]
        moment = MOMENTS[(turn + place) % len(MOMENTS)]
        # A job that has its own cluster is one of a laptop, with its files there.
        return Plan(seed, kind, job, moment, "disk" if kind == "job" or (kind != "s3" and turn % 2) else "s3")


@dataclass(frozen=True)
class Outcome:
    """What came of a kill."""

    plan: Plan
    killed: Killed
    of: int  # Steps or parts.
    went_on: str
    broken: tuple[str, ...]  # The promises.
    took: float  # Seconds from the kill to the job's end.
    said: str

    @property
    def moment(self) -> str:
        """The planned one, if it was met."""
        return next(one for one in (self.plan.moment, *MOMENTS) if self.killed.state.is_at(one))

    def __str__(self) -> str:
        plan, state = self.plan, self.killed.state
        at = f"{state.done} of {self.of}" + (f", {state.in_work}" if state.in_work else "")
        promises = "BROKEN: " + "; ".join(self.broken) if self.broken else "kept"
        return (
            f"| {plan.seed} | {plan.kind} | {plan.job} | {plan.place} | {self.moment} | {at} | "
            f"{self.killed.seconds:.1f} s | {self.went_on} | {self.took:.0f} s | {promises} |"
        )


HEADER = (
    "| seed | killed | job | files on | moment | steps or parts done | after | went on | to the end | promises |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(outcomes: Sequence[Outcome]) -> str:
    """How many kills of each kind came when, in which jobs, and after how many of them all promises were kept."""
    lines = [f"| killed | kills | {' | '.join(MOMENTS)} | jobs | all promises kept |", "|---|---|---|---|---|---|---|"]
    for kind in (*KINDS, "all"):
        some = [one for one in outcomes if kind in (one.plan.kind, "all")]
        if some:
            times = Counter(one.moment for one in some)
            jobs = Counter(one.plan.job for one in some)
            kept = sum(not one.broken for one in some)
            counts = " | ".join(str(times[moment]) for moment in MOMENTS)
            named = ", ".join(f"{job} {count}" for job, count in sorted(jobs.items()))
            lines.append(f"| {kind} | {len(some)} | {counts} | {named} | {kept} |")
    return "\n".join(lines)


class Chaos:
    """One world, one cluster, and of each job one undisturbed run on either storage to compare with."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self.world, self.cluster = world, cluster
        self._calm: dict[tuple[str, Place], tuple[dict[str, Any], int]] = {}

    def calm(self, job: str, place: Place) -> tuple[dict[str, Any], int]:
        """What an undisturbed run ends with, and its number of steps or parts."""
        if (job, place) not in self._calm:
            output = f"calm-{job}-{place}"
            if (job, place) == ("prepare", "disk"):
                output = SHARDS  # Has been made.
            else:
                finish(self.world.command(job, output, place))
            of = STEPS if job == "train" else len(finished_parts(job, self.world.folder / output))
            self._calm[job, place] = self.world.result(job, output, place), of
        return self._calm[job, place]

    def disturb(self, plan: Plan) -> Outcome:
        """Kill, as often as it takes to do so at the planned moment, and look how the job ends.

        A kill at another moment counts too where it broke a promise; one that came after the work was done never does.
        """
        found: Outcome | None = None
        for number in range(_TRIES):
            outcome = self._once(plan, number)
            found = outcome or found
            if outcome is not None and (outcome.broken or outcome.moment == plan.moment):
                return outcome
        if found is None:
            raise RuntimeError(f"seed {plan.seed}: the work was done before each of {_TRIES} kills")
        return found

    def _once(self, plan: Plan, number: int) -> Outcome | None:
        """What came of one kill; None for one that came after the work was done."""
        expected, of = self.calm(plan.job, plan.place)
        rng = np.random.default_rng([plan.seed, number])
        output = f"{plan.kind}-{plan.job}-{plan.seed}-{number}"
        files = self.world.folder / output
        command = self.world.command(plan.job, output, plan.place)
        running = self.cluster.start(command, plan.kind)
        try:
            killed = kill_at(plan.moment, plan.kind, plan.job, files, of, running, self.cluster, rng)
            if killed is None:
                wait_for(running, is_disturbed=True)
                return None
            parts = finished_parts(plan.job, files)
            at = time.monotonic()
            self.cluster.restore(plan.kind, rng)
            said = ""
            try:
                if plan.kind not in SURVIVED:
                    running.kill()
                    said = running.said()
                    running = self.cluster.start(command, plan.kind)
                said += wait_for(running, is_disturbed=plan.kind != "job")
            except RuntimeError as error:
                return Outcome(plan, killed, of, "", (_first_line(error),), time.monotonic() - at, str(error))
            took = time.monotonic() - at
            from_where, broken = went_on(plan, killed.state, said, parts, finished_parts(plan.job, files))
            broken += _differences(expected, self.world.result(plan.job, output, plan.place))
            return Outcome(plan, killed, of, from_where, tuple(broken), took, said)
        finally:
            running.kill()
            self.cluster.tidy()


def went_on(
    plan: Plan, state: State, said: str, parts: Mapping[str, int], parts_after: Mapping[str, int]
) -> tuple[str, list[str]]:
    """In words where a job went on after a kill, and what was done or spent that should not have been."""
    if plan.job != "train":
        again = [name for name, written in parts.items() if parts_after.get(name) != written]
        broken = [f"{len(again)} finished parts were made again: {again[0]}"] if again else []
        return f"with {len(parts)} parts", broken
    _, *attempts = re.split(_ORIGIN, said)
    broken = []
    allowed = 1 if plan.kind == "s3" else 2
    if len(attempts) > allowed:
        broken.append(f"workers were started {len(attempts)} times, not {allowed}")
    if len(attempts) < 2 and plan.kind in SURVIVED:
        return "without a new start", broken
    begun = re.match(r"going on after step (\d+)", attempts[-1])
    first = int(begun[1]) if begun else 0
    before = "".join(attempts[-2:-1])  # Nothing where what the workers said was lost with the driver.
    done = max([state.done, *map(int, re.findall(r"\bstep (\d+)/", before))])
    # The checkpoint that was due before `done` may have been in work: then the one before it is the latest.
    if first < state.kept or first < done // CHECKPOINT_EVERY * CHECKPOINT_EVERY - CHECKPOINT_EVERY:
        broken.append(f"went on after step {first} with checkpoint-{state.kept} there and {done} steps done")
    return f"after step {first}, {max(done - first, 0)} done again", broken


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is not alike, in a line."""
    odd = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return [f"{len(odd)} of {len(expected)} differ: {', '.join(odd[:3])}"] if odd else []


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1]}"[:300]
