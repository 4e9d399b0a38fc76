"""Lists of a JSON object, cut into pieces, give what parsing it at once gives."""

from __future__ import annotations

import json

import pytest

from pipelines.sources.json_lists import JsonLists

DOCUMENT = {
    "info": {"images": [{"id": "not this one"}], "text": '"images": [{'},
    "images": [{"id": i, "file_name": "x" * i} for i in range(9)],
    "empty": [],
    "awkward": [
        {"counts": "]}\\[{", "size": [3, [4, {"a": "\\\\"}]], "name": 'say "}, {"'},
        {"text": "\\", "unicode": "é]", "deep": {"deeper": [{}, [], {"images": []}]}},
        {"last": None},
    ],
    "number": 5,
    "categories": [{"id": 1}],
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 50, 10_000])
def test_pieces_of_any_size_give_the_same_rows(piece: int, indent: int | None) -> None:
    data = json.dumps(DOCUMENT, indent=indent, ensure_ascii=False).encode()
    lists = JsonLists(data, "a.json", piece)
    for name, expected in DOCUMENT.items():
        if isinstance(expected, list):
            assert list(lists.rows(name)) == expected


def test_a_file_cut_short_anywhere_is_refused_with_the_place() -> None:
    data = json.dumps(DOCUMENT).encode()
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"a\.json: line 1, column \d+"):
            JsonLists(data[:length], "a.json", piece=64)


@pytest.mark.parametrize("data", [b"[]", b"5", b'"text"', b"null"])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.json: expected an object"):
        JsonLists(data, "a.json")


@pytest.mark.parametrize("rows", ['{"a": 1}, {"b" 2}', '{"a": 1},, {"b": 2}', '{"a": 1} {"b": 2}', ",", "nan"])
@pytest.mark.parametrize("piece", [1, 1000])
def test_an_unreadable_row_is_named_by_line_and_column(rows: str, piece: int) -> None:
    lists = JsonLists(('{"other": [],\n"images": [' + rows + "]}").encode(), "a.json", piece)
    with pytest.raises(ValueError, match=r"a\.json: line 2, column \d+"):
        list(lists.rows("images"))


def test_two_lists_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.json: two lists are named 'images'"):
        JsonLists(b'{"images": [1], "info": {}, "images": [2]}', "a.json")


def test_a_missing_list_is_named() -> None:
    with pytest.raises(ValueError, match=r"a\.json: no list 'number'"):
        list(JsonLists(json.dumps(DOCUMENT).encode(), "a.json").rows("number"))
