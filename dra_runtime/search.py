"""Exact search: the k nearest rows by cosine, ties broken by row order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dra_runtime.products import Unit, products

ROWS = 65_536  # rows scored at once
SCORES = 4_194_304  # scores in memory at once
HEAD = 4_096  # scores of a block that are looked at first
SLACK = 64  # rows that a query keeps besides twice as many as are asked for, before they are cut back
GATHERED = 8  # rows are gathered where fewer than one in so many are allowed: copying takes several times as long

Ranked = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]  # rows and scores, best first


def top_k(
    unit: Unit,
    queries: npt.NDArray[np.float32],
    k: int,
    excluded: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_] | None = None,
    threads: int = 1,
) -> list[Ranked]:
    """Find the k nearest rows of each query.

    Float32 products find the candidates. Its last bits depend on a row's place and on the batch, so two equal
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
    threads
        How many threads read the rows for few queries; for many it is BLAS that decides.

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
        # One of the candidates may be excluded
        candidates = _candidates(unit, wide[part].astype(np.float32), k + 1, allowed, margin, threads)
        for query, rows, row in zip(wide[part], candidates, excluded[part], strict=True):
            answers.append(ranked(unit, query, rows[rows != row], k))
    return answers


def _candidates(
    unit: Unit,
    queries: npt.NDArray[np.float32],
    k: int,
    allowed: npt.NDArray[np.bool_] | None,
    margin: np.float32,
    threads: int,
) -> list[npt.NDArray[np.int64]]:
    """Return for each query every row that may be among its k nearest.

    What a query keeps is cut back to its k best, and what rounding may have put below them, when it has grown. From
    then on a block costs a comparison a row: nothing is sorted.
    """
    kept: list[Ranked] = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    limits = np.full(len(queries), np.finfo(np.float32).min)
    for numbers, block, shut in _blocks(unit, allowed):
        found = products(queries, block, threads)
        if shut is not None:
            found[:, shut] = -np.inf
        for i, scores in enumerate(found):
            for part in (slice(0, HEAD), slice(HEAD, None)):  # the head gives the rest of the first block its limit
                new = np.flatnonzero(scores[part] >= limits[i]) + part.start
                if len(new):
                    rows = np.concatenate([kept[i][0], numbers[new]])
                    best = np.concatenate([kept[i][1], scores[new]])
                    if len(rows) > 2 * k + SLACK:
                        limits[i] = np.partition(best, len(best) - k)[len(best) - k] - margin
                        rows, best = rows[best >= limits[i]], best[best >= limits[i]]
                    kept[i] = rows, best
    return [rows for rows, _ in kept]


def _blocks(
    unit: Unit, allowed: npt.NDArray[np.bool_] | None
) -> Iterator[tuple[npt.NDArray[np.int64], Unit, npt.NDArray[np.bool_] | None]]:
    """Yield the rows to compare with block by block: their numbers, themselves, and which of them don't count.

    Where few are allowed, these alone are gathered. Otherwise all are given, since copying them would take longer.
    """
    for start in range(0, len(unit), ROWS):
        block: Unit = unit[start : start + ROWS]
        numbers = np.arange(start, start + len(block), dtype=np.int64)
        if allowed is None:
            yield numbers, block, None
            continue
        inside = allowed[start : start + ROWS]
        count = int(np.count_nonzero(inside))
        if count * GATHERED < len(block):
            yield numbers[inside], block[inside], None
        else:
            yield numbers, block, None if count == len(block) else ~inside


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
