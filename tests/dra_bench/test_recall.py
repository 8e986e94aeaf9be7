"""Recall beside recall, and whose first answer changed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dra_bench.recall import compare_scores, recall_report, top_answers
from dra_train.data import Dataset, Query

NAMES = [f"n{i:02}" for i in range(60)]


@pytest.fixture
def dataset():
    queries = tuple(Query(i, NAMES[i], f"text {i}", NAMES[i + 1], ()) for i in range(50))
    return Dataset("d", "val", queries, {name: Path(name) for name in NAMES})


@pytest.fixture
def scores():
    return np.random.default_rng(0).uniform(-1, 1, (50, 60)).astype(np.float32)


def test_equal_scores_pass_and_change_nothing(dataset, scores):
    result = compare_scores(scores, scores.copy(), dataset, 0.0)
    assert result["passed"]
    assert result["top10_overlap"] == 100.0
    assert (result["changed_first"], result["changed"]) == (0, [])
    assert result["reference"] == result["candidate"]


def test_one_lost_query_is_found_listed_and_fails(dataset, scores):
    scores[3, 4] = 2.0  # query 3 finds its target first
    worse = scores.copy()
    worse[3, 20] = 3.0
    result = compare_scores(scores, worse, dataset, 0.0)
    assert not result["passed"]
    assert result["reference"]["R@1"] - result["candidate"]["R@1"] == pytest.approx(2.0)  # one of 50
    assert result["changed"] == [
        {"id": 3, "text": "text 3", "reference": "n03", "target": "n04", "pytorch": "n04", "bundle": "n20"}
    ]
    assert result["top10_overlap"] == pytest.approx(100 - 10 / 50)
    assert "query 3: 'n03' + 'text 3': 'n04' -> 'n20' (right: 'n04')" in recall_report([result])


def test_a_tolerance_lets_one_query_pass(dataset, scores):
    scores[3, 4] = 2.0
    worse = scores.copy()
    worse[3, 20] = 3.0
    assert compare_scores(scores, worse, dataset, 2.0)["passed"]
    assert not compare_scores(scores, worse, dataset, 1.9)["passed"]


def test_a_reference_is_no_answer(dataset, scores):
    scores[np.arange(50), np.arange(50)] = 9.0
    best = top_answers(scores, dataset.queries, NAMES, 1)
    assert all(b != [q.reference] for b, q in zip(best, dataset.queries, strict=True))


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=6, max_size=6), st.permutations(list("fbdace")))
def test_ties_go_to_the_smaller_name(values, names):
    query = Query(0, names[2], "t", names[0], ())
    found = top_answers(np.array([values], np.float32), [query], names, 4)[0]
    others = [(-v, n) for v, n in zip(values, names, strict=True) if n != query.reference]
    assert found == [n for _, n in sorted(others)][:4]
