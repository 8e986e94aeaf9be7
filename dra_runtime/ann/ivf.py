"""The ivf index: rows in lists by their nearest centroid, of which a search reads a few."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.ann.arrays import IvfArrays
from dra_runtime.ann.library import BLOCK, Report, Rows, Unit, half_codes, load_faiss
from dra_runtime.ann.recall import Trial, least_setting

ROUNDS = 10  # of k-means
SAMPLE = 48  # rows a list that k-means learns from
# From so many queries on, faiss finds their lists by another product, whose last bits differ
_QUERIES = 16


@dataclass(frozen=True)
class IvfSearcher:
    """Opened lists, which hold their own copy of the rows."""

    index: Any
    quantizer: Any  # the index uses it and doesn't own it
    lists: int
    probes: int

    @classmethod
    def of(cls, arrays: IvfArrays, unit: Unit) -> IvfSearcher:
        """Open checked lists over their rows (N, D)."""
        faiss = load_faiss()
        lists, dim = arrays.centroids.shape
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(arrays.centroids)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        index.is_trained = True
        order = np.argsort(arrays.assignment, kind="stable")
        ends = np.cumsum(np.bincount(arrays.assignment, minlength=lists))
        for number, end in enumerate(ends):
            rows = order[(ends[number - 1] if number else 0) : end]
            if len(rows):
                codes = half_codes(unit[rows])
                index.invlists.add_entries(number, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(codes))
        index.ntotal = len(unit)
        return cls(index, quantizer, lists, arrays.probes)

    def search(self, queries: npt.NDArray[np.float32], count: int, selector: Any, share: float) -> Rows:
        """Read the lists with the nearest centroids; more of them where few rows are allowed."""
        faiss = load_faiss()
        probes = min(self.lists, int(np.ceil(self.probes / share)))
        parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
        found = [
            self.index.search(queries[start : start + _QUERIES], count, params=parameters)[1]
            for start in range(0, len(queries), _QUERIES)
        ]
        return np.concatenate(found)


def build_ivf(unit: Unit, seed: int, report: Report) -> IvfArrays:
    """Part the rows of ``unit`` (N, D) into lists by k-means, on as many threads as OpenMP has here.

    Parameters
    ----------
    unit
        At least one row.
    seed
        Of the sample and of the first centroids.
    report
        Called with the rows done and all; learning counts as rows too.
    """
    faiss = load_faiss()
    count, dim = unit.shape
    lists = max(1, min(count, round(2 * count**0.5)))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(count, min(count, lists * SAMPLE), replace=False))
    rows = np.empty((len(sample), dim), np.float32)
    for start in range(0, len(sample), BLOCK):
        rows[start : start + BLOCK] = unit[sample[start : start + BLOCK]]
    learning = faiss.Clustering(dim, lists)
    learning.niter = 1
    learning.spherical = True
    learning.min_points_per_centroid = 1
    learning.max_points_per_centroid = SAMPLE
    learning.seed = seed % 2**31
    quantizer = faiss.IndexFlatIP(dim)
    steps = ROUNDS * len(rows) + count
    for number in range(ROUNDS):  # one at a time, to report between them; each begins with what the last one found
        report(number * len(rows), steps)
        learning.train(rows, quantizer)
    centroids = np.ascontiguousarray(faiss.vector_to_array(learning.centroids).reshape(lists, dim))
    assignment = np.empty(count, np.int32)
    for start in range(0, count, BLOCK):
        report(ROUNDS * len(rows) + start, steps)
        block = np.ascontiguousarray(unit[start : start + BLOCK], np.float32)
        assignment[start : start + BLOCK] = quantizer.assign(block, 1)[:, 0]
    report(steps, steps)
    arrays = IvfArrays(centroids, assignment, lists)
    searcher = IvfSearcher.of(arrays, unit)

    def trial(probes: int) -> Trial:
        return dataclasses.replace(searcher, probes=probes).search

    tried = sorted({min(lists, round(4 * 1.25**power)) for power in range(64)})
    return dataclasses.replace(arrays, probes=least_setting(trial, tried, unit, seed))
