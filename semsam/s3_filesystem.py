"""S3 as a filesystem of pyarrow's, for libraries that want one: as much of it as they use.

pyarrow's own would write an empty object for each folder, which not every server takes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs

from semsam import s3_objects
from semsam.s3_objects import S3


class S3Files(pa.fs.FileSystemHandler):
    """Objects by `bucket/key`; `retry` is `semsam.storage.with_retries`.  Files are read whole, so they are small."""

    def __init__(self, retry: Callable[[Callable[[], Any], str], Any]) -> None:
        self._retry = retry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Files)

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pa.fs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pa.fs.FileSelector) -> list[pa.fs.FileInfo]:
        found, after = [], ""
        while after is not None:
            keys, folders, after = self._ask(s3_objects.page, selector.base_dir, selector.recursive, after)
            found += [pa.fs.FileInfo(f"{selector.base_dir}/{key}", pa.fs.FileType.File, size=keys[key]) for key in keys]
            found += [pa.fs.FileInfo(f"{selector.base_dir}/{one}", pa.fs.FileType.Directory) for one in folders]
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: there are no folders."""

    def delete_dir(self, path: str) -> None:
        self._ask(s3_objects.delete_all, path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._ask(s3_objects.delete_all, path)

    def delete_file(self, path: str) -> None:
        self._ask(s3_objects.delete, path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(self._ask(s3_objects.get, path))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        return pa.PythonFile(_Upload(lambda data: self._ask(s3_objects.put, path, [memoryview(data)])), mode="w")

    def open_append_stream(self, path: str, metadata: object) -> pa.NativeFile:
        raise NotImplementedError("nothing can be appended to an object")

    def copy_file(self, src: str, dest: str) -> None:
        self._ask(s3_objects.put, dest, [memoryview(self._ask(s3_objects.get, src))])

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("no bucket is deleted")

    def _ask(self, operation: Callable[..., Any], path: str, *arguments: object) -> Any:
        return self._retry(lambda: operation(S3 + path, *arguments), S3 + path)

    def _info(self, path: str) -> pa.fs.FileInfo:
        size = self._ask(s3_objects.size, path)
        if size is not None:
            return pa.fs.FileInfo(path, pa.fs.FileType.File, size=size)
        kind = pa.fs.FileType.Directory if self._ask(s3_objects.has_any, path) else pa.fs.FileType.NotFound
        return pa.fs.FileInfo(path, kind)


class _Upload(io.BytesIO):
    """What is written to it becomes an object when it is closed."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        super().__init__()
        self._put = put

    def close(self) -> None:
        if not self.closed:
            self._put(self.getvalue())
        super().close()
