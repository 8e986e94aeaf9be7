"""Recall at K as CIRR defines it: rank by cosine, drop the reference, break ties by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dra_train.data import Query

RECALLS = (1, 5, 10, 50)  #: K of the recalls over the whole gallery
SUBSET_RECALLS = (1, 2, 3)  #: K of the recalls within a query's own group


def target_ranks(scores: NDArray[np.float32], queries: Sequence[Query], names: Sequence[str]) -> NDArray[np.int64]:
    """Rank every query's target over the whole gallery, its reference left out.

    ``scores`` (Q, G) holds one row a query and one column a name. Returns (Q,) ranks from 0: how many others
    score higher, or equal with a name that sorts before.
    """
    assert np.isfinite(scores).all(), "scores must be finite: nothing is ahead of a NaN, so it would rank first"
    column = {name: i for i, name in enumerate(names)}
    order = np.argsort(np.argsort(np.array(names)))  # a name's place in sorted order, which breaks ties
    target = np.array([column[q.target] for q in queries])
    reference = np.array([column[q.reference] for q in queries])
    rows = np.arange(len(queries))
    target_score = scores[rows, target][:, None]
    ahead = (scores > target_score) | ((scores == target_score) & (order[None, :] < order[target][:, None]))
    ahead[rows, reference] = False
    ranks: NDArray[np.int64] = ahead.sum(axis=1)
    return ranks


def subset_ranks(scores: NDArray[np.float32], queries: Sequence[Query], names: Sequence[str]) -> NDArray[np.int64]:
    """Rank every query's target among the other members of its group, as `target_ranks` does; -1 without one."""
    assert np.isfinite(scores).all(), "scores must be finite"
    column = {name: i for i, name in enumerate(names)}
    ranks = np.full(len(queries), -1, dtype=np.int64)
    for i, query in enumerate(queries):
        if query.target in query.group:
            others = [n for n in query.group if n not in (query.reference, query.target)]
            mine = (-scores[i, column[query.target]], query.target)
            ranks[i] = sum((-scores[i, column[n]], n) < mine for n in others)
    return ranks


def recalls(ranks: NDArray[np.int64], subset: NDArray[np.int64]) -> dict[str, float]:
    """Return recalls in percent: R@1, R@5, R@10, R@50, Rsubset@1..3, and CIRR's mean of R@5 and Rsubset@1."""
    result = {f"R@{k}": _percent(ranks < k) for k in RECALLS}
    grouped = subset[subset >= 0]
    if len(grouped):
        result |= {f"Rsubset@{k}": _percent(grouped < k) for k in SUBSET_RECALLS}
        result["mean"] = round((result["R@5"] + result["Rsubset@1"]) / 2, 2)
    return result


def recalls_by_edit(
    ranks: NDArray[np.int64], subset: NDArray[np.int64], queries: Sequence[Query]
) -> Mapping[str, Mapping[str, float]]:
    """Return `recalls` for every kind of edit that the data set names, with the number of queries."""
    edits = np.array([q.edit for q in queries])
    return {
        edit: {"queries": int((edits == edit).sum()), **recalls(ranks[edits == edit], subset[edits == edit])}
        for edit in sorted(set(edits) - {""})
    }


def _percent(hits: NDArray[np.bool_]) -> float:
    return round(100 * float(hits.mean()), 2)
