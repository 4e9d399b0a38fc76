"""Fixtures that every test folder shares."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.s3_server import S3Server, s3_server

ROOT = Path(__file__).parents[1]

# The same examples in every run, and no limits to their time: a machine that is busy elsewhere is no fault.
hypothesis.settings.register_profile("everywhere", deadline=None, derandomize=True)
hypothesis.settings.load_profile("everywhere")


def pytest_collection_finish() -> None:
    """Spare every garbage collection of the tests a walk through all that was imported: a tenth of their time."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server of the module's own, with an empty bucket, which every S3 client finds by the environment."""
    with s3_server(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    """The URI of an empty bucket on such a server."""
    return s3.uri
