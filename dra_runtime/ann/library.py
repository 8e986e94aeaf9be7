"""faiss as we use it: imported late, run on as many threads as asked for, given our arrays without a copy."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import BackendError

T = TypeVar("T")
Rows = npt.NDArray[np.int64]
Unit = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Scalar = np.uint8 | np.int32 | np.int64 | np.float32
Report = Callable[[int, int], None]

BLOCK = 8192  # rows turned into codes at once


def load_faiss() -> Any:
    """Import faiss.

    Raises
    ------
    BackendError
        It isn't installed, or can't be loaded.
    """
    try:
        import faiss
    except ImportError as error:
        raise BackendError(
            f'an index needs faiss, which can\'t be imported ({error}); pip install "dra-toolkit[gallery]"'
        ) from error
    if not hasattr(faiss, "MaybeOwnedVectorUInt8"):
        raise BackendError(f'faiss {faiss.__version__} is too old; pip install -U "dra-toolkit[gallery]"')
    return faiss


def half_codes(unit: Unit) -> npt.NDArray[np.uint8]:
    """Return rows as half-precision codes, (N * D * 2,) bytes: those of ``unit`` itself where it is float16 already."""
    if unit.dtype == np.float16:
        half = np.require(unit, requirements=["C", "A"])
    else:
        half = np.empty(unit.shape, np.float16)
        with np.errstate(over="ignore"):  # a row that isn't of unit length finds nothing sensible anyway
            for start in range(0, len(unit), BLOCK):
                half[start : start + BLOCK] = unit[start : start + BLOCK]
    return half.reshape(-1).view(np.uint8)


def flat_index(codes: npt.NDArray[np.uint8], dim: int) -> Any:
    """Make faiss's exact index over half-precision codes, which it reads where they lie.

    The caller must keep ``codes`` alive as long as the index.
    """
    faiss = load_faiss()
    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.codes = view_of(faiss.MaybeOwnedVectorUInt8(), codes)
    index.ntotal = len(codes) // (2 * dim)
    return index


def view_of(vector: Any, values: npt.NDArray[Any]) -> Any:
    """Let one of faiss's vectors look at a contiguous array instead of owning memory."""
    faiss = load_faiss()
    vector.is_owned = False
    # Its own way, create_view, wants a C++ owner that Python can't give
    vector.view_data = vector.c_ptr = faiss.swig_ptr(values)
    vector.view_size = vector.c_size = len(values)
    return vector


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep faiss in the calling thread.

    OpenMP's thread count belongs to the thread that sets it, so other threads aren't disturbed. Without helpers there
    is none that waits by spinning, and none that is missing after a fork.
    """
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def in_own_thread(work: Callable[[Report], T], threads: int, progress: Report | None) -> T:
    """Run ``work`` in a thread of its own, with as many of OpenMP's threads, which end with it.

    So nothing stays behind that spins or that a fork would lose. ``work`` gets a function to report (done, all) with;
    the reports reach ``progress`` in the caller's thread, and Ctrl-C there ends ``work`` at its next report.
    """
    faiss = load_faiss()
    reports: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    stop = threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []

    def report(done: int, count: int) -> None:
        if stop.is_set():
            raise InterruptedError
        reports.put((done, count))

    def run() -> None:
        try:
            faiss.omp_set_num_threads(threads)
            results.append(work(report))
        except BaseException as error:  # noqa: BLE001  whatever it is, the caller gets it
            failures.append(error)
        finally:
            reports.put(None)

    thread = threading.Thread(target=run, name="index")
    thread.start()
    try:
        while (done_of_all := reports.get()) is not None:
            if progress:
                progress(*done_of_all)
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join()
    if failures:
        raise failures[0]
    return results[0]
