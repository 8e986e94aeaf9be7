"""Ranks of the right answers and what each benchmark computes from them; ties are broken by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dra_train.data import Query

RECALLS = (1, 5, 10, 50)  #: K of CIRR's recalls over the whole gallery
SUBSET_RECALLS = (1, 2, 3)  #: K of the recalls within a query's own group
FASHIONIQ_RECALLS = (10, 50)
CIRCO_DEPTHS = (5, 10, 25, 50)  #: K of CIRCO's mean average precisions and recalls
COUNT_WORDS = {1: "one", 2: "two", 3: "three"}

NO_ANSWER = np.iinfo(np.int64).max  #: fills up the rows of `Ranks.answers`


@dataclass(frozen=True)
class Columns:
    """Where a gallery's names are in a matrix of scores, and in sorted order."""

    names: tuple[str, ...]
    index: dict[str, int]  #: column by name
    place: NDArray[np.int64]  #: (G,) a name's place in sorted order, which breaks ties

    @classmethod
    def of(cls, names: Sequence[str]) -> Columns:
        """Index names, which are all different."""
        place = np.empty(len(names), np.int64)
        place[np.argsort(np.array(names))] = np.arange(len(names))
        return cls(tuple(names), {name: i for i, name in enumerate(names)}, place)


@dataclass(frozen=True)
class Ranks:
    """The ranks, from 0, of Q queries' right answers; every metric is computed from them."""

    target: NDArray[np.int64]  #: (Q,) over the gallery
    subset: NDArray[np.int64]  #: (Q,) among the other members of the query's group; -1 without one
    answers: NDArray[np.int64]  #: (Q, A) of all right answers over the gallery, ascending, then `NO_ANSWER`

    def where(self, mask: NDArray[np.bool_]) -> Ranks:
        """Keep some of the queries."""
        return Ranks(self.target[mask], self.subset[mask], self.answers[mask])


def drops_reference(format: str) -> bool:
    """Tell whether a format's protocol takes the reference out of the gallery: FashionIQ's and CIRCO's don't."""
    return format in ("cirr", "jsonl")


def rank_answers(
    scores: NDArray[np.float32], queries: Sequence[Query], columns: Columns, drop_reference: bool = True
) -> Ranks:
    """Rank the right answers of a block of queries.

    ``scores`` (Q, G) holds one row a query and one column a name. A rank is how many others score higher, or equal with
    a name that sorts before. A group's ranking always leaves the reference out.
    """
    assert np.isfinite(scores).all(), "scores must be finite: nothing is ahead of a NaN, so it would rank first"
    rows = np.arange(len(queries))
    reference = np.array([columns.index[q.reference] for q in queries])
    most = max((len(q.right_answers) for q in queries), default=1)
    answers = np.full((len(queries), most), NO_ANSWER)
    for i in range(most):
        has = np.array([len(q.right_answers) > i for q in queries])
        column = np.array([columns.index[q.right_answers[i]] for q, there in zip(queries, has, strict=True) if there])
        block = scores[has] if not has.all() else scores
        score = block[np.arange(len(column)), column][:, None]
        ahead = (block > score) | ((block == score) & (columns.place[None, :] < columns.place[column][:, None]))
        if drop_reference:
            ahead[np.arange(len(column)), reference[has]] = False
        answers[rows[has], i] = ahead.sum(axis=1)
    # The target is the first right answer in CIRCO's files, but nobody promises that.
    first = [q.right_answers.index(q.target) for q in queries]
    return Ranks(answers[rows, first], _subset_ranks(scores, queries, columns), np.sort(answers, axis=1))


def _subset_ranks(scores: NDArray[np.float32], queries: Sequence[Query], columns: Columns) -> NDArray[np.int64]:
    ranks = np.full(len(queries), -1, dtype=np.int64)
    for i, query in enumerate(queries):
        if query.target in query.group:
            others = [n for n in query.group if n not in (query.reference, query.target)]
            mine = (-scores[i, columns.index[query.target]], query.target)
            ranks[i] = sum((-scores[i, columns.index[n]], n) < mine for n in others)
    return ranks


def join_ranks(blocks: Sequence[Ranks]) -> Ranks:
    """Put blocks of queries together."""
    most = max(block.answers.shape[1] for block in blocks)
    wide = [
        np.pad(block.answers, ((0, 0), (0, most - block.answers.shape[1])), constant_values=NO_ANSWER)
        for block in blocks
    ]
    target, subset = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("target", "subset"))
    return Ranks(target, subset, np.concatenate(wide))


