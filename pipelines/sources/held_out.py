"""A share of the images for val, where the data itself has no val split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pipelines.sources.source import Source
from semsam.config import Share
from semsam.data.manifest import Vocabulary

# What folders and files of a split are called, beside a split's own name.
SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_PLACES = 2**64


def place_of(key: str) -> int:
    """A number below 2**64 that depends on the key alone: the same for ever and for every copy."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def of_split(keys: Sequence[str], split: str, share: float) -> list[bool]:
    """Which images belong to a split: to val those whose `place_of` falls into the share, and at least one.

    Keys are file names, so that neither their order nor what comes later moves an image from one split to the other;
    but where a share of 0.01 would leave val without any, the first by its place goes there, and of one that would
    leave train without any the last one stays.
    """
    if not keys:
        return []
    ordered = sorted(keys, key=place_of)
    val = {key for key in keys if place_of(key) < share * _PLACES}
    if share > 0:
        val.add(ordered[0])
    if len(ordered) > 1 and share < 1:
        val.discard(ordered[-1])
    return [(key in val) == (split == "val") for key in keys]


@dataclass(frozen=True)
class OwnData(Source):
    """Somebody's own data: its names come with it, and where it has no val split, a share is held out for val."""

    options: ClassVar[tuple[str, ...]] = ("val_share",)

    val_share: Share = 0.2
    names: Vocabulary = field(default_factory=lambda: Vocabulary(()))  # What `found_in` found.

    def vocabulary(self) -> Vocabulary:
        """The names that the data itself has."""
        return self.names
