"""Counts of what was dropped, by reason, with a few examples of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipelines.sources.source import Rejected
from semsam.data.manifest import Example

EXAMPLES_PER_REASON = 5


@dataclass(frozen=True)
class Dropped:
    """How many were dropped for each reason, and the first few of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[Example, ...]] = field(default_factory=dict)

    @staticmethod
    def of(rejected: Iterable[Rejected]) -> Dropped:
        """The tally of these, reasons in alphabetical order."""
        counts: Counter[str] = Counter()
        examples: dict[str, list[Example]] = {}
        for one in rejected:
            counts[one.reason] += 1
            if counts[one.reason] <= EXAMPLES_PER_REASON:
                examples.setdefault(one.reason, []).append(Example(one.sample_id, one.detail))
        return Dropped(dict(sorted(counts.items())), {reason: tuple(examples[reason]) for reason in sorted(examples)})

    @staticmethod
    def merge(tallies: Sequence[Dropped]) -> Dropped:
        """The tally of all, examples in the given order."""
        counts: Counter[str] = Counter()
        examples: dict[str, list[Example]] = {}
        for tally in tallies:
            counts.update(tally.counts)
            for reason, some in tally.examples.items():
                kept = examples.setdefault(reason, [])
                kept.extend(some[: EXAMPLES_PER_REASON - len(kept)])
        return Dropped(dict(sorted(counts.items())), {reason: tuple(examples[reason]) for reason in sorted(examples)})

    def without(self, reasons: frozenset[str]) -> Dropped:
        """The tally of the other reasons."""
        kept = [reason for reason in self.counts if reason not in reasons]
        return Dropped({r: self.counts[r] for r in kept}, {r: self.examples[r] for r in kept})

    def total(self) -> int:
        """How many, whatever the reason."""
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """One line per reason, commonest first, with an example."""
        order = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        return [
            f"{self.counts[r]} x {r} (e.g. {self.examples[r][0].sample_id}: {self.examples[r][0].detail})"
            for r in order
        ]
