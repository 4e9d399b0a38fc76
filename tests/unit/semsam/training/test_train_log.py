"""The log of a run on S3: an addition is a request, at any age of the run, and whatever is killed reads on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from semsam.storage import Folder
from semsam.training.train_log import LOG_FILE, TrainLog, read_log
from tests.s3_server import CountingProxy, S3Server


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingProxy]:
    started = CountingProxy(s3.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", started.endpoint)
    yield started
    started.close()


def test_an_addition_is_one_request_however_many_there_are(proxy: CountingProxy, bucket: str) -> None:
    run = Folder(f"{bucket}/long")
    log = TrainLog(run, 0)
    for step in range(30):
        log.add({"step": step})
        proxy.take()
        log.flush()
        assert proxy.take() == [f"PUT /bucket/long/{LOG_FILE}.parts/{step:08d}"]
    assert [entry["step"] for entry in read_log(run)] == list(range(30))


@pytest.mark.parametrize("lost", ["nothing", "the last addition", "an old addition stayed"])
def test_an_attempt_after_a_killed_one_counts_anew_and_reads_as_one(
    proxy: CountingProxy, bucket: str, lost: str
) -> None:
    run = Folder(f"{bucket}/{lost.replace(' ', '-')}")
    first = TrainLog(run, 0)
    for step in range(6):
        first.add({"step": step, "by": 1})
        if step < 5 or lost != "the last addition":
            first.flush()
    left = run.read(f"{LOG_FILE}.parts/00000003")
    known = 4  # The checkpoint to go on from is that after step 4.
    second = TrainLog(run, known)
    if lost == "an old addition stayed":  # It was killed between writing the log anew and dropping the additions.
        run.write(f"{LOG_FILE}.parts/00000003", left)
    for step in range(known, 8):
        second.add({"step": step, "by": 2})
        second.flush()
    assert [entry["step"] for entry in read_log(run)] == list(range(8))
    assert [entry["by"] for entry in read_log(run)] == [1] * 4 + [2] * 4
