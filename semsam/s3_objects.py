"""Objects in S3: what `semsam.storage` does with `s3://`, each operation one request.

botocore rather than pyarrow's filesystem, which asks for the size of whatever it opens, completes an upload that was
interrupted as if it had all of it, and gives no key of a listing before it has all of them.

Endpoint, region and credentials are botocore's own: from the environment (`AWS_ENDPOINT_URL_S3` / `AWS_ENDPOINT_URL`,
`AWS_REGION`, `AWS_ACCESS_KEY_ID`, ...), a profile, or the machine's role.  What goes wrong is an `OSError` of the kind
that fits; it names the endpoint, and never a key.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

S3 = "s3://"
# Bytes of one request of an upload; 10,000 of them, S3's limit, make 160 GB.
PART = 16 * 2**20
_PARTS_AT_ONCE = 4
_KEYS_AT_ONCE = 1000  # S3's limit, for listing and for deleting.
_REFUSALS = (401, 403)
_NO_CREDENTIALS = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give a role"
_client_lock = threading.Lock()


class NoSuchBucketError(OSError, ValueError):
    """The bucket does not exist at this endpoint, which a user can mend."""


def get(path: str, start: int = 0, size: int | None = None) -> bytes:
    """An object's bytes, `size` of them from `start` on or all; fewer where it ends."""
    if size == 0:
        return b""
    span = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
    try:
        with _translated():
            data: bytes = _client().get_object(**_place(path), **span)["Body"].read()
    except _PastTheEnd:
        return b""
    return data


def size(path: str) -> int | None:
    """An object's size in bytes; None where there is none."""
    try:
        with _translated():
            length: int = _client().head_object(**_place(path))["ContentLength"]
    except FileNotFoundError:
        return None
    return length


def put(path: str, pieces: Sequence[memoryview]) -> None:
    """Make or replace an object of pieces of memory, whole or not at all; of a few parts at a time copies are made."""
    *begins, size = accumulate((len(piece) for piece in pieces), initial=0)

    def read(start: int, length: int) -> bytes:
        first, last = bisect_right(begins, start) - 1, bisect_left(begins, start + length)
        some = zip(pieces[first:last], begins[first:last], strict=True)
        return b"".join(piece[max(start - begin, 0) : start + length - begin] for piece, begin in some)

    _put(path, size, read)


def put_file(path: str, file: Path) -> None:
    """Make or replace an object of a file's bytes; a few parts of them at a time are in memory."""

    def read(start: int, length: int) -> bytes:
        with file.open("rb") as opened:
            opened.seek(start)
            return opened.read(length)

    _put(path, file.stat().st_size, read)


def delete(path: str) -> None:
    """Delete an object, if it is there."""
    with suppress(FileNotFoundError), _translated():
        _client().delete_object(**_place(path))


def delete_all(path: str) -> None:
    """Delete all objects below a path, each once: a server that still lists them afterwards is not asked again."""
    bucket, top = _place(path)["Bucket"], _folder_key(path)
    after: str | None = ""
    while after is not None:
        keys, _, after = page(path, True, after)
        if not keys:
            continue
        wanted = {"Objects": [{"Key": top + key} for key in keys], "Quiet": True}
        with _translated():
            failed = _client().delete_objects(Bucket=bucket, Delete=wanted).get("Errors", [])
        if failed:
            raise OSError(f"{failed[0].get('Key')}: not deleted: {failed[0].get('Code')}")


def has_any(path: str) -> bool:
    """Whether there is any object below a path."""
    return bool(page(path, True, at_once=1)[0])


def page(
    path: str, recursive: bool, after: str = "", at_once: int = _KEYS_AT_ONCE
) -> tuple[dict[str, int], list[str], str | None]:
    """Some of the objects below a path with their sizes, unless `recursive` the folders right in it, and what follows.

    That is what to give as `after` for the next page, with its faults for the caller to try again; None at the end.
    """
    top = _folder_key(path)
    request: dict[str, Any] = {"Bucket": _place(path)["Bucket"], "Prefix": top, "MaxKeys": at_once}
    request |= {} if recursive else {"Delimiter": "/"}
    request |= {"ContinuationToken": after} if after else {}
    with _translated():
        found = _client().list_objects_v2(**request)
    keys = {row["Key"].removeprefix(top): row["Size"] for row in found.get("Contents", ())}
    folders = [row["Prefix"].removeprefix(top).rstrip("/") for row in found.get("CommonPrefixes", ())]
    return keys, folders, found["NextContinuationToken"] if found.get("IsTruncated") else None


def endpoint() -> str:
    """Where requests go, without what might be a password in it."""
    parts = urlsplit(_client().meta.endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _put(path: str, size: int, read: Callable[[int, int], bytes]) -> None:
    """An upload in one request, or in parts of which several are sent at a time: then one that fails leaves nothing."""
    place = _place(path)
    if size <= PART:
        with _translated():
            _client().put_object(**place, Body=read(0, size))
        return
    with _translated():
        place["UploadId"] = _client().create_multipart_upload(**place)["UploadId"]

    def send(number: int) -> dict[str, Any]:
        with _translated():
            sent = _client().upload_part(**place, PartNumber=number, Body=read((number - 1) * PART, PART))
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            parts = list(pool.map(send, range(1, -(-size // PART) + 1)))
        with _translated():
            _client().complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    except BaseException:  # An interrupt too.
        with suppress(OSError), _translated():
            _client().abort_multipart_upload(**place)
        raise


def _folder_key(path: str) -> str:
    key = _place(path)["Key"]
    return f"{key}/" if key else ""


def _place(path: str) -> dict[str, Any]:
    bucket, _, key = path.removeprefix(S3).partition("/")
    return {"Bucket": bucket, "Key": key}


def _client() -> Any:
    """The client for what the environment says now, one for all threads."""
    with _client_lock:  # Making one is not safe from several threads.
        return _client_for(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(maxsize=4)
def _client_for(environment: tuple[tuple[str, str], ...]) -> Any:
    import botocore.session
    from botocore.config import Config

    # Where it found credentials is of no interest in every worker of a job.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    config = Config(
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=32,
        # A fault of a moment; outages are for `semsam.storage.with_retries`.
        retries={"mode": "standard", "total_max_attempts": 2},
    )
    return botocore.session.Session().create_client("s3", config=config)


class _PastTheEnd(Exception):  # noqa: N818 - an answer, not an error.
    """The object ends before what was asked for."""


@contextmanager
def _translated() -> Iterator[None]:
    """Raises botocore's exceptions as Python's own."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except ClientError as error:
        raise _as_os_error(error) from None
    except (NoCredentialsError, PartialCredentialsError):
        raise PermissionError(_NO_CREDENTIALS) from None
    except BotoCoreError as error:
        # Its text may have the whole request in it.
        raise ConnectionError(f"no answer at {endpoint()} ({type(error).__name__})") from None


def _as_os_error(error: Any) -> Exception:
    code = str(error.response["Error"].get("Code", ""))
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return NoSuchBucketError(f"no such bucket at {endpoint()}")
    if status == 416:
        return _PastTheEnd()
    if status == 404 and code != "NoSuchUpload":
        return FileNotFoundError("no such object")
    if status in _REFUSALS or code in ("ExpiredToken", "InvalidToken"):
        # Without the server's own words, which may repeat the key that it was given.
        return PermissionError(f"refused by {endpoint()}: {code if not code.isdecimal() else 'forbidden'}")
    return OSError(f"{endpoint()} answered {status} {code}".rstrip())
