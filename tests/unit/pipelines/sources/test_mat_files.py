"""A .mat file from anywhere is read as values, or refused: nothing of it is run, and little memory taken for it."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from pipelines.sources.mat_files import Structs, load_variable


def mat(value: object, compress: bool = True) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, {"anno": value}, do_compression=compress)
    return file.getvalue()


NUMBERS = [
    np.arange(12, dtype=kind).reshape(3, 4) for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
]


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("value", [*NUMBERS, np.zeros((0, 3)), np.ones((2, 3, 4)), np.eye(4) > 0, 7, 0.5])
def test_numbers_come_as_scipy_reads_them(value: object, compress: bool) -> None:
    data = mat(value, compress)
    expected = scipy.io.loadmat(io.BytesIO(data))["anno"]
    found = load_variable(data, "anno")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="no variable 'other'"):
        load_variable(data, "other")


@pytest.mark.parametrize("line", ["", "a", "four", "a longer line of text", "größer 物"])
def test_a_line_of_text_comes_as_it_was_written(line: str) -> None:
    assert load_variable(mat(line), "anno") == line


def test_structs_keep_their_rows_and_fields() -> None:
    rows = np.empty((1, 2), [("name", object), ("inner", object)])
    rows[0, 0], rows[0, 1] = ("one", {"x": 1, "y": "z"}), ("two", np.zeros((0, 0)))
    found = load_variable(mat(rows), "anno")
    assert found.fields == ("name", "inner")
    assert [row["name"] for row in found.rows] == ["one", "two"]
    [inner] = found.rows[0]["inner"].rows
    assert (inner["x"].tolist(), inner["y"]) == ([[1]], "z")
    assert found.rows[1]["inner"].size == 0
    assert load_variable(mat(rows[:, :0]), "anno") == Structs(("name", "inner"), [])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.array([[1, "x"]], object), "cell array"),
        (scipy.sparse.csc_matrix(np.eye(3)), "sparse array"),
        (np.array([1j]), "complex array"),
        (["one", "two"], "text of several lines"),
    ],
)
def test_other_kinds_are_named(value: object, kind: str) -> None:
    assert load_variable(mat(value), "anno").kind == kind


def nested(depth: int) -> dict:
    return {"inner": nested(depth - 1)} if depth else {"x": 1}


def test_structs_in_structs_end_somewhere() -> None:
    found = load_variable(mat(nested(30)), "anno")
    while isinstance(found, Structs):
        found = found.rows[0]["inner"]
    assert found.kind == "struct too deep"


def test_a_file_of_a_big_endian_machine_is_read_alike() -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    size, flags = struct.pack(">ii", 1, 3), struct.pack(">II", 11, 0)
    numbers = element(4, struct.pack(">HHH", 1, 256, 65_535))
    matrix = element(14, element(6, flags) + element(5, size) + element(1, b"anno") + numbers)
    assert load_variable(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + matrix, "anno").tolist() == [[1, 256, 65_535]]


def test_a_damaged_file_ends_in_nothing_but_a_refusal() -> None:
    rows = np.empty((1, 2), [("name", object), ("mask", object)])
    rows[0, 0], rows[0, 1] = ("one", np.ones((5, 6), np.uint8)), ("two", {"x": np.arange(3.0), "text": "lines"})
    data, rng, refused = mat(rows, compress=False), np.random.default_rng(0), 0
    for _ in range(3000):
        damaged = bytearray(data)
        for place in rng.integers(128, len(data) - 4, rng.integers(1, 4)):
            new = [rng.bytes(1), b"\xff\xff\xff\xff", bytes(4), struct.pack("<I", rng.integers(64))][rng.integers(4)]
            damaged[place : place + len(new)] = new
        try:
            load_variable(bytes(damaged), "anno")
        except ValueError:
            refused += 1
    assert 0 < refused < 3000


def test_what_swells_beyond_the_limit_is_refused() -> None:
    data = mat(np.zeros((3000, 4000), np.uint8))
    assert len(data) < 20_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 100000 bytes when decompressed"):
        load_variable(data, "anno", max_bytes=100_000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert load_variable(data, "anno").shape == (3000, 4000)


@pytest.mark.parametrize("compress", [True, False])
def test_sizes_that_the_file_does_not_hold_are_refused(compress: bool) -> None:
    data = mat(np.zeros((3, 5), np.uint8), compress=False)
    claimed = data.replace(struct.pack("<ii", 3, 5), struct.pack("<ii", 60_000, 60_000))
    assert claimed != data
    if compress:
        packed = zlib.compress(claimed[128:])
        claimed = claimed[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match=r"15 numbers for a size of \[60000, 60000\]"):
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
        with pytest.raises(ValueError, match=r"no \.mat file of version 5|no variable|cut short|numbers for a size"):
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
