"""Indexes: against brute force, whatever the batch, the threads and the filter, and after a fork."""

import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dra_runtime.ann import INDEX_KINDS, build_index, hnsw, index_from_arrays, recall_against_exact
from dra_runtime.ann.library import half_codes, in_own_thread
from dra_runtime.errors import BackendError, GalleryError, UsageError

faiss = pytest.importorskip("faiss", reason="the extra `gallery` isn't installed")
ROWS, DIM, CENTRES = 3000, 24, 60


def clustered(rows=ROWS, seed=0):
    """Unit rows around a few centres, and unit queries around the same."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((CENTRES, DIM))
    values = centres[rng.integers(0, CENTRES, rows)] + 0.5 * rng.standard_normal((rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def unit():
    return clustered()


@pytest.fixture(scope="module")
def queries():
    return clustered(80, seed=9)


@pytest.fixture(scope="module")
def indexes(unit):
    return {kind: build_index(kind, unit, threads=1) for kind in INDEX_KINDS}


def brute_force(unit, query, count, allowed=None):
    """Rows by their scores in half precision, a plain loop."""
    scores = [
        float(np.dot(row.astype(np.float64), query.astype(np.float64))) if allowed is None or allowed[i] else -np.inf
        for i, row in enumerate(unit.astype(np.float16))
    ]
    return sorted(range(len(unit)), key=lambda i: -scores[i])[:count]


@pytest.mark.parametrize("storage", [np.float32, np.float16])
def test_flat_is_exact_over_half_precision(unit, queries, storage):
    index = build_index("flat", unit.astype(storage), threads=1)
    for query in queries[:5]:
        expected = brute_force(unit, query, 12)
        found = index.candidates(query[None], 12)[0].tolist()
        # The last may be another one as near
        assert found[:10] == expected[:10]
        assert len(set(found)) == 12


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_nearly_all_of_the_nearest_are_found(indexes, unit, queries, kind):
    expected = np.argsort(-(queries @ unit.T), axis=1)[:, :10]
    found = indexes[kind].candidates(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(expected.tolist(), found.tolist(), strict=True)])
    assert recall >= 0.985
    assert recall_against_exact(indexes[kind], unit, queries) == pytest.approx(recall, abs=0.005)


class Fixed:
    """Answers that are known, for measuring recall."""

    def __init__(self, rows):
        self.rows = np.asarray(rows)

    def candidates(self, queries, count, allowed=None):
        return self.rows


def test_recall_counts_what_is_found_and_takes_equal_rows_for_each_other():
    unit = np.float32([[1, 0], [1, 0], [0.6, 0.8], [0, 1]])
    queries = np.float32([[1, 0]])
    assert recall_against_exact(Fixed([[0, 1]]), unit, queries, 2) == 1
    assert recall_against_exact(Fixed([[0, 2]]), unit, queries, 2) == 0.5
    assert recall_against_exact(Fixed([[3, -1]]), unit, queries, 2) == 0
    assert recall_against_exact(Fixed([[1]]), unit, queries, 1) == 1  # row 0 is no nearer
    near = np.float32([[1, 0], [0.9999, 0.01414]])
    assert recall_against_exact(Fixed([[1]]), near, queries, 1) == 0
    assert recall_against_exact(Fixed([[0, 1, 2, 3]]), unit, queries, 9) == 1  # more than there are


@pytest.mark.parametrize("kind", INDEX_KINDS)
@pytest.mark.parametrize("storage", [np.float32, np.float16])
def test_the_arrays_make_the_same_index_again(indexes, unit, queries, kind, storage):
    index = indexes[kind]
    again = index_from_arrays(kind, index.arrays(), unit.astype(storage), threads=1)
    assert again.kind == kind
    np.testing.assert_array_equal(again.candidates(queries, 10), index.candidates(queries, 10))


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_an_answer_does_not_depend_on_the_batch_or_the_threads(indexes, unit, queries, kind):
    index = indexes[kind]
    together = index.candidates(queries, 10)
    alone = np.concatenate([index.candidates(query[None], 10) for query in queries])
    np.testing.assert_array_equal(together, alone)
    for threads in (2, 7):
        several = index_from_arrays(kind, index.arrays(), unit, threads)
        np.testing.assert_array_equal(several.candidates(queries, 10), alone)


@pytest.fixture(params=[*INDEX_KINDS, "walk"])
def any_index(indexes, request, monkeypatch):
    """Every index, and the graph where the search may not turn to comparing all rows."""
    if request.param == "walk":
        monkeypatch.setattr(hnsw, "_WALK_COST", 0)
        return indexes["hnsw"]
    return indexes[request.param]


@pytest.mark.parametrize("share", [0.9, 0.4, 0.1, 0.004])
def test_only_allowed_rows_are_found_and_nearly_all_of_them(any_index, unit, queries, share):
    allowed = np.random.default_rng(4).random(ROWS) < share
    found = any_index.candidates(queries, 10, allowed)
    assert allowed[found[found >= 0]].all()
    scores = np.where(allowed, queries @ unit.T, -np.inf)
    expected = np.argsort(-scores, axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(expected.tolist(), found.tolist(), strict=True)]) >= 0.985


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_where_fewer_rows_are_allowed_the_rest_is_minus_one(indexes, queries, kind):
    allowed = np.zeros(ROWS, bool)
    assert (indexes[kind].candidates(queries[:2], 3, allowed) == -1).all()
    allowed[[5, 2999]] = True
    found = indexes[kind].candidates(queries[:2], 4, allowed)
    assert [sorted(row) for row in found.tolist()] == [[-1, -1, 5, 2999]] * 2
    assert (found[:, 2:] == -1).all()


@pytest.mark.parametrize("kind", INDEX_KINDS)
@pytest.mark.parametrize("rows", [0, 1, 2, 11])
def test_few_rows(queries, kind, rows):
    unit = clustered(rows)
    built = build_index(kind, unit, threads=2)
    for index in (built, index_from_arrays(kind, built.arrays(), unit, threads=1)):
        found = index.candidates(queries[:3], 12)
        assert [sorted(row) for row in found.tolist()] == [sorted([*range(rows), *[-1] * (12 - rows)])] * 3
        assert index.candidates(queries[:0], 12).shape == (0, 12)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_many_equal_rows(kind):
    unit = np.concatenate([np.repeat(clustered(1, seed=3), 500, axis=0), clustered(500)])
    index = build_index(kind, unit, threads=1)
    assert (index.candidates(unit[:1], 20) < 500).all()
    assert recall_against_exact(index, unit, clustered(50, seed=5)) >= 0.95


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_one_thread_and_one_seed_give_one_index(indexes, unit, kind):
    again = build_index(kind, unit, threads=1, seed=0).arrays()
    for name, array in indexes[kind].arrays().items():
        np.testing.assert_array_equal(again[name], array)
    other = build_index(kind, unit[:500], threads=1, seed=1).arrays()
    assert any(not np.array_equal(other[name], a) for name, a in build_index(kind, unit[:500], 1).arrays().items())


def test_half_precision_rows_are_not_copied(unit, tmp_path):
    half = unit.astype(np.float16)
    np.save(tmp_path / "unit.npy", half)
    mapped = np.load(tmp_path / "unit.npy", mmap_mode="r")
    codes = half_codes(mapped)
    assert np.shares_memory(codes, mapped)
    np.testing.assert_array_equal(half_codes(unit), codes)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_progress_ends_at_all_and_comes_in_the_callers_thread(unit, kind):
    steps = []
    build_index(
        kind, unit[:1500], threads=2, progress=lambda done, count: steps.append((done, count, threading.get_ident()))
    )
    assert {thread for _, _, thread in steps} <= {threading.get_ident()}
    if kind != "flat":
        assert steps[-1][0] == steps[-1][1]
        assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_ctrl_c_ends_building_and_leaves_no_thread(unit, kind):
    before = threading.active_count()

    def interrupt(done, count):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(kind, unit, threads=1, progress=interrupt)
    assert threading.active_count() == before


def test_ctrl_c_reaches_the_work_at_its_next_report():
    reported = []

    def work(report):
        for number in range(2000):
            report(number, 2000)
            reported.append(number)
            time.sleep(0.001)

    def interrupt(done, count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_own_thread(work, 1, interrupt)
    assert len(reported) < 2000


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_many_threads_get_the_serial_answers(indexes, unit, queries, kind):
    expected = indexes[kind].candidates(queries, 10)
    fresh = index_from_arrays(kind, indexes[kind].arrays(), unit, threads=2)  # opened by whoever is first

    def ask(number):
        part = slice(number % 40, number % 40 + 1 + number % 30)
        return np.array_equal(fresh.candidates(queries[part], 10), expected[part])

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(160)))


def ended(threads):
    """Whether no more native threads than these are left; one that was joined is gone a moment later."""
    deadline = time.monotonic() + 20
    while len(list(Path("/proc/self/task").iterdir())) > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(list(Path("/proc/self/task").iterdir())) <= threads


def _answer(index, queries, result):
    rebuilt = build_index("hnsw", clustered(300), threads=2)
    result.put((index.candidates(queries, 10), rebuilt.candidates(queries, 3).shape))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that the parent has threads is the point
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc, and forks")
@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_no_thread_stays_and_a_forked_process_answers(unit, queries, kind):
    # Where faiss may take more threads by itself, as it does unless OMP_NUM_THREADS says otherwise
    setting = faiss.omp_get_max_threads()
    before = len(list(Path("/proc/self/task").iterdir()))
    faiss.omp_set_num_threads(4)
    try:
        built = build_index(kind, unit[:1000], threads=4)
        index = index_from_arrays(kind, built.arrays(), unit[:1000], threads=1)
        expected = index.candidates(queries, 10)
        np.testing.assert_array_equal(built.candidates(queries, 10), expected)
        assert ended(before)  # nobody is left who could spin, or be missing in the child
        assert faiss.omp_get_max_threads() == 4
    finally:
        faiss.omp_set_num_threads(setting)
    context = multiprocessing.get_context("fork")
    result = context.SimpleQueue()
    child = context.Process(target=_answer, args=(index, queries, result))
    child.start()
    child.join(60)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()
    found, shape = result.get()
    np.testing.assert_array_equal(found, expected)
    assert shape == (len(queries), 3)


def test_faiss_is_imported_when_it_is_needed():
    code = (
        "import sys, numpy as np; from dra_runtime.ann import index_from_arrays;"
        "index = index_from_arrays('flat', {}, np.eye(4, dtype=np.float32), 1); print('faiss' in sys.modules);"
        "index.candidates(np.eye(4, dtype=np.float32), 1); print('faiss' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "True"]


def test_without_faiss_the_error_says_what_to_install(unit, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(BackendError, match=r'pip install "dra-toolkit\[gallery\]"'):
        build_index("flat", unit, threads=1)
    with pytest.raises(BackendError, match="faiss"):
        index_from_arrays("flat", {}, unit, threads=1).candidates(unit[:1], 1)


def test_an_old_faiss_is_named(unit, monkeypatch):
    monkeypatch.delattr(faiss, "MaybeOwnedVectorUInt8")
    with pytest.raises(BackendError, match="too old"):
        build_index("flat", unit, threads=1)


def test_unusable_arguments(indexes, unit, queries):
    flat = indexes["flat"]
    with pytest.raises(UsageError, match="flat, hnsw, ivf"):
        build_index("annoy", unit, threads=1)
    with pytest.raises(UsageError, match=r"give \(Q, 24\)"):
        flat.candidates(queries[:, :5], 3)
    with pytest.raises(UsageError, match="finite"):
        flat.candidates(np.full_like(queries, np.nan), 3)
    with pytest.raises(UsageError, match="at least 1"):
        flat.candidates(queries, 0)
    with pytest.raises(UsageError, match=r"give bool \(3000,\)"):
        flat.candidates(queries, 3, np.ones(7, bool))


def test_rows_that_are_no_numbers_are_an_error_of_ours(unit):
    damaged = unit[:200].copy()
    damaged[7] = np.nan
    with pytest.raises(GalleryError, match="integrity"):
        build_index("ivf", damaged, threads=1)
