from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.sources.recordings.numerals import decimal_sign, number, numbers


@pytest.mark.parametrize(("samples", "delimiter", "sign"), [
    ([], ",", "."), (["187.5", "100"], ";", "."), (["187,5", "100"], ";", ","), (["187,5"], ",", ","), (["12,000", "10.5"], ";", "."), (["12,000"], ",", "."),
    (["12,000"], ";", ","), (["12.000", "10,5"], ";", ","), (["1,234.5"], ";", "."), (["1.234,5"], ",", ","), (["$1,234"], ",", "."), (["", "null"], ";", "."),
])  # fmt: skip
def test_the_decimal_sign_is_seen(samples: list[str], delimiter: str, sign: str) -> None:
    assert decimal_sign(samples, delimiter) == sign


@pytest.mark.parametrize(("text", "decimal", "value"), [
    ("1,234.50", ".", 1234.5), ("1.234,50", ",", 1234.5), ("$ 1,234", ".", 1234), ("1 234,5 €", ",", 1234.5), ("1'234.5", ".", 1234.5), ("-7", ".", -7),
    ("1e-7", ".", 1e-7), ("1,5", ".", math.nan), ("1.5", ",", math.nan), ("", ".", math.nan), ("null", ".", math.nan), (None, ".", math.nan),
    ("58.41M", ".", math.nan), ("12,34,567", ".", math.nan),
])  # fmt: skip
def test_a_number_is_read_or_is_none(text: str | None, decimal: str, value: float) -> None:
    found = number(text, decimal)
    assert found == value or (math.isnan(found) and math.isnan(value))


@given(st.floats(0.0001, 1e12))
def test_numbers_with_thousands_are_read_back(value: float) -> None:
    text = f"{value:,.6f}"
    swapped = text.translate(str.maketrans(".,", ",."))
    assert number(text, ".") == number(swapped, ",") == float(text.replace(",", ""))


def test_a_column_is_one_of_numbers_or_none() -> None:
    assert numbers(pa.array(["1", None, "2.5"])).tolist()[0::2] == [1, 2.5]
    assert numbers(pa.array([(1 << 63) - 1])).tolist() == [float((1 << 63) - 1)]
    with pytest.raises(pa.ArrowException):
        numbers(pa.array([[1]]))
