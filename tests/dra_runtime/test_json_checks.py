"""What is refused is named by its place, with what was expected."""

import re

import pytest

from dra_runtime.json_checks import (
    WrongValueError,
    flag_of,
    keys_of,
    list_of,
    object_of,
    one_of,
    text_of,
    whole_of,
)

WORD = re.compile("[a-z]+")
CHECKS = {
    "object": (lambda value: object_of(value, "a.b"), {"x": 1}, ([], None, {1: 2}), "an object"),
    "keys": (
        lambda value: keys_of(value, "a.b", "x y"),
        {"y": 1, "x": 2},
        ([], {"x": 1}, {"x": 1, "y": 2, "z": 3}),
        "",
    ),
    "list": (lambda value: list_of(value, "a.b"), [1], ({}, "text", None), "a list"),
    "text": (lambda value: text_of(value, "a.b", WORD, "a word"), "word", ("", "Word", "word\n", 1), "a word"),
    "one": (lambda value: one_of(value, "a.b", ("x", "y")), "y", ("z", "", None, ["x"]), "'x' or 'y'"),
    "whole": (lambda value: whole_of(value, "a.b", 1, 5), 5, (0, 6, 2.0, True, "3"), "a whole number from 1 to 5"),
    "flag": (lambda value: flag_of(value, "a.b"), False, (0, 1, "true", None), "true or false"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_taken_and_what_is_refused(name):
    check, good, bad, expected = CHECKS[name]
    assert check(good) is good
    for value in bad:
        with pytest.raises(WrongValueError, match=rf"^a\.b has .*; expected .*{expected}") as caught:
            check(value)
        assert "\n" not in str(caught.value)


def test_a_long_value_is_cut():
    with pytest.raises(WrongValueError) as caught:
        list_of("x" * 10_000, "a")
    assert len(str(caught.value)) < 200
