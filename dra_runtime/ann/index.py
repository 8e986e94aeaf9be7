"""One index over the rows of a gallery, of any kind."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from dra_runtime.ann.arrays import check_kinds, hnsw_from_arrays, ivf_from_arrays
from dra_runtime.ann.library import Report, Rows, Unit, in_own_thread, load_faiss, one_thread
from dra_runtime.errors import GalleryError, UsageError

IndexKind = Literal["flat", "hnsw", "ivf"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
Arrays = dict[str, npt.NDArray[Any]]


class Searcher(Protocol):
    """An opened index of one kind."""

    def search(self, queries: npt.NDArray[np.float32], count: int, selector: Any, share: float) -> Rows:
        """Find ``count`` rows a query, -1 where there are fewer, among those that a selector of faiss allows.

        ``share`` of all rows is allowed. Called by several threads at once.
        """
        ...


class AnnIndex:
    """Finds candidate rows for queries. Make one with `build_index` or `index_from_arrays`.

    Safe to share between threads and with forked processes. What it is made of stays in plain arrays; faiss is
    imported, and the arrays are checked, when the first query comes.

    Attributes
    ----------
    kind
        "flat", "hnsw" or "ivf".
    """

    def __init__(self, kind: IndexKind, arrays: Arrays, unit: Unit, threads: int) -> None:
        self.kind: IndexKind = kind
        self._arrays = arrays
        self._unit = unit
        self._threads = threads
        self._lock = threading.Lock()
        self._searcher: Searcher | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} index of {len(self._unit)} rows>"

    def arrays(self) -> Arrays:
        """Return all that `index_from_arrays` needs besides the rows: plain arrays by name."""
        return dict(self._arrays)

    def open(self) -> None:
        """Check the arrays and make the index ready, which the first query does otherwise.

        Raises
        ------
        GalleryFormatError
            The arrays aren't an index of these rows.
        BackendError
            faiss can't be imported.
        """
        self._opened()

    def candidates(
        self, queries: npt.NDArray[np.float32], count: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> Rows:
        """Find rows that are probably the nearest.

        An answer doesn't depend on the other queries.

        Parameters
        ----------
        queries
            (Q, D) of unit length.
        count
            At least 1.
        allowed
            (N,) the rows that may be found; all where it is None.

        Returns
        -------
        numpy.ndarray
            (Q, count) row numbers, nearest first by half-precision scores; -1 where fewer were found.

        Raises
        ------
        UsageError
            The shapes don't fit, a query isn't finite, or count isn't positive.
        GalleryFormatError, BackendError
            As `open`.
        """
        rows, dim = self._unit.shape
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise UsageError(f"queries of shape {queries.shape} for an index of {dim} dimensions; give (Q, {dim})")
        if not np.isfinite(queries).all():
            raise UsageError("a query isn't of finite numbers; check the bundle and the image")
        if count < 1:
            raise UsageError(f"{count} candidates asked for; ask for at least 1")
        if allowed is not None and (allowed.shape != (rows,) or allowed.dtype != np.bool_):
            raise UsageError(f"allowed is {allowed.dtype} {allowed.shape}; give bool ({rows},)")
        found = np.full((len(queries), count), -1, np.int64)
        possible = rows if allowed is None else int(np.count_nonzero(allowed))
        if not possible or not len(queries):
            return found
        searcher = self._opened()
        selector = None
        if allowed is not None and possible < rows:
            bits = np.packbits(allowed, bitorder="little")  # lives as long as this call, and so as its selector
            selector = load_faiss().IDSelectorBitmap(bits)
        wanted = min(count, possible)

        def search(part: slice) -> None:
            with one_thread():
                found[part, :wanted] = searcher.search(queries[part], wanted, selector, possible / rows)

        parts = _parts(len(queries), self._threads)
        if len(parts) == 1:
            search(parts[0])
        else:
            from concurrent.futures import ThreadPoolExecutor

            # Made anew for each batch: nothing stays behind that waits, or that a fork would lose
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(search, parts))
        return found

    def _opened(self) -> Searcher:
        searcher = self._searcher
        if searcher is None:
            with self._lock:
                searcher = self._searcher
                if searcher is None:
                    searcher = self._searcher = _open(self.kind, self._arrays, self._unit)
        return searcher


def build_index(kind: IndexKind, unit: Unit, threads: int, progress: Report | None = None, seed: int = 0) -> AnnIndex:
    """Build an index over rows.

    The rows are read in blocks, so they may be a memory map. Ctrl-C ends it within seconds.

    Parameters
    ----------
    kind
        "flat", "hnsw" or "ivf".
    unit
        (N, D) float32 or float16, of unit length. The index keeps using it.
    threads
        For building and for batches of queries. With one thread, the same rows and seed give the same index.
    progress
        Called with the steps done and all; a step isn't always a row.
    seed
        Of all that is drawn by chance.

    Raises
    ------
    UsageError
        No such kind.
    BackendError
        faiss can't be imported.
    GalleryError
        The rows aren't finite numbers.
    """
    if kind not in INDEX_KINDS:
        raise UsageError(f"no index is called {kind!r:.40}; there are {', '.join(INDEX_KINDS)}")
    load_faiss()
    arrays: Arrays = {}
    if len(unit) and kind != "flat":
        build = _build_hnsw if kind == "hnsw" else _build_ivf
        try:
            arrays = in_own_thread(lambda report: build(unit, seed, report), threads, progress)
        except RuntimeError as error:  # what faiss says of values that it can't use
            reason = " ".join(str(error).split())[-200:]
            raise GalleryError(
                f"faiss can't build the {kind} index: {reason}; open the gallery with integrity='hash'"
            ) from error
    return AnnIndex(kind, arrays, unit, threads)


def index_from_arrays(kind: IndexKind, arrays: Mapping[str, npt.NDArray[Any]], unit: Unit, threads: int) -> AnnIndex:
    """Make an index of what `AnnIndex.arrays` gave, without reading it yet.

    The values are checked by `AnnIndex.open`, or when the first query comes.

    Parameters
    ----------
    kind, arrays
        Of the index that was stored; the arrays may be memory maps.
    unit
        (N, D), the very rows that it was built over.
    threads
        For batches of queries.

    Raises
    ------
    GalleryFormatError
        No such kind, or arrays that no index of this kind and size has.
    """
    check_kinds(kind, arrays, len(unit))
    return AnnIndex(kind, dict(arrays), unit, threads)


def _build_hnsw(unit: Unit, seed: int, report: Report) -> Arrays:
    from dra_runtime.ann.hnsw import build_hnsw

    return build_hnsw(unit, seed, report).as_arrays()


def _build_ivf(unit: Unit, seed: int, report: Report) -> Arrays:
    from dra_runtime.ann.ivf import build_ivf

    return build_ivf(unit, seed, report).as_arrays()


def _open(kind: IndexKind, arrays: Arrays, unit: Unit) -> Searcher:
    if kind == "hnsw":
        from dra_runtime.ann.hnsw import HnswSearcher

        return HnswSearcher.of(hnsw_from_arrays(arrays, len(unit)), unit)
    if kind == "ivf":
        from dra_runtime.ann.ivf import IvfSearcher

        return IvfSearcher.of(ivf_from_arrays(arrays, *unit.shape), unit)
    from dra_runtime.ann.flat import FlatSearcher

    return FlatSearcher.of(unit)


def _parts(count: int, threads: int) -> list[slice]:
    size = -(-count // max(1, min(threads, count)))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
