"""What a report says of one dataset: little, and plain values, whatever the size of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from semsam.evaluation.class_tables import ClassRow, class_rows
from semsam.evaluation.dataset_numbers import FEDERATED, DatasetNumbers
from semsam.evaluation.extremes import Extremes, extremes
from semsam.evaluation.intervals import Interval

EMPTY = "no images were measured"
_REASONS = {
    "iou_calibration": "no click's levels can be compared with a mask, or predictions never vary",
    **dict.fromkeys(FEDERATED, "all names were looked for in every image: AP without federation measures it"),
}
_NO_TRUTH = "nothing that it could be compared with is annotated"


@dataclass(frozen=True)
class ProtocolReport:
    """A protocol's numbers, each with what it is read beside."""

    convention: str
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]  # Of some of the numbers.


@dataclass(frozen=True)
class DatasetReport:
    """What was measured of a dataset's split, and what there is to look at."""

    dataset: str
    split: str
    num_images: int
    protocols: Mapping[str, ProtocolReport]
    blind: Mapping[str, Mapping[str, float]]  # A guess's numbers, by protocol.
    absent: Mapping[str, str]  # Why a protocol has no numbers.
    classes: tuple[ClassRow, ...]
    extremes: Mapping[str, Extremes]  # By protocol.
    remarks: tuple[str, ...] = ()  # What a reader must know of these numbers: images that are missing, and why.
    # PNG files: by a title each, and of single images by their ids.
    figures: Mapping[str, bytes] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    pictures_of_images: Mapping[str, bytes] = field(default_factory=dict)

    @staticmethod
    def of(
        dataset: str,
        split: str,
        numbers: DatasetNumbers,
        blind: DatasetNumbers | None = None,
        num_resamples: int = 0,
        class_resamples: int = 0,
    ) -> DatasetReport:
        """What the numbers say, with intervals of the headline ones, and of the classes' if any are asked for."""
        known = numbers.intervals(num_resamples)
        return DatasetReport(
            dataset=dataset,
            split=split,
            num_images=len(numbers.sample_ids),
            protocols={
                name: ProtocolReport(one.convention, dict(one.values), known.get(name, {}))
                for name, one in numbers.protocols.items()
            },
            blind={} if blind is None else {name: dict(one.values) for name, one in blind.protocols.items()},
            absent=dict(numbers.absent),
            classes=tuple(class_rows(numbers, class_resamples)),
            extremes=extremes(numbers),
        )

    def why_absent(self, protocol: str) -> str:
        """Why a protocol lacks a number here."""
        if not self.num_images:
            return EMPTY
        return self.absent.get(protocol) or _REASONS.get(protocol, _NO_TRUTH)
