"""Fields of native rows: what is clearly meant is read, all else is a fault that shows the value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipelines.sources.values import (
    OddValue,
    as_area,
    as_box,
    as_flag,
    as_int,
    as_ints,
    as_path,
    as_size,
    as_text,
    take,
)

NUMBERS = [(7, 7), ("7", 7), (" 7 ", 7), (7.0, 7), ("7.0", 7), ("7e0", 7), ("+7", 7), (-7, -7), ("-7", -7)]
NO_NUMBERS = [None, True, False, "", "seven", "7 8", "0x7", "7_0", "٧", [], [7], {}, math.nan, math.inf, "nan", "inf"]


@pytest.mark.parametrize(("value", "meant"), [*NUMBERS, (2**63 - 1, 2**63 - 1), ("9" * 18, 10**18 - 1)])
def test_a_whole_number_is_read_from_text_and_floats(value: Any, meant: int) -> None:
    number = as_int(value)
    assert (number, type(number)) == (meant, int)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 7.5, "7.5", 2**70, 1e30, "1" * 30, "9" * 5000, "1e999", 2.0**53 + 2])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=" is no "):
        as_int(value)


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", "True", " TRUE ", "1.0"])
def test_a_flag_is_read_from_numbers_and_text(value: Any) -> None:
    assert as_flag(value) is True
    assert as_flag({"1": "0", "t": "false", "T": "False"}.get(str(value).strip()[0], value)) is False


@pytest.mark.parametrize("value", [None, 2, -1, 0.5, "yes", "", "2", [], {}, math.nan])
def test_what_is_no_flag_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is neither 0 nor 1|is no number"):
        as_flag(value)


@pytest.mark.parametrize(("value", "area"), [(None, None), (0, 0.0), ("12.5", 12.5), (1e10, 1e10)])
def test_an_area_is_a_number_or_null(value: Any, area: float | None) -> None:
    assert as_area(value) == area


@pytest.mark.parametrize("value", [*NO_NUMBERS[1:], -1, 1e11, 2**70])
def test_what_is_no_area_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is no number|is out of range"):
        as_area(value)


@pytest.mark.parametrize("value", [0, -1, 100_001, "0", 1.5, None])
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=" is no "):
        as_size(value)


@pytest.mark.parametrize("value", [[1, 2, 3], [1, 2, 3, 4, 5], [], None, "1234", [1, 2, 3, None], [1, 2, 3, math.nan]])
def test_a_box_has_four_numbers(value: Any) -> None:
    assert as_box([1, "2", 3.5, -4]) == [1, 2, 3.5, -4]
    with pytest.raises(ValueError, match=r" is no | has not four numbers|out of range"):
        as_box(value)


def test_a_list_of_whole_numbers_has_nothing_else() -> None:
    assert as_ints([1, "2", 3.0]) == as_ints([1, 2, 3]) == [1, 2, 3]
    with pytest.raises(ValueError, match="True is no number"):
        as_ints([1, True])


@pytest.mark.parametrize("value", [None, 5, "", " ", [], {}])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is no text"):
        as_text(value)


@pytest.mark.parametrize("value", ["a.jpg", "images/v1/patch8/a.jpg", "./a.jpg", "a b.jpg", "..a.jpg"])
def test_the_name_of_a_file_is_kept(value: str) -> None:
    assert as_path(value) == value


def test_a_fault_names_the_field_and_shows_the_value_cut_short() -> None:
    with pytest.raises(OddValue, match=r"^area: 'x{10,20}\.\.\.x{10,20}' is no number$") as caught:
        take({"area": "x" * 10_000}, "area", as_area)
    assert caught.value.field == "area"
    with pytest.raises(OddValue, match=r"^id: missing$"):
        take({}, "id", as_int)
    with pytest.raises(OddValue, match=r"^row: 5 is no object$"):
        take(5, "id", as_int)
    assert take({}, "iscrowd", as_flag, False) is False
