"""Metadata comes back as it was given, and a filter allows what a plain comparison allows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dra_runtime import metadata
from dra_runtime.errors import UsageError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES = st.one_of(
    TEXTS,
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0, 2.0, -1e300]),
    st.booleans(),
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
)
ITEMS = st.lists(st.none() | st.dictionaries(st.sampled_from(["color", "größe", "n"]), VALUES, max_size=3), max_size=12)


def same(first, second):
    """Equal, and of equal types: Python's 1, 1.0 and True are three values."""
    return first == second and {k: type(v) for k, v in first.items()} == {k: type(v) for k, v in second.items()}


def fits(item, where):
    """A plain reading of the rule."""

    def equal(value, wanted):
        return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted

    for key, wanted in where.items():
        values = item.get(key, [])
        values = values if isinstance(values, list) else [values]
        wanted = wanted if isinstance(wanted, list) else [wanted]
        if not any(equal(value, one) for value in values for one in wanted):
            return False
    return True


@settings(max_examples=60, deadline=None)
@given(items=ITEMS, others=ITEMS, data=st.data())
def test_items_come_back_alone_and_joined(items, others, data):
    made = metadata.metadata_from_items(items)
    assert (made is None) == (not any(items))
    if made:
        assert all(same(made.item(row), item or {}) for row, item in enumerate(items))
    order = np.array(data.draw(st.permutations(range(len(items) + len(others)))), np.int64)
    order = order[: data.draw(st.integers(0, len(order)))]
    both = metadata.joined(made, metadata.metadata_from_items(others), (len(items), len(others)), order)
    expected = [(items + others)[row] or {} for row in order]
    assert (both is None) == (not any(expected))
    if both:
        assert all(same(both.item(row), item) for row, item in enumerate(expected))
        assert set(both.columns) == {key for item in expected for key in item}


@settings(max_examples=60, deadline=None)
@given(
    items=ITEMS,
    where=st.dictionaries(
        st.sampled_from(["color", "größe", "n"]),
        st.one_of(TEXTS, st.integers(-2, 2), st.booleans(), st.sampled_from([0.5, 1.0, 2.0]))
        | st.lists(st.one_of(st.sampled_from(["a", "b"]), st.integers(-2, 2), st.booleans()), min_size=1, max_size=4),
        min_size=1,
    ),
)
def test_filters_allow_what_a_plain_comparison_allows(items, where):
    made = metadata.metadata_from_items(items)
    allowed = metadata.allowed_rows(made, len(items), metadata.checked_where(where))
    assert allowed.tolist() == [fits(item or {}, where) for item in items]


@pytest.mark.parametrize(
    "item",
    [
        5,
        "text",
        {"": 1},
        {5: 1},
        {"k" * 65: 1},
        {"a\n": 1},
        {"a": None},
        {"a": {}},
        {"a": b"x"},
        {"a": [1]},
        {"a": ["x"] * 65},
        {"a": ["x" * 5000]},
        {"a": "x" * 5000},
        {"a": "\ud800"},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 2**63},
        {"a": np.int64(1)},
    ],
)
def test_what_is_no_metadata(item):
    with pytest.raises(UsageError) as caught:
        metadata.metadata_from_items([{"b": 1}, item])
    assert "\n" not in str(caught.value)


def test_too_many_keys():
    metadata.metadata_from_items([{str(i): i} for i in range(64)])
    with pytest.raises(UsageError, match="65 different keys"):
        metadata.metadata_from_items([{str(i): i} for i in range(65)])


@pytest.mark.parametrize(
    "where", [[], "a", {"a": []}, {"a": None}, {"a": [None]}, {"a": [["x"]]}, {"a": {"x": 1}}, {5: 1}, {"a": 2**70}]
)
def test_what_is_no_filter(where):
    with pytest.raises(UsageError) as caught:
        metadata.checked_where(where)
    assert "\n" not in str(caught.value)


def test_tuples_and_sets_list_values_too():
    made = metadata.metadata_from_items([{"a": ("x", "y")}, {"a": "z"}, {"a": "w"}])
    assert made.item(0) == {"a": ["x", "y"]}
    for listed in (("y", "z"), {"y", "z"}):
        assert metadata.allowed_rows(made, 3, metadata.checked_where({"a": listed})).tolist() == [True, True, False]


def test_too_many_keys_are_refused_before_their_columns_take_memory():
    """Such as a key of its own for each image, a slip that would take the square of their number."""
    import tracemalloc

    items = [{f"key-{i}": i} for i in range(4_000)]
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="keys"):
            metadata.metadata_from_items(items)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
