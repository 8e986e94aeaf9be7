"""JSON from elsewhere: what is accepted is read as the reference does, and everything else is one ValueError."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dra_runtime.strict_json import DEEPEST, MAX_DIGITS, short, values_from_json

texts = st.text(st.characters(exclude_categories=("Cs",)))
numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(values, st.booleans(), st.sampled_from((None, 1)))
@settings(max_examples=150)
def test_json_is_read_as_the_reference_reads_it(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8")
    found = values_from_json(text)
    assert found == json.loads(text)
    assert repr(found) == repr(json.loads(text))  # 1 stays 1, and 1.0 stays 1.0


pieces = st.sampled_from(
    [b"{", b"}", b"[", b"]", b":", b",", b'"a"', b'"', b"\\", b"\\u", b"1", b"e9", b".", b"-", b"\xff"]
)


@given(st.binary(max_size=30) | st.lists(pieces, max_size=25).map(b"".join))
@settings(max_examples=300)
def test_any_bytes_give_a_value_or_one_error(text):
    try:
        found = values_from_json(text)
    except ValueError:
        return
    assert found == json.loads(text)


REFUSED = {
    "key twice": (b'{"a":1,"b":2,"a":3}', "'a' stands twice"),
    "key twice, once escaped": (b'{"a":1,"\\u0061":3}', "'a' stands twice"),
    "key twice within": (b'[{"a":{"b":1,"b":1}}]', "'b' stands twice"),
    "NaN": (b'{"a":NaN}', "NaN"),
    "Infinity": (b"-Infinity", "Infinity"),
    "number beyond float64": (b"[1e999]", "too large"),
    "number beyond float64 below zero": (b"[-1e999]", "too large"),
    "whole number without end": (b"1" * (MAX_DIGITS + 1), "digits"),
    "fraction without end": (b"0." + b"1" * MAX_DIGITS, "too long"),
    "too deep": (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "within each other"),
    "too deep, mixed": (b'{"a":[' * DEEPEST + b"]}" * DEEPEST, "within each other"),
    "depth beyond any stack": (b"[" * 1_000_000, "within each other"),
    "depth behind an escaped quote": (b'["\\"",' + b"[" * 1_000_000, "within each other"),
    "half a character": (b'["\\ud83d"]', "surrogates"),
    "half a character as a key": (b'{"\\udc00":1}', "surrogates"),
    "byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "UTF-16": ("{}".encode("utf-16"), "utf-8"),
    "a surrogate's bytes": (b'"\xed\xa0\xbd"', "utf-8"),
    "nothing": (b"", "Expecting value"),
    "more behind": (b"{} {}", "Extra data"),
    "comment": (b"{/**/}", "Expecting"),
    "comma at the end": (b"[1,]", "column"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    text, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        values_from_json(text)


def test_what_looks_deep_but_is_a_text_or_flat():
    assert values_from_json(b'"' + b"[{" * 5000 + b'"') == "[{" * 5000
    assert values_from_json(b'["\\\\","' + b"[" * 100 + b'"]') == ["\\", "[" * 100]
    assert values_from_json(b"[" + b"{}," * 5000 + b"[]]") == [{}] * 5000 + [[]]
    assert values_from_json(b"[" * DEEPEST + b"]" * DEEPEST) is not None
    assert values_from_json(b'["\\ud83d\\ude42"]') == ["🙂"]
    assert math.isclose(values_from_json(b"0." + b"1" * (MAX_DIGITS - 2)), 1 / 9)


def test_a_text_of_quotes_takes_no_longer_than_its_length():
    """Any of these takes minutes where each quote is a new start."""
    quotes = (b'"' * 10**6, b'"' + b'\\"' * 10**6, b"[" * 65 + b'\\"' * 10**6)
    for text in (*quotes, b'[{"' * 400_000, b'{"a":0,' * 200_000):
        with pytest.raises(ValueError, match=r"."):
            values_from_json(text)
    keys = b",".join(b'"%d":0' % number for number in range(50_000))
    with pytest.raises(ValueError, match="'49999' stands twice"):
        values_from_json(b"{" + keys + b',"49999":1}')


def test_what_an_error_shows_of_a_value_is_short():
    looped = []
    looped.append(looped)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**7, b"x" * 10**7, 10**5000, deep, looped, {"a": "x" * 500}, [10**5000], "\ud800", "\n"):
        assert len(short(value)) <= 80
        short(value).encode("utf-8")
        assert "\n" not in short(value)
    assert short([1, "a"]) == "[1, 'a']"
