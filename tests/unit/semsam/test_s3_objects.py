"""What is asked of an S3 server, and what becomes of its refusals: seen by a proxy before a real one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cluster import stable_path
from semsam import storage
from semsam.data.manifest import Vocabulary
from semsam.data.shards import Split
from semsam.s3_objects import PART, NoSuchBucketError
from semsam.storage import Folder, NoSuchFileError, normal_path
from tests.prepared_split import write_split
from tests.s3_server import CountingProxy, S3Server, free_port
from tests.unit.semsam.data.test_shards import RECORDS, SHARDS

ROOT = Path(__file__).parents[3]
LONG = bytes(range(256)) * (2 * PART // 256) + b"end"  # Three parts.


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingProxy]:
    proxy = CountingProxy(s3.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(storage, "BACKOFF", ())
    yield proxy
    proxy.close()


def test_each_operation_is_one_request(proxy: CountingProxy, bucket: str) -> None:
    folder = Folder(f"{bucket}/one")
    folder.write("a/x", b"0123456789")
    assert proxy.take() == ["PUT /bucket/one/a/x"]
    assert folder.read("a/x") == b"0123456789"
    assert proxy.take() == ["GET /bucket/one/a/x"]
    assert folder.size("a/x") == 10
    assert folder.exists("a/x")
    assert proxy.take() == ["HEAD /bucket/one/a/x"] * 2
    file = folder.open("a/x", 10)
    assert proxy.take() == []
    assert (file.read_at(3, 4), file.read_at(9, 8), file.read_at(9, 10), file.read_at(0, 4)) == (
        b"456",
        b"89",
        b"",
        b"",
    )
    assert proxy.take() == ["GET /bucket/one/a/x"] * 3
    assert (folder.names(), folder.folders(), folder.is_there(), folder.glob("**/*")) == ([], ["a"], True, ["a/x"])
    assert proxy.take() == ["GET /bucket"] * 4
    folder.remove("a/x")
    assert proxy.take() == ["DELETE /bucket/one/a/x"]


def test_a_split_costs_one_request_a_shard_one_and_a_row_one(proxy: CountingProxy, bucket: str, tmp_path: Path) -> None:
    local = write_split(tmp_path / "paco" / "train", SHARDS, Vocabulary(("car",), ("wheel",), (True,)))
    for path in local.iterdir():
        Folder(f"{bucket}/paco/train").write(path.name, path.read_bytes())
    proxy.take()
    split = Split(f"{bucket}/paco/train")
    assert proxy.take() == ["GET /bucket/paco/train/manifest.json"]
    assert split.record(0) == RECORDS[0]
    shard = "GET /bucket/paco/train/shard-00000"
    assert proxy.take() == [f"{shard}.rows", f"{shard}.arrow"]
    assert [split.record(1), split.record(2), split.record(0)] == [RECORDS[1], RECORDS[2], RECORDS[0]]
    assert proxy.take() == [f"{shard}.arrow"] * 3


def test_a_long_file_goes_in_parts_and_reads_back(proxy: CountingProxy, bucket: str) -> None:
    folder = Folder(f"{bucket}/long")
    folder.write("bytes", LONG)
    with folder.publishing("file") as draft:
        draft.write_bytes(LONG)
    methods = [line.split()[0] for line in proxy.take()]
    assert methods == ["POST", "PUT", "PUT", "PUT", "POST"] * 2
    assert folder.read("bytes") == folder.read("file") == LONG


@pytest.mark.parametrize("status", [403, 500])
@pytest.mark.parametrize("what", ["partNumber=2", "POST uploadId="])
def test_an_upload_that_fails_leaves_what_was_there(proxy: CountingProxy, s3: S3Server, status: int, what: str) -> None:
    folder = Folder(f"{s3.uri}/fails")
    folder.write("x", b"before")
    method, _, part = what.rpartition(" ")
    proxy.refuse = lambda asked, path: (status, "AccessDenied") if part in path and asked == (method or "PUT") else None
    with pytest.raises(OSError, match=f"^{s3.uri}/fails/x: "):
        folder.write("x", LONG)
    assert proxy.seen[-1].method == "DELETE"
    assert folder.read("x") == b"before"
    assert folder.names() == ["x"]
    assert [path.name for path in (s3.bucket / "fails").iterdir()] == ["x"]


def test_a_killed_writer_leaves_no_object(proxy: CountingProxy, bucket: str) -> None:
    script = f"from semsam.storage import Folder; Folder({bucket!r} + '/killed').write('x', bytes({12 * PART}))"
    writer = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not any("partNumber" in one.path for one in proxy.seen):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not Folder(f"{bucket}/killed").exists("x")
    assert Folder(f"{bucket}/killed").names() == []


def test_an_outage_in_the_middle_of_a_listing_goes_on_from_the_last_page(
    proxy: CountingProxy, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (s3.bucket / "many").mkdir()
    for number in range(2500):
        (s3.bucket / "many" / f"{number:04d}").touch()
    s3.stop()
    s3.start()  # What was put into its folder from outside is seen now.
    monkeypatch.setattr(storage, "BACKOFF", (0.0,) * 3)
    folder, failures = Folder(f"{s3.uri}/many"), [(503, "SlowDown")] * 3

    def refuse(method: str, path: str) -> tuple[int, str] | None:
        return failures.pop() if "continuation-token" in path and failures else None

    proxy.refuse = refuse
    assert sorted(folder.walk()) == [f"{number:04d}" for number in range(2500)]
    assert [one.status for one in proxy.seen] == [200, 503, 503, 503, 200, 200]


def test_what_a_user_got_wrong_is_said_at_once_and_without_a_secret(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started, path = time.monotonic(), f"{s3.uri}/x"
    with pytest.raises(ValueError, match=rf"^output: s3://nowhere/x: no such bucket at {s3.endpoint}$"):
        stable_path("s3://nowhere/x", "output")
    with pytest.raises(NoSuchBucketError, match=rf"^s3://nowhere/x: no such bucket at {s3.endpoint}$"):
        Folder("s3://nowhere").read("x")
    for variable, value, word in (
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "not-the-key", "InvalidAccessKeyId"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(PermissionError, match=rf"^{path}: refused by {s3.endpoint}: {word}$"):
                Folder(s3.uri).read("x")
            with pytest.raises(PermissionError, match=rf"^{path}: refused by {s3.endpoint}: forbidden$"):
                Folder(s3.uri).exists("x")
            with pytest.raises(PermissionError, match=rf"^{path}: refused by {s3.endpoint}: {word}$"):
                Folder(s3.uri).write("x", b"")
    with monkeypatch.context() as patch:
        for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
            patch.delenv(variable)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(PermissionError, match=f"^{path}: no credentials: set AWS_ACCESS_KEY_ID"):
            Folder(s3.uri).read("x")
    with pytest.raises(NoSuchFileError, match=f"^{path}: no such file$"):
        Folder(s3.uri).read("x")
    with monkeypatch.context() as patch:
        port = free_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://somebody:s3cret@127.0.0.1:{port}")
        with pytest.raises(ValueError, match=rf"^output: {path}: no answer at http://127.0.0.1:{port} \(") as caught:
            stable_path(path, "output")
        assert "s3cret" not in str(caught.value)
    assert time.monotonic() - started < 20
    said = "".join(capfd.readouterr())
    assert s3.secret not in said


@pytest.mark.parametrize("path", ["s3://key:secret@bucket/x", "s3://secret@bucket"])
def test_keys_in_a_path_are_refused_and_not_repeated(path: str) -> None:
    with pytest.raises(ValueError, match=r"s3://...@bucket: keys for S3 belong in the environment") as caught:
        normal_path(path)
    assert not re.search("key:|secret", str(caught.value))


def test_credentials_may_come_from_a_profile(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = f"[mine]\naws_access_key_id = {s3.key}\naws_secret_access_key = {s3.secret}\nregion = us-east-1\n"
    (tmp_path / "credentials").write_text(keys)
    for name in [name for name in os.environ if name.startswith("AWS_") and ("KEY" in name or "REGION" in name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    Folder(s3.uri).write("profile", b"1")
    assert Folder(s3.uri).read("profile") == b"1"
