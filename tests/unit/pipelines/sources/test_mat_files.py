"""A .mat file from anywhere is read as values, or refused: nothing of it is run, and little memory taken for it."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io

from pipelines.sources.mat_files import load_variable


def mat(value: object, compress: bool = True) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, {"anno": value}, do_compression=compress)
    return file.getvalue()


@pytest.mark.parametrize("compress", [True, False])
def test_a_variable_comes_as_scipy_reads_it(compress: bool) -> None:
    value = np.arange(12).reshape(3, 4)
    data = mat(value, compress)
    np.testing.assert_array_equal(load_variable(data, "anno"), value)
    with pytest.raises(ValueError, match="no variable 'other'"):
        load_variable(data, "other")


def test_what_swells_beyond_the_limit_is_refused() -> None:
    data = mat(np.zeros((3000, 4000), np.uint8))
    assert len(data) < 20_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 100000 bytes when decompressed"):
        load_variable(data, "anno", max_bytes=100_000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert load_variable(data, "anno").shape == (3000, 4000)


def test_the_limit_holds_for_all_variables_together() -> None:
    file = io.BytesIO()
    scipy.io.savemat(file, {"anno": np.zeros(60_000), "other": np.zeros(60_000)}, do_compression=True)
    load_variable(file.getvalue(), "anno", max_bytes=1_000_000)
    with pytest.raises(ValueError, match="when decompressed"):
        load_variable(file.getvalue(), "anno", max_bytes=500_000)


@pytest.mark.parametrize("compress", [True, False])
def test_sizes_that_the_file_does_not_hold_are_refused(compress: bool) -> None:
    data = mat(np.zeros((3, 5), np.uint8), compress=False)
    claimed = data.replace(struct.pack("<ii", 3, 5), struct.pack("<ii", 60_000, 60_000))
    assert claimed != data
    if compress:
        packed = zlib.compress(claimed[128:])
        claimed = claimed[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match=r"no readable \.mat file"):
        load_variable(claimed, "anno")


@pytest.mark.parametrize(
    "start", [b"\x89HDF\r\n\x1a\n", b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n"]
)
def test_the_format_of_matlab_7_3_is_named(start: bytes) -> None:
    with pytest.raises(ValueError, match=r"MATLAB 7\.3, which is HDF5"):
        load_variable(start.ljust(2000, b"\0"), "anno")


@pytest.mark.parametrize("compress", [True, False])
def test_a_cut_file_is_refused(compress: bool) -> None:
    data = mat(np.arange(500.0), compress)
    for kept in (0, 3, 100, 128, 131, 140, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=r"no readable|no variable|cut short"):
            load_variable(data[:kept], "anno")


def test_a_flipped_bit_of_what_is_compressed_is_noticed() -> None:
    value = np.random.default_rng(0).integers(0, 2, (20, 30)).astype(np.uint8)
    data, silent = mat(value), 0
    for place in range(136, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        try:
            found = load_variable(bytes(damaged), "anno")
        except ValueError:
            continue
        silent += 1
        np.testing.assert_array_equal(found, value)
    assert silent <= 1  # The last byte before the checksum has bits that stand for nothing.
