"""All numbers of a dataset's split, protocol by protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from semsam.data.manifest import Vocabulary
from semsam.evaluation.average_precision import average_precision
from semsam.evaluation.boundary_ap import boundary_average_precision
from semsam.evaluation.federated_ap import federated_average_precision
from semsam.evaluation.headlines import HEADLINES
from semsam.evaluation.intervals import Interval, intervals
from semsam.evaluation.items import ImageItem
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Absent, Numbers
from semsam.evaluation.open_vocabulary import TrainedNames
from semsam.evaluation.panoptic_quality import panoptic_quality
from semsam.evaluation.protocols import PromptNumbers
from semsam.evaluation.semantic_iou import semantic_iou

# Protocols of what is found without being asked for.  Conventions are part of a name where the field has several.
FOUND: dict[str, Callable[[Sequence[ImageItem], Vocabulary], Numbers | Absent]] = {
    "panoptic": panoptic_quality,
    "semantic": semantic_iou,
    "boxes": lambda items, names: average_precision(items, names, Names.THINGS, Overlap.BOXES),
    "masks": lambda items, names: average_precision(items, names, Names.THINGS, Overlap.MASKS),
    "boundary": boundary_average_precision,
    "parts_of_objects": lambda items, names: average_precision(items, names, Names.OBJECT_PARTS, Overlap.MASKS),
    "parts_by_name": lambda items, names: average_precision(items, names, Names.PARTS, Overlap.MASKS),
}
FEDERATED = {
    "boxes_federated": (Names.THINGS, Overlap.BOXES),
    "masks_federated": (Names.THINGS, Overlap.MASKS),
    "parts_of_objects_federated": (Names.OBJECT_PARTS, Overlap.MASKS),
    "parts_by_name_federated": (Names.PARTS, Overlap.MASKS),
}


@dataclass(frozen=True)
class DatasetNumbers:
    """What was measured of a dataset's split."""

    sample_ids: tuple[str, ...]  # In the order that everything by image has.
    prompts: PromptNumbers
    protocols: dict[str, Numbers]
    absent: dict[str, str]  # Why a protocol has no numbers here.

    def intervals(self, num_resamples: int) -> dict[str, dict[str, Interval]]:
        """The bootstrap interval of every headline number, by protocol and name."""
        if not num_resamples:
            return {}
        found = {}
        for protocol, numbers in self.protocols.items():
            wanted = HEADLINES.get(protocol, ())
            if wanted:
                known = intervals(numbers.images, num_resamples=num_resamples, names=wanted)
                # All of them are shares, which freeing them of their bias may have moved beyond 0 and 1.
                found[protocol] = {name: Interval(max(one.low, 0.0), min(one.high, 1.0)) for name, one in known.items()}
        return found


def measure_dataset(
    parts: Iterable[Sequence[ImageItem]],
    vocabulary: Vocabulary,
    *,
    is_blind: bool = False,
    trained: TrainedNames | None = None,
) -> DatasetNumbers:
    """Every number that there is truth for; the items come in the order of their images.

    `trained` are the names that the model has learnt, where that is known: the others are its open vocabulary.
    Raises `ValueError` for answers that are no numbers or outside the vocabulary.
    """
    prompts, items = PromptNumbers(vocabulary, is_blind, trained), []
    for some in parts:
        prompts.add(some)
        items += [replace(item, prompted=None) for item in some]  # What is measured already takes most of the memory.
    found, absent = prompts.compute(), {}
    for name, numbers in _found(items, vocabulary) if items else ():
        if isinstance(numbers, Absent):
            absent[name] = numbers.reason
        else:
            found[name] = numbers
    return DatasetNumbers(tuple(item.sample_id for item in items), prompts, found, absent)


def _found(items: Sequence[ImageItem], vocabulary: Vocabulary) -> Iterable[tuple[str, Numbers | Absent]]:
    for name, protocol in FOUND.items():
        yield name, protocol(items, vocabulary)
    if any(item.checked_objects is not None for item in items):
        for name, (names, overlap) in FEDERATED.items():
            yield name, federated_average_precision(items, vocabulary, names, overlap)
