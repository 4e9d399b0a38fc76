"""Which rows make the global batch of a step: a pure function of the seed, the shards, the weights and the step.

Two questions, each answered in closed form so that step 300,000 costs what step 0 does:

* which dataset does sample `t` of a stage come from?  A pattern repeats in which no dataset ever strays by a whole
  sample from its share (`_Pattern`);
* which row is draw `k` of a dataset?  Every epoch is another permutation (`semsam.data.row_order`).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from semsam.config import Positive, PositiveFloat, PositiveShare, settings
from semsam.data.row_order import RowOrder, repeated, rows_in_use
from semsam.setting_kinds import did_you_mean

MAX_PERIOD = 10_000


@settings
class Stage:
    """A part of the run with one mixture: `weights` by dataset (any scale), up to the fraction `until` of all steps."""

    weights: dict[str, PositiveFloat]  # Leave a dataset out to not use it.
    until: PositiveShare = 1.0

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights: a stage needs at least one dataset")


def _default_stages() -> tuple[Stage, ...]:
    everything = {
        "sa1b": 0.4,
        "coco_panoptic": 0.15,
        "objects365": 0.15,
        "ade20k": 0.1,
        "pascal_part": 0.05,
        "paco": 0.1,
        "partimagenet": 0.05,
    }
    return (Stage({"sa1b": 1.0}, until=0.6), Stage(everything))


@settings
class PlanSettings:
    """The mixture.

    `fraction` limits a dataset to a fixed share of its rows, the same rows in every run.  `repeat` is the threshold of
    LVIS's repeat factors (`repeat_factors` in row_categories.py), by dataset: an image with a name that fewer than this
    share of the dataset's images (of those that `fraction` leaves) show comes several times in an epoch.  It changes
    which images of a dataset come, not how many: that is for the weights.  An epoch shuffles blocks of `block_rows`
    neighbouring rows, and rows within a window of `window_blocks` blocks.
    """

    stages: tuple[Stage, ...] = field(default_factory=_default_stages)
    fraction: dict[str, PositiveShare] = field(default_factory=dict)
    repeat: dict[str, PositiveShare] = field(default_factory=dict)
    block_rows: Positive = 64
    window_blocks: Positive = 32

    def __post_init__(self) -> None:
        untils = [0.0, *(stage.until for stage in self.stages)]
        if untils[-1] != 1.0 or any(a >= b for a, b in itertools.pairwise(untils)):
            raise ValueError(f"stages: `until` must increase from stage to stage and end at 1, not {untils[1:]}")
        used = {dataset for stage in self.stages for dataset in stage.weights}
        for name, shares in (("fraction", self.fraction), ("repeat", self.repeat)):
            for dataset in shares:
                if dataset not in used:
                    raise ValueError(f"{name}.{dataset}: no stage uses this dataset{did_you_mean(dataset, used)}")


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a global batch.  `index`, its place among all samples of the run, is the key of its randomness."""

    index: int
    dataset: str
    shard: int
    row: int


class Plan:
    """The order of training.

    `sizes` has the number of rows of every shard, by dataset; datasets that no stage uses are ignored.  `num_steps`
    matters only for where a stage ends: with one stage the order does not depend on it.  `categories` has the names of
    every row (`Split.row_categories`) of each dataset in `settings.repeat`.
    """

    def __init__(
        self,
        seed: int,
        sizes: Mapping[str, tuple[int, ...]],
        settings: PlanSettings,
        global_batch: int,
        num_steps: int,
        categories: Mapping[str, pa.Table] | None = None,
    ) -> None:
        if global_batch < 1 or num_steps < 0:
            raise ValueError(f"global_batch {global_batch} and num_steps {num_steps} must be positive")
        self.global_batch = global_batch
        self.num_steps = num_steps
        self.settings = settings
        # Sorted: the order in which a YAML lists its weights must not matter.
        self.datasets = tuple(sorted({name for stage in settings.stages for name in stage.weights}))
        for name in self.datasets:
            if name not in sizes:
                raise ValueError(f"stages: unknown dataset {name!r}; there are {', '.join(sorted(sizes)) or 'none'}")
            if sum(sizes[name]) == 0:
                raise ValueError(f"stages: dataset {name!r} has a weight but no rows")
        self.sizes = {name: tuple(sizes[name]) for name in self.datasets}
        self._draws = {name: _draws(seed, name, sizes[name], settings, categories or {}) for name in self.datasets}
        self._patterns = [_Pattern.of(stage.weights, self.datasets) for stage in settings.stages]
        self._ends = [round(stage.until * num_steps) for stage in settings.stages]
        self._drawn = [np.zeros(len(self.datasets), np.int64)]  # Before each stage.
        for start, end, pattern in zip([0, *self._ends], self._ends, self._patterns, strict=False):
            self._drawn.append(self._drawn[-1] + pattern.drawn(np.array([(end - start) * global_batch]))[0])

    def rows(self, step: int) -> list[Row]:
        """The `global_batch` samples of a step, in order."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"no step {step} among {self.num_steps}")
        stage, first = self._stage(step)
        t = (step - first) * self.global_batch + np.arange(self.global_batch)
        which = self._patterns[stage].order[t % self._patterns[stage].period]
        draws = self._drawn[stage] + self._patterns[stage].drawn(t)
        rows: list[Row] = []
        places = np.empty((self.global_batch, 2), np.int64)
        for position in np.unique(which):
            mine = which == position
            places[mine] = self._draws[self.datasets[position]].places(draws[mine, position])
        for index, dataset, (shard, row) in zip(range(self.global_batch), which.tolist(), places.tolist(), strict=True):
            rows.append(Row(step * self.global_batch + index, self.datasets[dataset], shard, row))
        return rows

    def samples_seen(self, step: int) -> dict[str, int]:
        """How many samples of each dataset the steps before `step` (at most `num_steps`) consume."""
        stage, first = self._stage(step)
        in_stage = self._patterns[stage].drawn(np.array([(step - first) * self.global_batch]))[0]
        return dict(zip(self.datasets, (self._drawn[stage] + in_stage).tolist(), strict=True))

    def epoch_size(self, dataset: str) -> int:
        """How many draws from a dataset take every row in use: each once, or as often as `repeat` has it."""
        return self._draws[dataset].epoch_size

    def _stage(self, step: int) -> tuple[int, int]:
        """The stage of a step, and the stage's first step."""
        stage = min(int(np.searchsorted(self._ends, step, side="right")), len(self._ends) - 1)
        return stage, self._ends[stage - 1] if stage else 0


