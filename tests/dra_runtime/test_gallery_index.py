"""An index only proposes: scores, order, filters and the number of answers are those of exact search."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dra_runtime import gallery_index
from dra_runtime.encoder import Encoder
from dra_runtime.errors import GalleryFormatError, UsageError
from dra_runtime.gallery import Gallery

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def encoder(bundle_path):
    return Encoder.open(bundle_path, threads=2)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(gallery_index, "EXACT_BELOW", 0)


def features(count=600, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def new_gallery(encoder, storage="float32", count=600):
    ids = [f"{i:04d}" for i in range(count)]
    items = {name: {"third": i % 3} for i, name in enumerate(ids)}
    return Gallery.from_features(encoder, ids, features(count), metadata=items, storage=storage)


QUERIES = features(9, seed=1)
OWN, IDS = features()[:5], [f"{i:04d}" for i in range(5)]


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_flat_gives_the_answers_of_exact_search(encoder, tmp_path, storage):
    exact, indexed = new_gallery(encoder, storage), new_gallery(encoder, storage)
    done = []
    report = indexed.build_index("flat", lambda *numbers: done.append(numbers))
    assert (report.kind, report.recall_at_10, report.images) == ("flat", 1.0, 600)
    assert report.queries > 100
    assert indexed.index == report
    assert exact.index is None
    exclude = ["0000", None, "0599", *[None] * 6]
    indexed.save(tmp_path / "g")
    for gallery in (indexed, Gallery.open(tmp_path / "g", encoder)):
        assert gallery.index == report
        for k in (1, 10, 70, 700):
            assert gallery.search_vectors(QUERIES, k) == exact.search_vectors(QUERIES, k)
            assert gallery.search_vectors(QUERIES, k, exclude) == exact.search_vectors(QUERIES, k, exclude)
            assert all(hits[0].id != own for hits, own in zip(gallery.search_vectors(OWN, k, IDS), IDS, strict=True))
            for where in ({"third": 1}, {"third": 9}, {"third": [0, 2]}):
                found = gallery.search_vectors(QUERIES, k, where=where)
                assert found == exact.search_vectors(QUERIES, k, where=where)


def test_images_come_and_go_over_an_index(encoder, tmp_path):
    rng = np.random.default_rng(5)
    images = {f"new-{i}": rng.integers(0, 256, (9, 9, 3), np.uint8) for i in range(4)}
    exact, indexed = new_gallery(encoder), new_gallery(encoder)
    indexed.build_index("flat")
    best = [hits[0].id for hits in exact.search_vectors(QUERIES, 1)]
    for gallery in (exact, indexed):
        gallery.remove(set(best))
        gallery.add(images, metadata={"new-1": {"third": 1}})
    encoded = encoder.encode_images(list(images.values()))
    queries = np.concatenate([QUERIES, encoded + 0.01])
    for where in (None, {"third": 1}):
        assert indexed.search_vectors(queries, 10, where=where) == exact.search_vectors(queries, 10, where=where)
    assert indexed.search_vectors(encoded, 1)[1][0].id == "new-1"
    indexed.save(tmp_path / "g")
    reopened = Gallery.open(tmp_path / "g", encoder)
    assert reopened.search_vectors(queries) == exact.search_vectors(queries)
    assert reopened.index.images == len(exact)
    assert reopened.build_index("flat").images == len(exact)
    assert reopened.search_vectors(queries) == exact.search_vectors(queries)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_the_other_kinds_give_exact_scores_and_as_many_answers(encoder, tmp_path, kind, storage):
    exact, gallery = new_gallery(encoder, storage), new_gallery(encoder, storage)
    report = gallery.build_index(kind)
    assert report.kind == kind
    assert 0.8 < report.recall_at_10 <= 1
    gallery.save(tmp_path / "g")
    opened = Gallery.open(tmp_path / "g", encoder)
    assert opened.index == report
    for where in (None, {"third": 1}, {"third": [0, 2]}):
        found = gallery.search_vectors(QUERIES, 10, where=where)
        assert opened.search_vectors(QUERIES, 10, where=where) == found
        truth = [{hit.id: hit.score for hit in hits} for hits in exact.search_vectors(QUERIES, 600, where=where)]
        for hits, scores in zip(found, truth, strict=True):
            assert len(hits) == 10
            assert all(scores[hit.id] == hit.score for hit in hits)
            assert [hit.id for hit in hits] == sorted(
                scores.keys() & {h.id for h in hits}, key=lambda i: (-scores[i], i)
            )
    removed = [hits[0].id for hits in opened.search_vectors(QUERIES, 1)]
    opened.remove(set(removed))
    assert all(hit.id not in removed for hits in opened.search_vectors(QUERIES, 10) for hit in hits)
    assert opened.index == report
    with pytest.warns(UserWarning, match=f"without its {kind} index.*build_index") as said:
        opened.save(tmp_path / "g")
    assert said[0].filename == __file__
    assert Gallery.open(tmp_path / "g", encoder).index is None  # it was over other rows


class Poor:
    """Proposes what it is told to, whatever is asked."""

    def __init__(self, rows):
        self.rows = np.asarray(rows, np.int64)

    def candidates(self, queries, count, allowed=None):
        found = np.full((len(queries), count), -1)
        rows = self.rows[allowed[self.rows]] if allowed is not None else self.rows
        found[:, : len(rows[:count])] = rows[:count]
        return found


def test_never_fewer_answers_than_exact_search_gives(encoder):
    exact, poor = new_gallery(encoder), new_gallery(encoder)
    poor.build_index("flat")
    unit = poor._snapshot.segments[0].vectors.unit
    for rows in ([], [5], range(9)):
        poor._snapshot.segments[0].index._ann = Poor(rows)
        for where in (None, {"third": 1}):
            assert poor.search_vectors(QUERIES, where=where) == exact.search_vectors(QUERIES, where=where)
    index = poor._snapshot.segments[0].index
    index._ann = Poor(range(0, 600, 2))
    hits = poor.search_vectors(unit[:5], 10)
    assert [some[0].id for some in hits][::2] == ["0000", "0002", "0004"]
    assert all(int(hit.id) % 2 == 0 for some in hits for hit in some)
    half = gallery_index.recall_of(index, unit, gallery_index.queries_between(unit, 100), 10)
    assert 0 < half < 0.5  # it proposes the first of every other row, not the nearest


def test_building_an_index_over_nothing_and_of_no_kind(encoder, tmp_path):
    empty = Gallery.from_features(encoder, [], np.empty((0, 8)))
    assert empty.build_index("flat").recall_at_10 == 1.0
    assert empty.search_vectors(QUERIES) == [[]] * 9
    empty.save(tmp_path / "g")
    assert Gallery.open(tmp_path / "g", encoder).search_vectors(QUERIES) == [[]] * 9
    with pytest.raises(UsageError, match="'tree'"):
        empty.build_index("tree")
    with pytest.raises(UsageError, match="'tree'"):
        Gallery.build(encoder, {"a": np.ones((5, 5, 3), np.uint8)}, index="tree")
    assert Gallery.build(encoder, {"a": np.ones((5, 5, 3), np.uint8)}, index="flat").index.images == 1


def test_arrays_that_are_no_index_are_refused(encoder, tmp_path):
    from dra_runtime.gallery_file import read_gallery, write_gallery

    gallery = new_gallery(encoder)
    gallery.build_index("flat")
    gallery.save(tmp_path / "g")
    _, vectors = read_gallery(tmp_path / "g")
    stored = gallery_index.StoredIndex(gallery.index, {"graph": np.arange(5)})
    write_gallery(tmp_path / "bad", vectors, encoder.bundle_id, encoder.bundle.path, stored)
    with pytest.raises(GalleryFormatError):
        Gallery.open(tmp_path / "bad", encoder).search_vectors(QUERIES)


def test_building_that_fails_leaves_the_index_that_was_there(encoder, monkeypatch):
    gallery = new_gallery(encoder)
    report = gallery.build_index("flat")
    gallery.remove([gallery.ids[0]])
    before = gallery.search_vectors(QUERIES)

    def failing(*arguments):
        raise MemoryError

    monkeypatch.setattr("dra_runtime.gallery.built_index", failing)
    with pytest.raises(MemoryError):
        gallery.build_index("hnsw")
    assert gallery.index == report
    assert gallery.search_vectors(QUERIES) == before


def test_two_threads_build_one_after_the_other(encoder, monkeypatch):
    """Even where images are added in between."""
    gallery = new_gallery(encoder)
    building, added = threading.Event(), threading.Event()
    built = gallery_index.built_index

    def slow(*arguments):
        building.set()
        assert added.wait(20)
        return built(*arguments)

    monkeypatch.setattr("dra_runtime.gallery.built_index", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gallery.build_index, "flat")
        assert building.wait(20)
        gallery.add({"new": np.ones((9, 9, 3), np.uint8)})
        second = pool.submit(gallery.build_index, "flat")
        time.sleep(0.05)  # time for the second to get in the first one's way
        added.set()
        assert (first.result(20).images, second.result(20).images) == (600, 601)
    assert gallery.index.images == 601