def measure(ranks: Ranks, format: str) -> dict[str, float]:
    """Compute a format's metrics in percent.

    CIRR and own data: R@1/5/10/50, Rsubset@1/2/3 where there are groups, and CIRR's mean of R@5 and Rsubset@1.
    FashionIQ: R@10, R@50 and their mean. CIRCO: mAP@5/10/25/50 over all right answers, R@5/10/25/50 of the target.
    """
    if format == "fashioniq":
        result = {f"R@{k}": _percent(ranks.target < k) for k in FASHIONIQ_RECALLS}
        return {**result, "mean": round(sum(result.values()) / len(result), 2)}
    if format == "circo":
        precisions = {f"mAP@{k}": _percent(average_precision(ranks.answers, k)) for k in CIRCO_DEPTHS}
        return precisions | {f"R@{k}": _percent(ranks.target < k) for k in CIRCO_DEPTHS}
    result = {f"R@{k}": _percent(ranks.target < k) for k in RECALLS}
    grouped = ranks.subset[ranks.subset >= 0]
    if len(grouped):
        result |= {f"Rsubset@{k}": _percent(grouped < k) for k in SUBSET_RECALLS}
        result["mean"] = round((result["R@5"] + result["Rsubset@1"]) / 2, 2)
    return result


def average_precision(answers: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return AP@k of every query, from the ascending ranks (Q, A) of its right answers.

    CIRCO's formula: the sum over k' <= k of P(k') rel(k'), over min(right answers, k).
    """
    found = np.arange(1, answers.shape[1] + 1)  # right answers met up to each of them
    with np.errstate(over="ignore"):  # NO_ANSWER + 1, which is not < k
        precision = np.where(answers < k, found / (answers.astype(np.float64) + 1), 0.0)
    count = (answers != NO_ANSWER).sum(axis=1)
    result: NDArray[np.float64] = precision.sum(axis=1) / np.minimum(count, k)
    return result


def measure_by_edit(ranks: Ranks, queries: Sequence[Query], format: str) -> dict[str, dict[str, float]]:
    """Return `measure` and the number of queries for every kind of edit that the data set names.

    A query of CIRCO counts for each of its semantic aspects.
    """
    kinds = [set(q.edit.split("+")) if format == "circo" else {q.edit} for q in queries]
    return {
        kind: _measured(ranks, np.array([kind in of_query for of_query in kinds]), format)
        for kind in sorted(set().union(*kinds) - {""})
    }


def measure_by_attributes(ranks: Ranks, queries: Sequence[Query], format: str) -> dict[str, dict[str, float]]:
    """Return `measure` for edits of one attribute, of two and so on; empty where no edit names several."""
    counts = np.array([len(q.edit.split("+")) if q.edit else 0 for q in queries])
    if not (counts > 1).any():
        return {}
    noun = "aspect" if format == "circo" else "attribute"
    return {
        f"{COUNT_WORDS.get(n, n)} {noun}{'s' if n > 1 else ''}": _measured(ranks, counts == n, format)
        for n in sorted(set(counts.tolist()) - {0})
    }


def ranked_names(
    scores: NDArray[np.float32], queries: Sequence[Query], columns: Columns, k: int, drop_reference: bool = True
) -> list[list[str]]:
    """Turn scores (Q, G) into every query's first ``k`` names, best first."""
    result = []
    for row, query in zip(scores, queries, strict=True):
        wanted = min(k + drop_reference, len(row))
        least = np.partition(row, len(row) - wanted)[len(row) - wanted]
        best = np.flatnonzero(row >= least)  # all that tie for the last place: their names decide
        order = best[np.lexsort((columns.place[best], -row[best]))]
        names = [columns.names[i] for i in order]
        result.append([n for n in names if not (drop_reference and n == query.reference)][:k])
    return result


def _measured(ranks: Ranks, mask: NDArray[np.bool_], format: str) -> dict[str, float]:
    return {"queries": int(mask.sum()), **measure(ranks.where(mask), format)}


def _percent(values: NDArray[np.bool_] | NDArray[np.float64]) -> float:
    return round(100 * float(values.mean()), 2)
