"""Ranks and metrics of every protocol against sorting by hand, over random scores with many ties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dra_train.data import Query
from dra_train.metrics import (
    Columns,
    Ranks,
    drops_reference,
    join_ranks,
    measure,
    measure_by_attributes,
    measure_by_edit,
    rank_answers,
    ranked_names,
)

Case = tuple[np.ndarray, list[Query], list[str]]


@st.composite
def retrievals(draw: st.DrawFn) -> Case:
    """Draw scores with ties, queries with groups of six and one to four right answers, and names in no order."""
    names = draw(st.lists(st.text("abÄ1-", min_size=1, max_size=3), min_size=6, max_size=14, unique=True))
    count = draw(st.integers(1, 5))
    values = st.sampled_from([-0.5, 0.0, 0.25, 0.25000003, 0.5, 1.0])
    scores = draw(st.lists(values, min_size=count * len(names), max_size=count * len(names)))
    queries = []
    for i in range(count):
        group = draw(st.permutations(names))[:6]
        reference = draw(st.sampled_from(group))
        inside = draw(st.booleans())
        target = draw(st.sampled_from([n for n in (group if inside else names) if n != reference]))
        others = draw(st.permutations([n for n in names if n not in (reference, target)]))[: draw(st.integers(0, 3))]
        targets = tuple(draw(st.permutations([target, *others]))) if others else ()
        queries.append(Query(i, reference, "text", target, tuple(group), targets=targets))
    return np.array(scores, np.float32).reshape(count, -1), queries, names


def sorted_names(row: np.ndarray, names: list[str], without: str = "") -> list[str]:
    """Sort by falling score, then by name."""
    return sorted((n for n in names if n != without), key=lambda name: (-float(row[names.index(name)]), name))


def percent(values: list[float]) -> float:
    return 100 * sum(values) / len(values)


def by_hand(scores: np.ndarray, queries: list[Query], names: list[str], format: str) -> dict[str, float]:
    """Every protocol from its own definition, one query and one sorted list at a time."""
    found: dict[str, list[float]] = {}

    def note(metric: str, value: float) -> None:
        found.setdefault(metric, []).append(value)

    for row, q in zip(scores, queries, strict=True):
        if format == "fashioniq":
            ranked = sorted_names(row, names)
            for k in (10, 50):
                note(f"R@{k}", q.target in ranked[:k])
        elif format == "circo":
            ranked = sorted_names(row, names)
            truths = q.targets or (q.target,)
            for k in (5, 10, 25, 50):
                hits, total = 0, 0.0
                for position, name in enumerate(ranked[:k], 1):
                    if name in truths:
                        hits += 1
                        total += hits / position
                note(f"mAP@{k}", total / min(len(truths), k))
                note(f"R@{k}", q.target in ranked[:k])
        else:
            ranked = sorted_names(row, names, without=q.reference)
            for k in (1, 5, 10, 50):
                note(f"R@{k}", q.target in ranked[:k])
            if q.target in q.group:
                five = [n for n in ranked if n in q.group]
                assert len(five) == 5
                for k in (1, 2, 3):
                    note(f"Rsubset@{k}", q.target in five[:k])
    result = {metric: percent(values) for metric, values in found.items()}
    if format == "fashioniq":
        result["mean"] = (result["R@10"] + result["R@50"]) / 2
    elif "Rsubset@1" in result:
        result["mean"] = (result["R@5"] + result["Rsubset@1"]) / 2
    return result


@pytest.mark.parametrize("format", ["cirr", "jsonl", "fashioniq", "circo"])
@given(case=retrievals())
def test_every_protocol_equals_sorting_by_hand(format: str, case: Case) -> None:
    scores, queries, names = case
    ranks = rank_answers(scores, queries, Columns.of(names), drops_reference(format))
    expected = by_hand(scores, queries, names, format)
    measured = measure(ranks, format)
    assert set(measured) == set(expected)
    for metric, value in expected.items():
        assert measured[metric] == pytest.approx(value, abs=0.011), metric


@given(retrievals())
def test_blocks_of_queries_rank_as_all_at_once(case: Case) -> None:
    scores, queries, names = case
    columns = Columns.of(names)
    whole = rank_answers(scores, queries, columns)
    parts = join_ranks([rank_answers(scores[i : i + 1], queries[i : i + 1], columns) for i in range(len(queries))])
    for name in ("target", "subset", "answers"):
        assert getattr(whole, name).tolist() == getattr(parts, name).tolist()


@given(retrievals(), st.integers(1, 16), st.booleans())
def test_ranked_names_equal_a_sorted_list(case: Case, k: int, drop: bool) -> None:
    scores, queries, names = case
    expected = [
        sorted_names(row, names, without=q.reference if drop else "")[:k]
        for row, q in zip(scores, queries, strict=True)
    ]
    assert ranked_names(scores, queries, Columns.of(names), k, drop) == expected


def test_reference_that_scores_best_is_dropped_where_the_protocol_says_so() -> None:
    columns = Columns.of(["a", "b", "c"])
    queries = [Query(0, "a", "", "b", ("a", "b", "c"))]
    scores = np.array([[1.0, 0.5, 0.2]], np.float32)
    dropped, kept = (rank_answers(scores, queries, columns, drop) for drop in (True, False))
    assert (dropped.target.tolist(), kept.target.tolist()) == ([0], [1])
    assert dropped.subset.tolist() == kept.subset.tolist() == [0]
    assert [f for f in ("cirr", "fashioniq", "circo", "jsonl") if drops_reference(f)] == ["cirr", "jsonl"]


def test_ties_go_to_the_name_that_sorts_first_whatever_the_columns_order() -> None:
    queries = [Query(0, "r", "", "b", ())]
    for names in (["r", "a", "b", "c"], ["c", "b", "a", "r"]):
        assert rank_answers(np.zeros((1, 4), np.float32), queries, Columns.of(names)).target.tolist() == [1]


def test_scores_that_are_no_numbers_are_never_a_hit() -> None:
    """Every comparison with NaN is false, so a model that diverged would otherwise score 100 %."""
    queries = [Query(0, "r", "", "a", ("r", "a", "b"))]
    with pytest.raises(AssertionError, match="finite"):
        rank_answers(np.array([[0.1, math.nan, 0.3]], np.float32), queries, Columns.of(["r", "a", "b"]))


def ranks(target: list[int], subset: list[int] | None = None) -> Ranks:
    column = np.array(target)
    return Ranks(column, np.array(subset or [-1] * len(target)), column[:, None])


def test_cirr_percentages_are_the_hits_within_k() -> None:
    assert measure(ranks([0, 1, 4, 5, 9, 10, 49, 50], [0, 1, 2, 3, -1, -1, -1, -1]), "cirr") == {
        "R@1": 12.5,
        "R@5": 37.5,
        "R@10": 62.5,
        "R@50": 87.5,
        "Rsubset@1": 25.0,
        "Rsubset@2": 50.0,
        "Rsubset@3": 75.0,
        "mean": 31.25,
    }


def test_without_groups_there_is_no_subset() -> None:
    assert measure(ranks([0, 3]), "jsonl") == {"R@1": 50.0, "R@5": 100.0, "R@10": 100.0, "R@50": 100.0}


def test_average_precision_of_a_worked_example() -> None:
    """Right answers at positions 1, 3 and 8: (1/1 + 2/3) / 3 within five, (1/1 + 2/3 + 3/8) / 3 within ten."""
    three = Ranks(np.array([2]), np.array([-1]), np.array([[0, 2, 7]]))
    measured = measure(three, "circo")
    assert measured["mAP@5"] == round(100 * (1 + 2 / 3) / 3, 2)
    assert measured["mAP@10"] == measured["mAP@50"] == round(100 * (1 + 2 / 3 + 3 / 8) / 3, 2)
    seven = Ranks(np.array([0]), np.array([-1]), np.arange(7)[None])
    assert measure(seven, "circo")["mAP@5"] == 100.0  # over min(7, 5)


def test_by_edit_splits_the_queries() -> None:
    queries = [Query(i, "r", "", "t", (), edit) for i, edit in enumerate(["hair", "", "tone", "hair"])]
    by_edit = measure_by_edit(ranks([0, 0, 7, 1]), queries, "cirr")
    assert list(by_edit) == ["hair", "tone"]
    assert by_edit["hair"]["queries"] == 2
    assert by_edit["hair"]["R@1"] == 50.0
    assert by_edit["tone"] == {"queries": 1, "R@1": 0.0, "R@5": 0.0, "R@10": 100.0, "R@50": 100.0}
    assert measure_by_attributes(ranks([0, 0, 7, 1]), queries, "cirr") == {}


def test_edits_of_several_attributes_are_summed_up_beside_those_of_one() -> None:
    queries = [
        Query(i, "r", "", "t", (), edit) for i, edit in enumerate(["hair", "", "hair+tone", "role", "tone+role"])
    ]
    found = measure_by_attributes(ranks([0, 0, 7, 1, 0]), queries, "cirr")
    assert list(found) == ["one attribute", "two attributes"]
    assert [m["queries"] for m in found.values()] == [2, 2]
    assert [m["R@1"] for m in found.values()] == [50.0, 50.0]
    assert [m["R@5"] for m in found.values()] == [100.0, 50.0]


def test_a_circo_query_counts_for_each_of_its_aspects() -> None:
    queries = [Query(i, "r", "", "t", edit=edit) for i, edit in enumerate(["addition+viewpoint", "addition", ""])]
    by_edit = measure_by_edit(ranks([0, 60, 0]), queries, "circo")
    assert {name: (m["queries"], m["mAP@10"]) for name, m in by_edit.items()} == {
        "addition": (2, 50.0),
        "viewpoint": (1, 100.0),
    }
    assert list(measure_by_attributes(ranks([0, 60, 0]), queries, "circo")) == ["one aspect", "two aspects"]
