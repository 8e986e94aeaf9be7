"""Ranks and recalls against sorting by hand, over random scores with many ties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dra_train.data import Query
from dra_train.metrics import recalls, recalls_by_edit, subset_ranks, target_ranks


@st.composite
def retrievals(draw: st.DrawFn) -> tuple[np.ndarray, list[Query], list[str]]:
    """Draw scores with ties, queries with groups of six, and names in no order."""
    names = draw(st.lists(st.text("abÄ1-", min_size=1, max_size=3), min_size=6, max_size=12, unique=True))
    count = draw(st.integers(1, 5))
    values = st.sampled_from([-0.5, 0.0, 0.25, 0.25000003, 0.5, 1.0])
    scores = draw(st.lists(values, min_size=count * len(names), max_size=count * len(names)))
    queries = []
    for i in range(count):
        group = draw(st.permutations(names))[:6]
        reference = draw(st.sampled_from(group))
        inside = draw(st.booleans())
        target = draw(st.sampled_from([n for n in (group if inside else names) if n != reference]))
        queries.append(Query(i, reference, "text", target, tuple(group)))
    return np.array(scores, np.float32).reshape(count, -1), queries, names


def position(scores: np.ndarray, names: list[str], among: list[str], target: str) -> int:
    """Sort by falling score, then by name, and look where the target is."""
    return sorted(among, key=lambda name: (-float(scores[names.index(name)]), name)).index(target)


@given(retrievals())
def test_target_ranks_equal_a_sorted_list_without_the_reference(
    case: tuple[np.ndarray, list[Query], list[str]],
) -> None:
    scores, queries, names = case
    expected = [
        position(row, names, [n for n in names if n != q.reference], q.target)
        for row, q in zip(scores, queries, strict=True)
    ]
    assert target_ranks(scores, queries, names).tolist() == expected


@given(retrievals())
def test_subset_ranks_equal_a_sorted_list_of_the_five_others(case: tuple[np.ndarray, list[Query], list[str]]) -> None:
    scores, queries, names = case
    expected = []
    for row, q in zip(scores, queries, strict=True):
        others = [n for n in q.group if n != q.reference]
        assert len(others) == 5
        expected.append(position(row, names, others, q.target) if q.target in others else -1)
    assert subset_ranks(scores, queries, names).tolist() == expected


def test_reference_that_scores_best_is_dropped() -> None:
    names = ["a", "b", "c"]
    queries = [Query(0, "a", "", "b", ("a", "b", "c"))]
    scores = np.array([[1.0, 0.5, 0.2]], np.float32)
    assert target_ranks(scores, queries, names).tolist() == [0]
    assert subset_ranks(scores, queries, names).tolist() == [0]


def test_ties_go_to_the_name_that_sorts_first_whatever_the_columns_order() -> None:
    queries = [Query(0, "r", "", "b", ())]
    for names in (["r", "a", "b", "c"], ["c", "b", "a", "r"]):
        assert target_ranks(np.zeros((1, 4), np.float32), queries, names).tolist() == [1]


def test_scores_that_are_no_numbers_are_never_a_hit() -> None:
    """Every comparison with NaN is false, so a model that diverged would otherwise score 100 %."""
    queries = [Query(0, "r", "", "a", ("r", "a", "b"))]
    names = ["r", "a", "b"]
    for rank in (target_ranks, subset_ranks):
        with pytest.raises(AssertionError, match="finite"):
            rank(np.array([[0.1, math.nan, 0.3]], np.float32), queries, names)


def test_recalls_are_percentages_of_the_hits_within_k() -> None:
    ranks = np.array([0, 1, 4, 5, 9, 10, 49, 50])
    subset = np.array([0, 1, 2, 3, -1, -1, -1, -1])
    assert recalls(ranks, subset) == {
        "R@1": 12.5,
        "R@5": 37.5,
        "R@10": 62.5,
        "R@50": 87.5,
        "Rsubset@1": 25.0,
        "Rsubset@2": 50.0,
        "Rsubset@3": 75.0,
        "mean": 31.25,
    }


def test_recalls_without_groups_leave_the_subset_out() -> None:
    assert recalls(np.array([0, 3]), np.array([-1, -1])) == {"R@1": 50.0, "R@5": 100.0, "R@10": 100.0, "R@50": 100.0}


def test_recalls_by_edit_split_the_queries() -> None:
    queries = [Query(i, "r", "", "t", (), edit) for i, edit in enumerate(["hair", "", "tone", "hair"])]
    by_edit = recalls_by_edit(np.array([0, 0, 7, 1]), np.full(4, -1), queries)
    assert list(by_edit) == ["hair", "tone"]
    assert by_edit["hair"]["queries"] == 2
    assert by_edit["hair"]["R@1"] == 50.0
    assert by_edit["tone"] == {"queries": 1, "R@1": 0.0, "R@5": 0.0, "R@10": 100.0, "R@50": 100.0}
