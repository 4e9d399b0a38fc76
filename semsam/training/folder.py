"""A run's folder, local or on S3, behind the few operations that a training needs."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.fs

from semsam.data.shards import open_filesystem, with_retries


class Folder:
    """Files by name in a local folder or below an `s3://` prefix.

    Reading a file that is not there raises `ValueError` with its name.  Storage that fails is asked again for some
    seconds, and then raises `OSError`.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._filesystem, self._path = open_filesystem(self.uri)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether files can be appended to."""
        return isinstance(self._filesystem, pyarrow.fs.LocalFileSystem)

    def open(self, name: str) -> pa.NativeFile:
        """A file for reading in any order."""
        try:
            return with_retries(lambda: self._filesystem.open_input_file(f"{self._path}/{name}"))
        except FileNotFoundError:
            raise ValueError(f"{self.uri}/{name}: no such file") from None

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        with self.open(name) as file:
            return with_retries(lambda: bytes(file.read_at(file.size(), 0)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that nobody ever sees a part of it."""
        with_retries(lambda: self._write(f"{self._path}/{name}", data))

    def _write(self, path: str, data: bytes) -> None:
        if not self.is_local:
            with self._filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        self._filesystem.create_dir(self._path)
        with self._filesystem.open_output_stream(f"{path}.part") as stream:
            stream.write(data)
        self._filesystem.move(f"{path}.part", path)

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        info = with_retries(lambda: self._filesystem.get_file_info(f"{self._path}/{name}"))
        return bool(info.type == pyarrow.fs.FileType.File)

    def folders(self) -> list[str]:
        """Names of the folders in this one; none where it does not exist."""
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True)
        found = with_retries(lambda: self._filesystem.get_file_info(selector))
        return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory)

    def delete(self, first: str | None = None) -> None:
        """Remove this folder, if it is there, with what is in it; before anything else the file `first`."""
        if self._filesystem.get_file_info(self._path).type != pyarrow.fs.FileType.Directory:
            return
        if first is not None and self.exists(first):
            self._filesystem.delete_file(f"{self._path}/{first}")
        self._filesystem.delete_dir(self._path)
