"""The numbers of items that lie in a folder; for the driver, which alone needs the libraries of the arithmetic."""

from __future__ import annotations

from pipelines.evaluate.item_files import ItemManifest
from semsam.evaluation.dataset_numbers import DatasetNumbers, measure_dataset
from semsam.storage import Folder


def measured(folder: Folder, manifest: ItemManifest, *, is_blind: bool = False) -> DatasetNumbers:
    """The numbers of a dataset.  Raises `ValueError`, beginning with the folder, for items that have none."""
    try:
        return measure_dataset(manifest.items(folder), manifest.vocabulary, is_blind=is_blind, trained=manifest.trained)
    except ValueError as error:
        if str(error).startswith(folder.path):
            raise
        raise ValueError(f"{folder.path}: {error}") from None
