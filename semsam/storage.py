"""The one way to files: local folders and `s3://bucket/prefix`, through the same few operations.

Files appear whole or not at all.  Storage that fails is asked again for half a minute; what it raises after that, and
at once what no second try would mend (no space, no permission, no such file), begins with the path.  How S3 is reached
stands in `semsam.s3_objects`.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs

from semsam import s3_objects
from semsam.s3_filesystem import S3Files
from semsam.s3_objects import NoSuchBucketError

T = TypeVar("T")

S3 = s3_objects.S3
CHUNK = 8 * 1024 * 1024
# Seconds between attempts at something that storage refuses, on top of what the S3 client itself tries again.
BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
# What stays as it is however often one asks.
_LASTING = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NoSuchBucketError,
)
_LASTING_NUMBERS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP, errno.EINVAL)


class NoSuchFileError(FileNotFoundError, ValueError):
    """A path that leads to no file: storage works, and a user can mend it."""


def normal_path(path: str | os.PathLike[str]) -> str:
    """The path as every job and every process understands it: absolute, `~` expanded, without a slash at its end.

    `s3://bucket/prefix` stays what it is.  Raises `ValueError` for other schemes and for what is no path.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{path!r}: expected a local path or s3://")
    if text.startswith(S3):
        bucket, _, key = text.removeprefix(S3).partition("/")
        if not bucket:
            raise ValueError(f"{text}: no bucket")
        if "@" in bucket:  # Not repeated: what stands before it may be a password.
            raise ValueError(
                f"{S3}...@{bucket.rpartition('@')[2]}: keys for S3 belong in the environment, not in a path"
            )
        return f"{S3}{bucket}/{key}".rstrip("/")
    if "://" in text:
        raise ValueError(f"{text}: expected a local path or s3://")
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:  # `~somebody` who has no home here.
        raise ValueError(f"{text}: {error}") from None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of one file; `NoSuchFileError` where there is none."""
    folder, _, name = normal_path(path).rpartition("/")
    return Folder(folder or "/").read(name)


def with_retries(attempt: Callable[[], T], path: str) -> T:
    """What `attempt` returns, asked again after each of `BACKOFF` where storage fails, for most such faults pass.

    What it raises in the end begins with `path`: `NoSuchFileError` where there is no such file, else an `OSError`.
    """
    for delay in (*BACKOFF, None):
        try:
            return attempt()
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchFileError(f"{path}: no such file") from None
        except OSError as error:
            if delay is None or is_lasting(error):
                raise _named(error, path) from error
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def is_lasting(error: OSError) -> bool:
    """Whether this stays as it is however often one asks: no space, no permission, no such file."""
    return isinstance(error, _LASTING) or error.errno in _LASTING_NUMBERS or "is a directory" in str(error)


class RangeFile:
    """A file of known size, read at any place.  Safe from several threads: no position is shared."""

    def __init__(self, path: str, size: int, read_at: Callable[[int, int], bytes]) -> None:
        self.path = path
        self.size = size
        self._read_at = read_at

    def read_at(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on: fewer where the file ends."""
        return with_retries(lambda: self._read_at(size, offset), self.path)


