"""An index over a gallery's first rows: it proposes candidates, which are scored as in exact search."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.search import Ranked, top_k
from dra_runtime.strict_json import values_from_json

KINDS = ("flat", "hnsw", "ivf")


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
        or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
    ):
        raise ValueError("impossible settings of an index")
    return report


class GalleryIndex:
    """Candidates for the rows that stood in the gallery when the index was built."""

    def search(
        self,
        unit: npt.NDArray[np.float32 | np.float16],
        queries: npt.NDArray[np.float32],
        k: int,
        excluded: npt.NDArray[np.int64],
        allowed: npt.NDArray[np.bool_] | None,
    ) -> list[Ranked]:
        """Find the k nearest rows, as `dra_runtime.search.top_k` does but perhaps not all of them."""
        return top_k(unit, queries, k, excluded, allowed)
