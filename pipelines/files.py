"""Read access to a dataset's folder, local or on S3, through one small interface."""

from __future__ import annotations

import fnmatch
import glob
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec


class Files(Protocol):
    """Read access below a dataset's root; `open_root` makes one.

    Paths are relative, with forward slashes.  `read_bytes` raises `FileNotFoundError`.  Picklable.
    """

    @property
    def root(self) -> str: ...

    def read_bytes(self, path: str) -> bytes: ...

    def exists(self, path: str) -> bool: ...

    def glob(self, pattern: str) -> list[str]: ...


def open_root(root: str) -> Files:
    """The files below a local folder or `s3://bucket/prefix`.

    Raises `ValueError` for a folder that does not exist and for other schemes.  S3 credentials, endpoint and region
    come from the environment, a profile or the machine's role, as with boto3.
    """
    if root.startswith("s3://"):
        return S3Files(root.rstrip("/"))
    if "://" in root:
        raise ValueError(f"{root}: expected a local folder or s3://")
    if not Path(root).is_dir():
        raise ValueError(f"{root}: no such folder")
    return LocalFiles(root)


def find_file(files: Files, candidates: Sequence[str]) -> str:
    """The first path that exists.  Raises `ValueError` naming all of them."""
    for path in candidates:
        if files.exists(path):
            return path
    raise ValueError(f"{files.root}: found none of {', '.join(candidates)}")


@dataclass(frozen=True)
class LocalFiles:
    """Files below a local folder.  A path may lead to a neighbouring folder (`../coco/...`)."""

    root: str

    def read_bytes(self, path: str) -> bytes:
        return Path(self.root, path).read_bytes()

    def exists(self, path: str) -> bool:
        return Path(self.root, path).exists()

    def glob(self, pattern: str) -> list[str]:
        """Matching paths, sorted; `**/` stands for any number of folders and is followed by a file name."""
        folder, recursive, name = pattern.partition("**/")
        if not recursive:
            return sorted(glob.glob(pattern, root_dir=self.root))
        return sorted(self._walk(folder, name))

    def _walk(self, folder: str, name: str) -> Iterator[str]:
        # `glob` tries to open every file as a folder, which is slow for SA-1B's 22 million files.
        matches = re.compile(fnmatch.translate(name)).match
        top = os.path.join(self.root, folder)
        for place, _, names in os.walk(top, followlinks=True):
            relative = os.path.relpath(place, self.root)
            prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
            yield from (prefix + found for found in names if matches(found))


@dataclass(frozen=True)
class S3Files:
    """Objects below `s3://bucket/prefix`."""

    root: str

    def read_bytes(self, path: str) -> bytes:
        data: bytes = _s3().cat_file(self._key(path))
        return data

    def exists(self, path: str) -> bool:
        return bool(_s3().exists(self._key(path)))

    def glob(self, pattern: str) -> list[str]:
        """Matching paths, sorted; `**/` stands for any number of folders."""
        top = self._key("") + "/"
        return sorted(path.removeprefix(top) for path in _s3().glob(top + pattern))

    def _key(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.root.removeprefix("s3://"), path))


def _s3() -> Any:
    # fsspec keeps one filesystem per process; it is asked for anew each time so that S3Files pickles as a plain path.
    return fsspec.filesystem("s3", use_listings_cache=False)
