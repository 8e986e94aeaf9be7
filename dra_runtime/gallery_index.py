"""An index over a gallery's first rows: it proposes candidates, which are scored as in exact search."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import UsageError
from dra_runtime.products import Unit
from dra_runtime.search import Ranked, ranked, top_k, unit_queries
from dra_runtime.strict_json import values_from_json

if TYPE_CHECKING:
    from dra_runtime.ann import AnnIndex, IndexKind

Progress = Callable[[int, int], None]

KINDS = ("flat", "hnsw", "ivf")
SPARE = 16  # candidates beyond k: what half precision may have put in the wrong order
EXACT_BELOW = 10_000  #: allowed rows up to which exact search is as quick
QUERIES = 200  #: that recall is measured with


@dataclass(frozen=True)
class IndexReport:
    """An index, and how well it found the true nearest images when it was built.

    ``recall_at_10`` is the share of the 10 nearest that it found, over ``queries`` queries; ``images`` how many images
    it is over; ``seconds`` how long building took.
    """

    kind: str
    recall_at_10: float
    queries: int
    images: int
    seconds: float

    def __str__(self) -> str:
        found = f"recall@10 {self.recall_at_10:.4f} on {self.queries} queries"
        return f"{self.kind}, {found}, built in {self.seconds:.1f} s"


@dataclass(frozen=True, eq=False)
class StoredIndex:
    """An index as a file holds it: its report, and plain arrays by name."""

    report: IndexReport
    arrays: Mapping[str, npt.NDArray[Any]]


def report_to_json(report: IndexReport) -> str:
    """Return the text that a gallery's file holds."""
    return json.dumps(asdict(report), separators=(",", ":"))


def report_from_json(text: str) -> IndexReport:
    """Read what `report_to_json` wrote; ValueError, KeyError or TypeError where it is something else."""
    values = values_from_json(text.encode("utf-8"))
    if not isinstance(values, dict) or set(values) != set(IndexReport.__dataclass_fields__):
        raise ValueError("other settings than an index's")
    report = IndexReport(**values)
    whole = (report.queries, report.images)
    numbers = (report.recall_at_10, report.seconds)
    if (
        report.kind not in KINDS
        or not all(type(n) is int and 0 <= n < 2**40 for n in whole)
        or not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers)
        or report.recall_at_10 > 1
    ):
        raise ValueError("impossible settings of an index")
    return report


class GalleryIndex:
    """Answers over the rows that an index was built over: what it proposes is scored as in exact search.

    Safe to share between threads. faiss is imported, and the index made ready, at the first search.
    """

    def __init__(self, report: IndexReport, ann: AnnIndex) -> None:
        self.report = report
        self._ann = ann

    def stored(self, changed: bool, images: int) -> StoredIndex | None:
        """Return what a file of ``images`` images holds of it; None where they ``changed`` and it can't be theirs."""
        if changed and self.report.kind != "flat":
            return None
        return StoredIndex(replace(self.report, images=images), self._ann.arrays())  # flat reads the vectors themselves

    def search(
        self,
        unit: Unit,
        queries: npt.NDArray[np.float32],
        k: int,
        excluded: npt.NDArray[np.int64],
        allowed: npt.NDArray[np.bool_] | None,
        threads: int = 1,
    ) -> list[Ranked]:
        """Find the k nearest rows: see `dra_runtime.search.top_k`; never fewer than it finds, but perhaps others.

        Where few rows are allowed, or most of them are asked for, the search is exact.
        """
        possible = len(unit) if allowed is None else int(np.count_nonzero(allowed))
        count = k + k // 4 + SPARE
        if possible <= EXACT_BELOW or 4 * count > possible:
            return top_k(unit, queries, k, excluded, allowed, threads)
        wide = unit_queries(queries)
        proposed = self._ann.candidates(wide.astype(np.float32), count, allowed)
        answers = []
        for number, (query, rows) in enumerate(zip(wide, proposed, strict=True)):
            rows = rows[(rows >= 0) & (rows != excluded[number])]
            if len(rows) < k:  # more are there: `count` is far below `possible`
                own = slice(number, number + 1)
                answers += top_k(unit, queries[own], k, excluded[own], allowed, threads)
            else:
                answers.append(ranked(unit, query, rows, k))
        return answers


def built_index(kind: str, unit: Unit, threads: int, progress: Progress | None) -> GalleryIndex:
    """Build an index over rows (N, D), and measure its recall against exact search.

    Raises
    ------
    UsageError
        No such kind.
    BackendError
        faiss isn't installed.
    """
    from dra_runtime.ann import build_index

    began = time.perf_counter()
    ann = build_index(checked_kind(kind), unit, threads, progress)
    seconds = time.perf_counter() - began
    queries = queries_between(unit, QUERIES)
    index = GalleryIndex(IndexReport(kind, 1.0, len(queries), len(unit), round(seconds, 3)), ann)
    return GalleryIndex(replace(index.report, recall_at_10=recall_of(index, unit, queries, 10)), ann)


def opened_index(stored: StoredIndex, unit: Unit, threads: int) -> GalleryIndex:
    """Open an index of a file over its rows; GalleryFormatError where it can't be theirs."""
    from dra_runtime.ann import index_from_arrays

    return GalleryIndex(
        stored.report, index_from_arrays(checked_kind(stored.report.kind), stored.arrays, unit, threads)
    )


def checked_kind(kind: str) -> IndexKind:
    """Return a kind of index, or raise UsageError."""
    if kind not in KINDS:
        raise UsageError(f"index is {kind!r:.40}; give {', '.join(map(repr, KINDS))}, or None for exact search")
    return kind  # type: ignore[return-value]


def queries_between(unit: Unit, count: int) -> npt.NDArray[np.float32]:
    """Make queries of a gallery's own rows: each halfway between two drawn by chance.

    A composed query lies so too, between its reference and what it asks for, and is none of the rows. (Q, D), none
    zero; always the same of the same rows.
    """
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, max(1, len(unit)), (2, min(count, len(unit))))
    first, second = (np.asarray(unit[rows], np.float32) for rows in pairs)
    queries: npt.NDArray[np.float32] = first + second
    return queries[queries.any(axis=1)]


def recall_of(index: GalleryIndex, unit: Unit, queries: npt.NDArray[np.float32], k: int) -> float:
    """Return the share of the true k nearest rows that an index finds; of equally near ones any will do."""
    none = np.full(len(queries), -1)
    truth, found = top_k(unit, queries, k, none), index.search(unit, queries, k, none, None)
    hits = sum(int((scores >= best[-1]).sum()) for (_, scores), (_, best) in zip(found, truth, strict=True))
    return round(hits / max(1, sum(len(best) for _, best in truth)), 6) if len(queries) else 1.0
