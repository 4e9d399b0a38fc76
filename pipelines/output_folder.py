"""Files appear in an output folder whole or not at all, on a local disk as on S3."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pyarrow.fs

from semsam.data.shards import open_filesystem

CHUNK = 8 * 1024 * 1024


class OutputFolder:
    """A flat folder, local or `s3://bucket/folder`; it is made when the first file is published."""

    def __init__(self, uri: str) -> None:
        self._filesystem, self._folder = open_filesystem(uri)
        self._is_local = isinstance(self._filesystem, pyarrow.fs.LocalFileSystem)

    @contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """A local path to write to; the file appears under `name` when the block ends without an exception."""
        if not self._is_local:
            # An object appears when its upload is complete, but a writer that fails half way would complete it.
            with tempfile.TemporaryDirectory() as temporary:
                draft = Path(temporary) / name
                yield draft
                self._upload(draft, name)
            return
        folder = Path(self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(f".{name}.*.draft"):  # Of a task that was killed.
            left_over.unlink(missing_ok=True)
        draft = folder / f".{name}.{uuid4().hex}.draft"
        try:
            yield draft
            os.replace(draft, folder / name)
        finally:
            draft.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""
        try:
            with self._filesystem.open_input_stream(f"{self._folder}/{name}") as stream:
                data: bytes = stream.read()
        except FileNotFoundError:
            return None
        return data

    def sha256(self, name: str) -> str | None:
        """The digest of a file's bytes; None where there is none."""
        digest = hashlib.sha256()
        try:
            with self._filesystem.open_input_stream(f"{self._folder}/{name}") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def size(self, name: str) -> int | None:
        """The size of a file; None where there is none."""
        size: int | None = self._filesystem.get_file_info(f"{self._folder}/{name}").size
        return size

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        selector = pyarrow.fs.FileSelector(self._folder, allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.File)

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        if self.size(name) is not None:
            self._filesystem.delete_file(f"{self._folder}/{name}")

    def _upload(self, draft: Path, name: str) -> None:
        with draft.open("rb") as source, self._filesystem.open_output_stream(f"{self._folder}/{name}") as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
