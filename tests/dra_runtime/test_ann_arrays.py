"""Stored indexes that were damaged or forged: an error of ours or rows that exist, never a crash or a hang."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dra_runtime.ann import hnsw, index_from_arrays
from dra_runtime.ann.arrays import hnsw_from_arrays
from dra_runtime.ann.hnsw import build_hnsw
from dra_runtime.ann.ivf import build_ivf
from dra_runtime.errors import GalleryFormatError

pytest.importorskip("faiss", reason="the extra `gallery` isn't installed")
ROWS, DIM = 400, 8
EDGES = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 255, 256, ROWS - 1, ROWS, ROWS + 1, 65_536, 2**31 - 1, 2**63 - 1]
FLOATS = [np.nan, np.inf, -np.inf, 1e38, -1e38, 0.0, 1e-40]


def make_unit():
    values = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def make_arrays(unit):
    """Return sound arrays by kind; few links a row make a graph of many layers."""
    return {
        "hnsw": build_hnsw(unit, 0, lambda done, count: None, links=3).as_arrays(),
        "ivf": build_ivf(unit, 0, lambda done, count: None).as_arrays(),
    }


@pytest.fixture(scope="module")
def unit():
    return make_unit()


@pytest.fixture(scope="module")
def sound(unit):
    return make_arrays(unit)


def damaged(arrays, rng):
    """Return a copy with one or two things wrong in it."""
    arrays = dict(arrays)
    for _ in range(rng.integers(1, 3)):
        name = str(rng.choice(sorted(arrays)))
        array = arrays[name].copy()
        how = rng.choice(
            ["values", "values", "links", "links", "links", "bytes", "length", "type", "shape", "order", "name"]
        )
        if how == "name":
            del arrays[name]
            name = str(rng.choice(["levels", "neighbors", "offsets", "assignment", "x"]))
        elif how == "length":
            array = np.resize(array, (int(rng.integers(0, 2 * len(array) + 2)), *array.shape[1:]))
        elif how == "type":
            with np.errstate(all="ignore"):
                array = array.astype(rng.choice([np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64]))
        elif how == "shape":
            array = array.reshape([(1, -1), (-1, 1), (-1,)][rng.integers(3)])
        elif how == "order":
            array = rng.permutation(array)
        elif array.size and how == "bytes":
            raw = array.reshape(-1).view(np.uint8)
            raw[rng.integers(0, len(raw), rng.integers(1, 50))] = rng.integers(0, 256)
        elif array.size and how == "links":  # what could stand there, elsewhere
            flat = array.reshape(-1)
            flat[rng.integers(0, len(flat), len(flat) // 3)] = rng.choice(flat, len(flat) // 3)
        elif array.size:
            flat = array.reshape(-1)
            for place in rng.integers(0, len(flat), rng.integers(1, 5)):
                edge = FLOATS[rng.integers(len(FLOATS))] if flat.dtype.kind == "f" else EDGES[rng.integers(len(EDGES))]
                flat[place] = np.array(edge).astype(flat.dtype)
        arrays[name] = array
    return arrays


def try_damaged(sound, unit, cases, seed):
    """Return how many of the cases were refused; every answer of the others is rows that exist, none twice."""
    rng = np.random.default_rng(seed)
    refused = 0
    queries = unit[:4]
    for case in range(cases):
        kind = ("hnsw", "ivf")[case % 2]
        rows = unit if case % 9 else unit[: rng.integers(1, ROWS)]  # an index of other rows
        if not case % 7:  # and rows that are no unit vectors
            rows = rows.copy()
            rows.reshape(-1)[rng.integers(0, rows.size, 40)] = rng.choice(FLOATS, 40)
        if case % 3:
            with np.errstate(all="ignore"):
                rows = rows.astype(np.float16)
        allowed = None if rng.random() < 0.5 else rng.random(len(rows)) < rng.choice([0.01, 0.5, 0.95])
        try:
            index = index_from_arrays(kind, damaged(sound[kind], rng), rows, threads=1)
            found = index.candidates(queries, int(rng.choice([1, 10, 500])), allowed)
        except GalleryFormatError:
            refused += 1
            continue
        assert found.max() < len(rows)
        assert found.min() >= -1
        for row in found:
            row = row[row >= 0]
            assert len(set(row.tolist())) == len(row)
            assert allowed is None or allowed[row].all()
    return refused


def test_damaged_arrays_are_refused_or_answer(sound, unit, monkeypatch):
    monkeypatch.setattr(hnsw, "_WALK_COST", 0)  # or rows as few as these would not be searched by their graph
    refused = try_damaged(sound, unit, 2000, seed=0)
    assert 800 < refused < 1700


@pytest.mark.slow
def test_many_damaged_arrays_in_a_process_that_may_crash():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_ann_arrays as t; unit = t.make_unit();"
        "t.hnsw._WALK_COST = 0; print(t.try_damaged(t.make_arrays(unit), unit, 40_000, seed=1))"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 15_000 < int(done.stdout) < 34_000


def refusal(kind, arrays, unit):
    with pytest.raises(GalleryFormatError) as caught:
        index_from_arrays(kind, arrays, unit, threads=1).open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(arrays, name, place, value):
    copy = arrays[name].copy()
    copy[place] = value
    return {**arrays, name: copy}


def test_each_damage_of_a_graph_is_named(sound, unit):
    graph = sound["hnsw"]
    assert graph["levels"].max() >= 3  # or the layers aren't tested
    low = int(np.flatnonzero(graph["levels"] == 1)[-1])
    entry = int(graph["settings"][3])
    above = (graph["levels"].astype(int) + 1) * 3
    second_layer = above[:entry].sum() + 6
    for message, arrays in {
        "a neighbor outside the 400 rows": changed(graph, "neighbors", 5, ROWS),
        "a neighbor outside": changed(graph, "neighbors", 5, -2),
        "a neighbor in layer 1 that doesn't reach it": changed(graph, "neighbors", second_layer, low),
        "links 1, which must be 2 to 256": changed(graph, "settings", 0, 1),
        "neighbors of shape": changed(graph, "settings", 0, 4),
        "ef_construction 0": changed(graph, "settings", 1, 0),
        "ef_search -5": changed(graph, "settings", 2, -5),
        "entry point 400": changed(graph, "settings", 3, ROWS),
        "an entry point of level 1": changed(graph, "settings", 3, low),
        "lowest level 0": changed(graph, "levels", low, 0),
        "highest level 25": changed(changed(graph, "levels", low, 25), "settings", 3, low),
        "settings of shape": {**graph, "settings": graph["settings"][:3]},
        "arrays levels uint8, neighbors int32 where": {name: graph[name] for name in ("levels", "neighbors")},
        "neighbors int64": {**graph, "neighbors": graph["neighbors"].astype(np.int64)},
    }.items():
        assert message in refusal("hnsw", arrays, unit)
    assert "levels of shape (400,) for 399 rows" in refusal("hnsw", changed(graph, "settings", 3, 0), unit[:399])


def test_each_damage_of_lists_is_named(sound, unit):
    ivf = sound["ivf"]
    for message, arrays in {
        "a row in a list beyond the 40": changed(ivf, "assignment", 3, 40),
        "a row in a list": changed(ivf, "assignment", 3, -1),
        "isn't a finite number": changed(ivf, "centroids", (0, 0), np.nan),
        "probes 0": changed(ivf, "settings", 0, 0),
        "probes 41, which must be 1 to 40": changed(ivf, "settings", 0, 41),
        "centroids of shape (40, 7)": {**ivf, "centroids": ivf["centroids"][:, :7]},
        "an assignment of shape (399,)": {**ivf, "assignment": ivf["assignment"][:399]},
    }.items():
        assert message in refusal("ivf", arrays, unit)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65_520])
@pytest.mark.parametrize("storage", [np.float32, np.float16])
def test_a_graph_over_rows_that_are_not_finite_in_half_precision_is_refused(sound, unit, value, storage):
    rows = unit.copy()
    rows[:, 3] = [65_504, -65_504, 0, -0.0] * (ROWS // 4)
    with np.errstate(over="ignore"):
        index_from_arrays("hnsw", sound["hnsw"], rows.astype(storage), threads=1).open()
        rows[-1, -1] = value
        assert "finite" in refusal("hnsw", sound["hnsw"], rows.astype(storage))


def test_other_kinds_and_arrays_are_refused_at_once(sound, unit):
    with pytest.raises(GalleryFormatError, match="'pq'; this version knows flat, hnsw, ivf"):
        index_from_arrays("pq", {}, unit, threads=1)
    with pytest.raises(GalleryFormatError, match="where none is expected"):
        index_from_arrays("flat", sound["ivf"], unit, threads=1)
    with pytest.raises(GalleryFormatError, match="where none is expected"):
        index_from_arrays("hnsw", sound["hnsw"], unit[:0], threads=1)


def test_arrays_at_odd_places_are_read_all_the_same(sound, unit):
    moved = {}
    for name, array in sound["hnsw"].items():
        raw = np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:]
        moved[name] = raw.view(array.dtype)
    assert hnsw_from_arrays(moved, ROWS).neighbors.flags.aligned
    expected = index_from_arrays("hnsw", sound["hnsw"], unit, threads=1).candidates(unit[:9], 5)
    np.testing.assert_array_equal(index_from_arrays("hnsw", moved, unit, threads=1).candidates(unit[:9], 5), expected)
