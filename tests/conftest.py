"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """The folder of real dataset samples; not part of the repository (their terms allow research use only)."""
    folder = Path(os.environ.get("SEMSAM_SAMPLES", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder}: set SEMSAM_SAMPLES to the folder that holds coco/, ade20k/, ...")
    return folder


@pytest.fixture(scope="session")
def reference_dir(samples_dir: Path) -> Path:
    """The folder of reference values computed with the published model."""
    folder = Path(os.environ.get("SEMSAM_REFERENCE", samples_dir.parent / "reference"))
    if not folder.is_dir():
        pytest.skip(f"no reference values at {folder}: set SEMSAM_REFERENCE")
    return folder
