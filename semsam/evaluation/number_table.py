"""The numbers of several datasets: by their names in MLflow, over all datasets, and as a table on screen."""

from __future__ import annotations

from collections.abc import Mapping

from semsam.evaluation.dataset_numbers import FOUND, DatasetNumbers
from semsam.evaluation.headlines import HEADLINES, is_headline
from semsam.evaluation.protocols import BASELINE, means_of, metric_name


def flat(numbers: Mapping[str, DatasetNumbers], *, is_blind: bool = False) -> dict[str, float]:
    """Every number by its name in MLflow."""
    return {
        metric_name(f"{protocol}/{name}", dataset, is_blind): value
        for dataset, found in numbers.items()
        for protocol, one in found.protocols.items()
        for name, value in one.values.items()
    }


def over_datasets(numbers: Mapping[str, DatasetNumbers]) -> dict[str, tuple[float, int]]:
    """Means over all regions that were asked for, and over datasets; by name less the dataset.

    Of prompts the mean over all datasets' regions, and how many; of what is found without being asked for the mean over
    datasets, and how many.
    """
    means = means_of(one.prompts.sums() for one in numbers.values())
    found: dict[str, list[float]] = {}
    for one in numbers.values():
        for protocol in FOUND:
            for name in HEADLINES[protocol] if protocol in one.protocols else ():
                if name in one.protocols[protocol].values:
                    found.setdefault(f"{protocol}/{name}", []).append(one.protocols[protocol].values[name])
    return means | {name: (sum(values) / len(values), len(values)) for name, values in sorted(found.items())}


def headline_intervals(numbers: Mapping[str, DatasetNumbers], num_resamples: int) -> dict[str, tuple[float, float]]:
    """The 95% interval of every headline number, by its name in MLflow."""
    return {
        metric_name(f"{protocol}/{name}", dataset): (interval.low, interval.high)
        for dataset, found in numbers.items()
        for protocol, some in found.intervals(num_resamples).items()
        for name, interval in some.items()
    }


def table(
    metrics: Mapping[str, float],
    before: Mapping[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """The headline numbers as lines, each beside its interval, its blind baseline and its value before training."""
    width = max([44, *(len(name) + 1 for name in metrics if not name.startswith(BASELINE))])
    lines = [
        f"{'metric':<{width}}{'before' if before else '':>8}{'model':>8}{'95%' if intervals else '':>16}{'blind':>8}"
    ]
    for name, value in metrics.items():
        if is_headline(name):
            blind, earlier = metrics.get(f"{BASELINE}/{name}"), (before or {}).get(name)
            low, high = (intervals or {}).get(name, (None, None))
            between = "" if low is None else f"{low:.3f} to {high:.3f}"
            lines.append(f"{name:<{width}}{_cell(earlier)}{_cell(value)}{between:>16}{_cell(blind)}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'' if value is None else f'{value:.3f}':>8}"
