"""The hnsw index: a graph of near rows that a search walks through (Malkov and Yashunin, arXiv:1603.09320)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.ann.arrays import HnswArrays, check_finite
from dra_runtime.ann.library import Report, Rows, Unit, flat_index, half_codes, load_faiss, view_of
from dra_runtime.ann.recall import Trial, least_setting

LINKS = 32
EF_CONSTRUCTION = 200
EF_SEARCH = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)  # tried in this order until enough is found
# Rows added at once: few enough that Ctrl-C is heard within seconds
_ROWS = 1024
# A step of the walk compares rows all over the memory, and exact search one after the other: so much dearer is a row
_WALK_COST = 40


@dataclass(frozen=True)
class HnswSearcher:
    """An opened graph, the exact index over the same codes, and the arrays that faiss reads."""

    graph: Any
    exact: Any
    kept: tuple[npt.NDArray[Any], ...]
    ef_search: int
    count: int

    @classmethod
    def of(cls, arrays: HnswArrays, unit: Unit) -> HnswSearcher:
        """Open a checked graph over its rows (N, D), and check those; GalleryFormatError if they aren't finite."""
        faiss = load_faiss()
        codes = half_codes(unit)
        check_finite(codes)
        exact = flat_index(codes, unit.shape[1])
        graph = faiss.IndexHNSW(exact, arrays.links)
        hnsw = graph.hnsw
        highest = int(arrays.levels.max())
        faiss.copy_array_to_vector(arrays.levels.astype(np.int32), hnsw.levels)
        faiss.copy_array_to_vector(arrays.offsets().astype(np.uint64), hnsw.offsets)
        # Places before each layer's own: 0 before the lowest, which has twice as many
        places = np.r_[0, np.arange(2, highest + 2)] * arrays.links
        faiss.copy_array_to_vector(places.astype(np.int32), hnsw.cum_nneighbor_per_level)
        hnsw.neighbors = view_of(faiss.MaybeOwnedVectorInt32(), arrays.neighbors)
        hnsw.entry_point = arrays.entry_point
        hnsw.max_level = highest - 1
        graph.ntotal = len(unit)
        return cls(graph, exact, (codes, arrays.neighbors), arrays.ef_search, len(unit))

    def search(self, queries: npt.NDArray[np.float32], count: int, selector: Any, share: float) -> Rows:
        """Walk through the graph; where few rows are allowed, compare all of those instead."""
        faiss = load_faiss()
        # A walk meets rows that aren't allowed too, so it must be longer by as much
        ef = int(max(self.ef_search, 2 * count) / share)
        rows: Rows
        if ef * _WALK_COST >= share * self.count:
            parameters = faiss.SearchParameters(sel=selector) if selector is not None else None
            rows = self.exact.search(queries, count, params=parameters)[1]
        else:
            parameters = faiss.SearchParametersHNSW(efSearch=ef, sel=selector)
            rows = self.graph.search(queries, count, params=parameters)[1]
        return rows


def build_hnsw(
    unit: Unit,
    seed: int,
    report: Report,
    links: int = LINKS,
    ef_construction: int = EF_CONSTRUCTION,
) -> HnswArrays:
    """Link the rows of ``unit`` (N, D) to near ones, on as many threads as OpenMP has here.

    Parameters
    ----------
    unit
        At least one row.
    seed
        Of the layers.
    report
        Called with the rows done and all.
    links, ef_construction
        Links a row, and rows weighed for them: more find better and build slower.
    """
    faiss = load_faiss()
    rows, dim = unit.shape
    storage = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    storage.codes.resize(rows * dim * 2)  # once, or it would grow by doubling
    storage.codes.resize(0)
    graph = faiss.IndexHNSW(storage, links)
    hnsw = graph.hnsw
    hnsw.rng = faiss.RandomGenerator(seed)
    hnsw.efConstruction = ef_construction
    for start in range(0, rows, _ROWS):
        report(start, rows)
        graph.add(np.ascontiguousarray(unit[start : start + _ROWS], np.float32))
    report(rows, rows)
    arrays = HnswArrays(
        levels=faiss.vector_to_array(hnsw.levels).astype(np.uint8),
        neighbors=faiss.vector_to_array(hnsw.neighbors),
        links=links,
        ef_construction=ef_construction,
        ef_search=EF_SEARCH[0],
        entry_point=hnsw.entry_point,
    )
    del graph, storage  # and their copy of the rows
    searcher = HnswSearcher.of(arrays, unit)

    def trial(ef_search: int) -> Trial:
        return dataclasses.replace(searcher, ef_search=ef_search).search

    return dataclasses.replace(arrays, ef_search=least_setting(trial, EF_SEARCH, unit, seed))