def _draws(
    seed: int, dataset: str, sizes: tuple[int, ...], settings: PlanSettings, categories: Mapping[str, pa.Table]
) -> RowOrder:
    """The draws from one dataset."""
    rows = rows_in_use(dataset, sum(sizes), settings.fraction.get(dataset, 1.0))
    if dataset in settings.repeat:
        if dataset not in categories or len(categories[dataset]) != sum(sizes):
            raise ValueError(f"repeat.{dataset}: the plan was not given the names of its {sum(sizes)} rows")
        rows = repeated(dataset, rows, categories[dataset], settings.repeat[dataset])
    return RowOrder.of(seed, dataset, sizes, rows, settings.block_rows, settings.window_blocks)


@dataclass(frozen=True)
class _Pattern:
    """`order[t % period]` is the dataset of sample `t`; `counts[i]` counts the datasets in `order[:i]`."""

    order: Int64[np.ndarray, " period"]
    counts: Int64[np.ndarray, "period_plus_1 datasets"]

    @property
    def period(self) -> int:
        return len(self.order)

    @staticmethod
    def of(weights: Mapping[str, float], datasets: tuple[str, ...]) -> _Pattern:
        """The pattern whose every prefix has each dataset within one sample of its share.

        A dataset with `a` of the period's `p` samples must place its `k`-th one after (k - 1) p / a and by k p / a;
        serving the earliest deadline first keeps all of them (Tijdeman's chairman assignment).
        """
        parts = _whole_parts(weights)
        period = sum(parts.values())
        order = np.empty(period, np.int64)
        waiting = [(0, position, 1) for position, name in enumerate(datasets) if name in parts]  # (release, dataset, k)
        ready: list[tuple[int, int, int]] = []  # (deadline, dataset, k)
        for t in range(period):
            while waiting and waiting[0][0] <= t:
                _, position, k = heapq.heappop(waiting)
                heapq.heappush(ready, (-(-k * period // parts[datasets[position]]), position, k))
            _, position, k = heapq.heappop(ready)
            order[t] = position
            if k < parts[datasets[position]]:
                heapq.heappush(waiting, (k * period // parts[datasets[position]], position, k + 1))
        counts = np.zeros((period + 1, len(datasets)), np.int64)
        np.cumsum(order[:, None] == np.arange(len(datasets)), axis=0, out=counts[1:])
        return _Pattern(order, counts)

    def drawn(self, t: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, "b datasets"]:
        """How many of the first `t` samples come from each dataset."""
        return t[:, None] // self.period * self.counts[-1] + self.counts[t % self.period]


def _whole_parts(weights: Mapping[str, float]) -> dict[str, int]:
    """The weights as whole numbers without a common factor, adding up to at most `MAX_PERIOD`.

    Exact for weights such as 0.45 or 3; weights that would need a longer period are rounded to 1 / MAX_PERIOD.
    """
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    scale = math.lcm(*(weight.denominator for weight in exact.values()))
    parts = {name: int(weight * scale) for name, weight in exact.items()}
    total = sum(parts.values())
    if total // math.gcd(*parts.values()) > MAX_PERIOD:
        floors = {name: part * MAX_PERIOD // total for name, part in parts.items()}
        by_remainder = sorted(parts, key=lambda name: (-(parts[name] * MAX_PERIOD % total), name))
        for name in by_remainder[: MAX_PERIOD - sum(floors.values())]:
            floors[name] += 1
        parts = floors
        for name, part in parts.items():
            if part == 0:
                raise ValueError(f"stages: the weight of {name!r} is less than 1/{MAX_PERIOD} of its stage's total")
    divisor = math.gcd(*parts.values())
    return {name: part // divisor for name, part in parts.items()}
