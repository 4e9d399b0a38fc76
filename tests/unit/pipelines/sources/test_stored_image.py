"""The image of a record in every source: too large, too wide for a JPEG, of an unusual JPEG, blamed by its own path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.sources.source import BadSample
from pipelines.sources.stored_image import read_image
from semsam.data.images import decode_jpeg, encode_jpeg
from semsam.storage import existing_folder


def reason_and_detail(root: Path, *paths: str) -> tuple[str, str]:
    with pytest.raises(BadSample) as caught:
        read_image(existing_folder(str(root)), paths, "7")
    return caught.value.rejected.reason, caught.value.rejected.detail


def test_an_image_beyond_the_sources_limit_is_counted_by_that_reason(native: Any) -> None:
    entry = native.index().entries[0]
    files = existing_folder(str(native.root))
    enough = replace(native.source, max_pixels=24 * 32)
    assert enough.read(files, native.split, entry).record == native.read(entry).record
    with pytest.raises(BadSample) as caught:
        replace(native.source, max_pixels=24 * 32 - 1).read(files, native.split, entry)
    assert caught.value.rejected.reason == "image too large"
    assert entry.image in caught.value.rejected.detail
    assert "24 x 32 pixels" in caught.value.rejected.detail


def test_a_huge_jpeg_is_not_decoded(tmp_path: Path) -> None:
    data = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = (65_500).to_bytes(2, "big") * 2
    (tmp_path / "huge.jpg").write_bytes(data)
    reason, detail = reason_and_detail(tmp_path, "huge.jpg")
    assert reason == "image too large"
    assert "huge.jpg: image too large: 65500 x 65500 pixels" in detail


def test_an_image_that_no_jpeg_can_hold_is_too_large(tmp_path: Path) -> None:
    Image.new("1", (65_501, 2)).save(tmp_path / "wide.png")
    assert reason_and_detail(tmp_path, "wide.png")[0] == "image too large"


def test_the_file_that_was_read_is_the_one_that_is_blamed(tmp_path: Path) -> None:
    (tmp_path / "second.jpg").write_bytes(b"\xff\xd8")
    reason, detail = reason_and_detail(tmp_path, "first.jpg", "second.jpg")
    assert reason == "broken image"
    assert detail.startswith(f"{tmp_path}/second.jpg: ")


@pytest.mark.parametrize("sampling", [0x14, 0x31])
def test_a_jpeg_that_the_fast_decoder_cannot_read_becomes_one_that_it_can(tmp_path: Path, sampling: int) -> None:
    pixels = np.full((24, 32, 3), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.jpg")
    data = bytearray((tmp_path / "odd.jpg").read_bytes())
    data[data.index(b"\xff\xc0") + 11] = sampling
    (tmp_path / "odd.jpg").write_bytes(data)
    stored = read_image(existing_folder(str(tmp_path)), ["odd.jpg"], "7")
    assert stored.data != data
    assert decode_jpeg(stored.data).shape == (stored.height, stored.width, 3) == (24, 32, 3)
