"""How many of the true nearest rows an index finds, and the least effort that finds enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dra_runtime.ann.library import Rows, Unit
from dra_runtime.search import top_k

# Rows whose scores differ by less than this are equally near: rounding of a float32 dot product
_EQUAL = np.float32(1e-6)

ENOUGH = 0.992  # recall@10 that a setting must reach when it is chosen: 0.99, and a little for other queries
QUERIES = 256  # that a setting is tried with
NEAREST = 10

Trial = Callable[[npt.NDArray[np.float32], int, Any, float], Rows]


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
    """Return each query's k-th best score, (Q,), found by exact search; k is at most N."""
    exact = top_k(unit, queries, k, np.full(len(queries), -1))
    return np.array([scores[-1] for _, scores in exact], np.float32)


def least_setting(trial: Callable[[int], Trial], settings: Sequence[int], unit: Unit, seed: int) -> int:
    """Return the first setting whose search finds enough, or the last.

    Parameters
    ----------
    trial
        Gives the search with a setting: queries, count, selector, share -> rows.
    settings
        The cheapest first.
    unit
        (N, D), at least one row.
    seed
        Of the queries.
    """
    k = min(NEAREST, len(unit))
    queries = likely_queries(unit, QUERIES, seed)
    worst = kth_best(unit, queries, k)
    if not len(queries):  # no row is more than zeros
        return settings[0]
    for setting in settings:
        if recall_of_rows(trial(setting)(queries, k, None, 1.0), unit, queries, worst) >= ENOUGH:
            return setting
    return settings[-1]


def likely_queries(unit: Unit, count: int, seed: int) -> npt.NDArray[np.float32]:
    """Draw up to ``count`` queries of unit length that lie between rows, as composed ones do: no row is one itself."""
    rng = np.random.default_rng([seed, 1])  # not what else is drawn by this seed
    first, second = (np.asarray(unit[rng.integers(0, len(unit), count)], np.float32) for _ in range(2))
    mixed = first + second
    queries: npt.NDArray[np.float32] = mixed[mixed.any(axis=1)]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return queries
