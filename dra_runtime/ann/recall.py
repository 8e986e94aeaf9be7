"""How many of the true nearest rows an index finds."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from dra_runtime.ann.library import BLOCK, Rows, Unit

# Rows whose scores differ by less than this are equally near: rounding of a float32 dot product
_EQUAL = np.float32(1e-6)


class Candidates(Protocol):
    """What finds candidate rows; see `dra_runtime.ann.AnnIndex.candidates`."""

    def candidates(
        self, queries: npt.NDArray[np.float32], count: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> Rows:
        """Find rows."""
        ...


def recall_against_exact(index: Candidates, unit: Unit, queries: npt.NDArray[np.float32], k: int = 10) -> float:
    """Return the share of the k nearest rows that the index finds, recall@k.

    A row counts as found where another one as near was given for it: of equal rows any will do.

    Parameters
    ----------
    index
        To be judged.
    unit
        (N, D), its rows.
    queries
        (Q, D) of unit length.
    k
        At least 1; more than N is N.
    """
    k = min(k, len(unit))
    if not k or not len(queries):
        return 1.0
    return recall_of_rows(index.candidates(queries, k), unit, queries, kth_best(unit, queries, k))


def recall_of_rows(rows: Rows, unit: Unit, queries: npt.NDArray[np.float32], worst: npt.NDArray[np.float32]) -> float:
    """Return the share of ``rows`` (Q, k; -1 for none) that score at least ``worst`` (Q,)."""
    found = 0
    for query, own, limit in zip(queries, rows, worst, strict=True):
        own = own[own >= 0]
        found += int((np.asarray(unit[own], np.float32) @ query >= limit - _EQUAL).sum())
    return found / rows.size


def kth_best(unit: Unit, queries: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """Return each query's k-th best score, (Q,), by comparing every row."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(unit), BLOCK):
        scores = queries @ np.asarray(unit[start : start + BLOCK], np.float32).T
        both = np.concatenate([best, scores], axis=1)
        best = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
    worst: npt.NDArray[np.float32] = best.min(axis=1)
    return worst
