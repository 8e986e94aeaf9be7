"""Exact search equals a full sort of float64 scores, whatever the blocks, the storage, the filter and the batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dra_runtime import search

# Unit vectors whose products with each other are exact in float16, so that ties are real ones
AXES = [sign * np.eye(4)[i] for i in range(4) for sign in (1, -1)]
HALVES = [np.array([a, b, c, d]) / 2 for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)]
EXACT = np.array([*AXES, *HALVES])


def full_sort(unit, query, k, dropped, allowed):
    """Rank in plain Python: the sum of products, largest first, then the row."""
    scores = [sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in unit]
    rows = [row for row in range(len(unit)) if row != dropped and (allowed is None or allowed[row])]
    return [(row, scores[row]) for row in sorted(rows, key=lambda row: (-scores[row], row))[:k]]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_answers_equal_a_full_sort(data):
    picked = data.draw(st.lists(st.integers(0, 23), max_size=60) | st.permutations(range(24)))
    count, unit = len(picked), EXACT[picked].reshape(-1, 4)
    queries = EXACT[data.draw(st.lists(st.integers(0, 23), min_size=1, max_size=4))]
    best = [int(np.argmax(unit @ query)) if count else -1 for query in queries]
    excluded = np.array([data.draw(st.just(row) | st.integers(-1, count - 1)) for row in best])
    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count).map(np.array))
    allowed = None if allowed is None else allowed.astype(bool)
    k = data.draw(st.integers(1, 6) | st.integers(1, 70))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "ROWS", data.draw(st.sampled_from([1, 7, 25, 1000])))
        patch.setattr(search, "HEAD", data.draw(st.sampled_from([1, 5, 1000])))
        patch.setattr(search, "SLACK", data.draw(st.sampled_from([0, 64])))
        patch.setattr(search, "SCORES", data.draw(st.sampled_from([1, 100, 10_000])))
        patch.setattr(search, "GATHERED", data.draw(st.sampled_from([1, 4, 1000])))
        storage = data.draw(st.sampled_from([np.float32, np.float16]))
        scale = np.float32(data.draw(st.sampled_from([1, 2, 0.25])))
        answers = search.top_k(unit.astype(storage), queries.astype(np.float32) * scale, k, excluded, allowed)
    for query, dropped, (rows, scores) in zip(queries, excluded, answers, strict=True):
        assert list(zip(rows.tolist(), scores.tolist(), strict=True)) == full_sort(unit, query, k, dropped, allowed)


@pytest.mark.parametrize("storage", [np.float32, np.float16])
def test_many_rows_keep_the_best_and_all_that_tie(storage):
    """More rows than are kept at a time, the best of them anywhere, and thousands that are equal."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(20_000, 16))
    unit[5000:9000] = unit[17]
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(storage)
    wide = unit.astype(np.float64)
    queries = np.concatenate([unit[[3, 19_999, 17]].astype(np.float32), rng.normal(size=(3, 16)).astype(np.float32)])
    for k in (1, 10, 3000, 4500, 30_000):
        for query, (rows, scores) in zip(queries, search.top_k(unit, queries, k, np.full(6, -1)), strict=True):
            expected = (wide @ (query.astype(np.float64) / np.linalg.norm(query.astype(np.float64)))).astype(np.float32)
            assert len(rows) == min(k, 20_000)
            np.testing.assert_allclose(scores, np.sort(expected)[::-1][:k], atol=1e-7)
            np.testing.assert_allclose(scores, expected[rows], atol=1e-7)
            assert rows.tolist() == rows[np.lexsort((rows, -scores))].tolist()
            same = rows[np.isin(rows, [17, *range(5000, 9000)])]
            assert same.tolist() == [17, *range(5000, 9000)][: len(same)]


@pytest.mark.parametrize("storage", [np.float32, np.float16])
def test_the_same_query_alone_and_in_any_batch(storage):
    rng = np.random.default_rng(1)
    unit = rng.normal(size=(3000, 640))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(storage)
    queries = rng.normal(size=(33, 640)).astype(np.float32)
    together = search.top_k(unit, queries, 20, np.full(33, -1))
    for query, (rows, scores) in zip(queries, together, strict=True):
        ((own_rows, own_scores),) = search.top_k(unit, query[None], 20, np.array([-1]))
        assert np.array_equal(rows, own_rows)
        assert np.array_equal(scores, own_scores)
