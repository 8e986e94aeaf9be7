"""Exact search: the k nearest rows by cosine, ties broken by row order."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from dra_runtime.half import half_products

ROWS = 65_536  # rows scored at once
SCORES = 4_194_304  # scores in memory at once

Unit = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Ranked = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]  # rows and scores, best first


def top_k(
    unit: Unit,
    queries: npt.NDArray[np.float32],
    k: int,
    excluded: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_] | None = None,
) -> list[Ranked]:
    """Find the k nearest rows of each query.

    A float32 matrix product finds the candidates. Its last bits depend on a row's place and on the batch, so two equal
    rows can differ there. The candidates, all that rounding might have kept out among them, are therefore scored again
    row by row in float64 and rounded to float32 once: equal rows tie, and tie however they were asked for.

    Parameters
    ----------
    unit
        (N, D) rows of unit length.
    queries
        (Q, D), not zero; of any length.
    k
        At least 1.
    excluded
        (Q,) the row that must not answer each query, or -1.
    allowed
        (N,) which rows may answer any query; None for all.

    Returns
    -------
    list
        For each query the row numbers (at most k) and their cosines, best first; equal ones in the order of the rows.
    """
    wide = unit_queries(queries)
    # Twice the largest error of a float32 dot product of unit vectors (Higham 2002, section 3.1): D * 2**-24
    margin = np.float32(4 * queries.shape[1] * 2.0**-24)
    chunk = max(1, SCORES // max(1, min(len(unit), ROWS)))
    answers = []
    for first in range(0, len(queries), chunk):
        part = slice(first, first + chunk)
        candidates = _candidates(unit, wide[part].astype(np.float32), k, excluded[part], allowed, margin)
        answers += [ranked(unit, q, rows, k) for q, rows in zip(wide[part], candidates, strict=True)]
    return answers


def _candidates(
    unit: Unit,
    queries: npt.NDArray[np.float32],
    k: int,
    excluded: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_] | None,
    margin: np.float32,
) -> list[npt.NDArray[np.int64]]:
    """Return for each query every row that may be among its k nearest."""
    rows: list[list[npt.NDArray[np.int64]]] = [[] for _ in queries]
    scores: list[list[npt.NDArray[np.float32]]] = [[] for _ in queries]
    for start in range(0, len(unit), ROWS):
        block = unit[start : start + ROWS]
        found = half_products(queries, block) if _is_half(block) else queries @ np.asarray(block, np.float32).T
        if allowed is not None:
            found[:, ~allowed[start : start + ROWS]] = -np.inf
        inside = np.flatnonzero((excluded >= start) & (excluded < start + len(block)))
        found[inside, excluded[inside] - start] = -np.inf
        least = _kth(found, k) - margin
        for i, (query_scores, limit) in enumerate(zip(found, least, strict=True)):
            kept = np.flatnonzero((query_scores >= limit) & (query_scores > -np.inf))
            rows[i].append(kept + start)
            scores[i].append(query_scores[kept])
    answers = []
    for query_rows, query_scores in zip(rows, scores, strict=True):
        joined_rows = np.concatenate([*query_rows, np.empty(0, np.int64)])
        joined = np.concatenate([*query_scores, np.empty(0, np.float32)])
        answers.append(joined_rows[joined >= _kth(joined[None], k) - margin])
    return answers


def _is_half(block: npt.NDArray[Any]) -> TypeGuard[npt.NDArray[np.float16]]:
    return block.dtype == np.float16


def _kth(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """Return the k-th largest of each row, or minus infinity where there are fewer."""
    count = scores.shape[1]
    if count <= k:
        return np.full(len(scores), -np.inf, np.float32)
    kth: npt.NDArray[np.float32] = np.partition(scores, count - k, axis=1)[:, count - k]
    return kth


def unit_queries(queries: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return queries (Q, D), not zero, scaled to unit length in float64."""
    wide = queries.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide


def ranked(unit: Unit, query: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], k: int) -> Ranked:
    """Score rows for one query of unit length, and return the k best; equal ones in the order of the rows."""
    exact = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        exact[part] = (np.asarray(unit[rows[part]], np.float64) * query).sum(axis=1)
    best = np.lexsort((rows, -exact))[:k]
    return rows[best], exact[best]
