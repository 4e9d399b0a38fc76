"""The share of its time that a preempted training makes progress in: a closed form, and a simulation that checks it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import lambertw


@dataclass(frozen=True)
class Preemptions:
    """What interrupts a training, in seconds.

    Interruptions come at random, on average `between` apart, also while the training starts again, which takes
    `restart`.  A checkpoint holds training up for `held_up`; until it is complete, `upload` later, the one before
    counts.  `noticed` of the interruptions are known early enough for a checkpoint at their moment.
    """

    between: float
    restart: float
    held_up: float
    upload: float
    noticed: float = 0.0

    def goodput(self, interval: float) -> float:
        """Progress per second, 1 without any loss, with a checkpoint after every `interval` of it.

        Daly's exponential form (Future Generation Computer Systems 22, 2006), with the delay until a checkpoint counts
        and with notices.  It needs `interval` + `held_up` >= `upload`: one checkpoint at a time.
        """
        cycle = interval + self.held_up
        lasts = math.exp(-cycle / self.between)  # The chance that nothing comes within a cycle.
        kept_unnoticed = interval * math.exp(-self.upload / self.between) * lasts / (1 - lasts)
        kept_noticed = self.between * (1 - math.exp(-interval / self.between)) / (1 - lasts)
        kept = (1 - self.noticed) * kept_unnoticed + self.noticed * kept_noticed
        return kept / (self.between * math.exp(self.restart / self.between))

    def best_interval(self) -> float:
        """The interval with the most goodput when nothing is noticed, or the least that one upload at a time allows.

        Where the derivative is zero: exp((t + held_up) / between) * (1 - t / between) = 1.  Young's sqrt(2 * held_up *
        between) is its first term.
        """
        least = max(self.upload - self.held_up, 0.0)
        best = self.between * (1 + lambertw(-math.exp(-1 - self.held_up / self.between)).real)
        return max(float(best), least)


def simulated_goodput(case: Preemptions, interval: float, interruptions: int, seed: int) -> tuple[float, float]:
    """What a training attained that was interrupted so many times, and the standard error of that."""
    rng = np.random.default_rng(seed)
    kept, passed = np.zeros(interruptions), np.zeros(interruptions)
    for number in range(interruptions):
        clock = 0.0
        while (until := rng.exponential(case.between)) < case.restart:  # Interrupted before it has started.
            clock += until
        clock += case.restart
        ends = clock + rng.exponential(case.between)
        if rng.random() < case.noticed:
            kept[number] = _progress(ends - clock, case, interval)
        else:
            kept[number] = interval * _num_complete(ends - clock, case, interval)
        passed[number] = ends
    goodput = kept.sum() / passed.sum()
    error = np.std(kept - goodput * passed) / math.sqrt(interruptions) / passed.mean()
    return float(goodput), float(error)


def _progress(seconds: float, case: Preemptions, interval: float) -> float:
    """Step by step: progress for an interval, none while a checkpoint is begun."""
    made = 0.0
    while seconds > 0:
        made += min(seconds, interval)
        seconds -= interval + case.held_up
    return made


def _num_complete(seconds: float, case: Preemptions, interval: float) -> int:
    """How many checkpoints were begun and had the time to become complete."""
    complete, begun = 0, interval + case.held_up
    while begun + case.upload <= seconds:
        complete += 1
        begun += interval + case.held_up
    return complete