class Folder:
    """A folder, local or below `s3://bucket/prefix`.  It need not exist; writing makes it.  Pickles as its path.

    Names are paths below it, with forward slashes.  One that leads out of it raises `ValueError`, unless it leads into
    one of `neighbours`: the files of a dataset, or a sidecar, may name nothing else on this machine.
    """

    def __init__(self, path: str | os.PathLike[str], neighbours: Sequence[str] = ()) -> None:
        self.path = normal_path(path)
        self.neighbours = tuple(normal_path(one) for one in neighbours)

    def __truediv__(self, name: str) -> Folder:
        return Folder(self._full(name))

    def __reduce__(self) -> tuple[type[Folder], tuple[str, tuple[str, ...]]]:
        return type(self), (self.path, self.neighbours)

    def __repr__(self) -> str:
        return f"Folder({self.path!r})"

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of a file system."""
        return not self.path.startswith(S3)

    # Reading

    def read(self, name: str) -> bytes:
        """A file's bytes; `NoSuchFileError` where there is none."""
        path = self._full(name)

        def attempt() -> bytes:
            if path.startswith(S3):
                return s3_objects.get(path)
            filesystem, place = open_filesystem(path)
            with filesystem.open_input_file(place) as file:
                data: bytes = file.read()
            return data

        return with_retries(attempt, path)

    def read_if_there(self, name: str) -> bytes | None:
        """A small file's bytes; None where there is none."""
        try:
            return self.read(name)
        except NoSuchFileError:
            return None

    def open(self, name: str, size: int | None = None) -> RangeFile:
        """A file for reading at any place; `NoSuchFileError` where there is none.

        Whoever knows its `size` spares S3 the question: then it is looked for when it is read.
        """
        path = self._full(name)
        if not path.startswith(S3):
            filesystem, place = open_filesystem(path)
            file = with_retries(lambda: filesystem.open_input_file(place), path)
            return RangeFile(path, file.size(), file.read_at)
        found = self.size(name) if size is None else size
        if found is None:
            raise NoSuchFileError(f"{path}: no such file")
        return RangeFile(path, found, lambda length, offset: s3_objects.get(path, offset, length))

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None where there is none."""
        path = self._full(name)
        if path.startswith(S3):
            return with_retries(lambda: s3_objects.size(path), path)
        filesystem, place = open_filesystem(path)
        size: int | None = with_retries(lambda: filesystem.get_file_info(place), path).size
        return size

    def sha256(self, name: str) -> str | None:
        """The digest of a file's bytes; None where there is none."""
        try:
            file = self.open(name)
        except NoSuchFileError:
            return None
        digest = hashlib.sha256()
        for start in range(0, file.size, CHUNK):
            digest.update(file.read_at(CHUNK, start))
        return digest.hexdigest()

    # Listing

    def is_there(self) -> bool:
        """Whether the folder exists, or on S3 holds anything."""
        if self.is_local:
            return os.path.isdir(self.path)
        return with_retries(lambda: s3_objects.has_any(self.path), self.path)

    def sizes(self) -> dict[str, int]:
        """The files right in this folder and their sizes, sorted by name; hidden ones (drafts) are left out."""
        return {name: size for name, size in sorted(self._list()[0].items()) if not name.startswith(".")}

    def names(self) -> list[str]:
        """The names of the files right in this folder, sorted; hidden ones (drafts) are left out."""
        return list(self.sizes())

    def folders(self) -> list[str]:
        """The names of the folders right in this one, sorted; none where it does not exist."""
        return sorted(self._list()[1])

    def glob(self, pattern: str) -> list[str]:
        """Sorted names of the files that fit `<folder>/<name with wildcards>`.

        `<folder>/**/<name>` looks through all folders below, too; links among them are followed, each folder once.
        """
        place, recursive, name = pattern.partition("**/")
        if not recursive:
            place, name = posixpath.split(pattern)
        fits = re.compile(fnmatch.translate(name)).match
        found = self.walk(place.strip("/"), recursive=bool(recursive))
        return sorted(one for one in found if fits(one.rpartition("/")[2]))

    def walk(self, place: str = "", *, recursive: bool = True) -> Iterator[str]:
        """The names of all files in a folder, and below it, as they are found: in no order, and none is kept."""
        return self._local_names(place, recursive) if self.is_local else self._s3_names(place, recursive)

    # Writing

    def write(self, name: str, data: bytes | Sequence[memoryview]) -> None:
        """Write a file, so that nobody ever sees a part of it; of many pieces of memory no copy is made."""
        pieces = [memoryview(data)] if isinstance(data, bytes) else data
        if not self.is_local:
            path = self._full(name)
            with_retries(lambda: s3_objects.put(path, pieces), path)
            return
        with self.publishing(name) as draft, draft.open("wb") as file:
            for piece in pieces:
                file.write(piece)

    @contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """A local path to write to; the file appears under `name` when the block ends without an exception."""
        path = self._full(name)
        if self.is_local:
            with _named_errors(path), _local_draft(Path(path)) as draft:
                yield draft
            return
        with tempfile.TemporaryDirectory() as temporary:
            draft = Path(temporary) / posixpath.basename(name)
            yield draft
            with_retries(lambda: s3_objects.put_file(path, draft), path)

    def append(self, name: str, data: bytes, number: int | None = None) -> None:
        """Add to what `read_appended` gives; on S3, where nothing can be appended to, as an object of its own.

        Whoever knows the `number` of additions before spares S3 the listing of them.
        """
        if not self.is_local:
            number = len((self / f"{name}.parts").sizes()) if number is None else number
            self.write(f"{name}.parts/{number:08d}", data)
            return
        path = self._full(name)
        with _named_errors(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "ab", buffering=0) as file:
                size, left = file.tell(), memoryview(data)
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError:
                    file.truncate(size)  # Of what has no room nothing is left.
                    raise

    def read_appended(self, name: str) -> bytes:
        """What `write_appended` and `append` have put under a name; empty where nothing has."""
        parts = [] if self.is_local else [f"{name}.parts/{part}" for part in (self / f"{name}.parts").names()]
        return (self.read_if_there(name) or b"") + b"".join(map(self.read, parts))

    def write_appended(self, name: str, data: bytes) -> None:
        """Begin what `append` adds to with `data`, in place of what there was."""
        self.write(name, data)
        if not self.is_local:
            (self / f"{name}.parts").delete()

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        path = self._full(name)
        if not self.is_local:
            with_retries(lambda: s3_objects.delete(path), path)
        else:
            with _named_errors(path), suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)

    def delete(self, first: str | None = None) -> None:
        """Remove this folder, if it is there, with what is in it; before anything else the file `first`."""
        if first is not None:
            self.remove(first)
        if not self.is_local:
            with_retries(lambda: s3_objects.delete_all(self.path), self.path)
        elif self.is_there():
            filesystem, place = open_filesystem(self.path)
            with_retries(lambda: filesystem.delete_dir(place), self.path)

    # Inside

    def _full(self, name: str) -> str:
        """The path of a name, which lies below this folder or a neighbour."""
        below = posixpath.normpath(name)
        if not below.startswith(("/", "..", "s3:")):
            return self.path if below == "." else f"{self.path.rstrip('/')}/{below}"
        joined = name if name.startswith(S3) else posixpath.join(self.path, name)
        scheme = S3 if joined.startswith(S3) else ""
        full = scheme + posixpath.normpath(joined.removeprefix(S3))
        for allowed in (self.path, *self.neighbours):
            if full.startswith(f"{allowed.rstrip('/')}/"):
                return full
        raise ValueError(f"{self.path}: {name!r} leads out of this folder")

    def _list(self) -> tuple[dict[str, int], list[str]]:
        """The files right in this folder, with their sizes, and the folders."""
        if self.is_local:
            selector = pa.fs.FileSelector(self.path, allow_not_found=True)
            filesystem, _ = open_filesystem(self.path)
            found = with_retries(lambda: filesystem.get_file_info(selector), self.path)
            files = {info.base_name: info.size for info in found if info.type == pa.fs.FileType.File}
            return files, [info.base_name for info in found if info.type == pa.fs.FileType.Directory]
        files, folders = {}, []
        for keys, prefixes in _pages(self.path, recursive=False):
            files.update({key: size for key, size in keys.items() if key})
            folders += prefixes
        return files, folders

    def _s3_names(self, place: str, recursive: bool) -> Iterator[str]:
        below = f"{place}/" if place else ""
        for keys, _ in _pages(self._full(place), recursive=recursive):
            # A key that ends with a slash is what some tools leave for an empty folder.
            yield from (f"{below}{key}" for key in keys if key and not key.endswith("/"))

    def _local_names(self, place: str, recursive: bool) -> Iterator[str]:
        """File by file: a folder may have the 22 million of SA-1B, of which no list is made."""
        seen: set[tuple[int, int]] = set()
        waiting = [place]
        while waiting:
            below = waiting.pop()
            top = self._full(below)
            if not os.path.isdir(top):  # A link that leads nowhere, or no folder at all.
                continue
            status = os.stat(top)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            folders: list[tuple[bool, str]] = []
            with _named_errors(top), os.scandir(top) as found:
                for entry in found:
                    name = f"{below}/{entry.name}" if below else entry.name
                    if entry.is_dir():
                        folders.append((entry.is_symlink(), name))
                    else:
                        yield name
            if recursive:  # A folder's own name comes before that of a link to it.
                waiting += [name for _, name in sorted(folders, reverse=True)]


