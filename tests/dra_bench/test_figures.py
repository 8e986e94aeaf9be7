"""Figures as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dra_bench.figures import cosine, milliseconds, ordinal, percent, times

MILLISECONDS = {0.0123: "0.012", 0.5: "0.500", 1.234: "1.23", 23.46: "23.5", 234.4: "234", 6684: "6684"}


@pytest.mark.parametrize(("value", "text"), MILLISECONDS.items())
def test_milliseconds_keep_about_three_digits(value, text):
    assert milliseconds(value) == text


@given(st.floats(0.01, 1e5))
def test_milliseconds_are_close_to_the_value(value):
    assert float(milliseconds(value)) == pytest.approx(value, rel=5.1e-3, abs=5.1e-4)


def test_a_cosine_below_one_never_reads_as_one():
    assert cosine(0.9999999999951441) == "0.9999999"
    assert cosine(0.99998999) == "0.9999899"
    assert cosine(1.0) == "1.0000000"


def test_ordinals():
    numbers = (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 101, 111, 112)
    assert " ".join(ordinal(n) for n in numbers) == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd 101st 111th 112th"


def test_percentages_and_ratios():
    assert percent(45.678) == "45.7"
    assert (times(1.534), times(13.53)) == ("1.53×", "13.5×")
