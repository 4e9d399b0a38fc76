"""Small prepared splits for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from semsam.data.manifest import Vocabulary
from semsam.data.schema import Record
from tests.prepared_split import write_split as write_any_split

WriteSplit = Callable[[Path, Sequence[Sequence[Record]]], Path]


@pytest.fixture
def write_split() -> WriteSplit:
    """Write records, given by shard, as a split of one name into a folder; the folder comes back."""
    return lambda folder, shards: write_any_split(folder, shards, Vocabulary(("car",)))