def existing_folder(path: str | os.PathLike[str], neighbours: Sequence[str] = ()) -> Folder:
    """A folder whose files are to be read; `neighbours` as in `Folder`, or relative to it (`../coco`).

    Raises `ValueError` for one on this machine that does not exist.
    """
    folder = Folder(path)
    near = [one if one.startswith((S3, "/", "~")) else f"{folder.path}/{one}" for one in neighbours]
    near = [one if one.startswith(S3) else posixpath.normpath(normal_path(one)) for one in near]
    for place in (folder.path, *near):
        if not place.startswith(S3) and not os.path.isdir(place):
            raise ValueError(f"{place}: no such folder")
    return Folder(folder.path, near)


def check_answers(path: str) -> None:
    """Raise `ValueError` where S3 refuses a path or nobody answers, at once: for a job to ask before it begins."""
    if path.startswith(S3):
        try:
            s3_objects.has_any(path)
        except OSError as error:
            raise ValueError(f"{path}: {error}") from None


def open_filesystem(path: str) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem of a path in its normal form, and the path in it: for libraries that want these."""
    if not path.startswith(S3):
        return pa.fs.LocalFileSystem(), path
    return pa.fs.PyFileSystem(S3Files(with_retries)), path.removeprefix(S3)


def _pages(path: str, *, recursive: bool) -> Iterator[tuple[dict[str, int], list[str]]]:
    """Pages of keys, each of which is asked for again where storage fails, from where the last one ended."""
    after: str | None = ""
    while after is not None:
        ask = partial(s3_objects.page, path, recursive, after)
        keys, folders, after = with_retries(ask, path)
        yield keys, folders


@contextmanager
def _local_draft(path: Path) -> Iterator[Path]:
    """A hidden file beside `path`, which takes its place when all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{path.name}.*.draft"):  # Of a task that was killed.
        left_over.unlink(missing_ok=True)
    draft = path.parent / f".{path.name}.{uuid4().hex}.draft"
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())  # Else a machine that loses power could keep the name and not the content.
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _named(error, path) from error


def _named(error: OSError, path: str) -> OSError:
    """The error with the path before it, of the same kind where that is one of Python's own."""
    if str(error).startswith(path):
        return error
    if isinstance(error, IsADirectoryError) or "is a directory" in str(error):
        return NoSuchFileError(f"{path}: a folder, not a file")
    kind = type(error) if type(error).__module__ == "builtins" or isinstance(error, NoSuchBucketError) else OSError
    reason = error.strerror if error.errno is not None and error.strerror else str(error)
    named = kind(f"{path}: {reason}")
    named.errno = error.errno
    return named
