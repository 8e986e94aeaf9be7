"""A gallery that is changed again and again answers like one that is made at once, in memory and from a file."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dra_runtime import snapshot as snapshots
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UnknownIdError, UsageError
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_file import read_gallery, write_parts
from dra_runtime.vectors import vectors_from_features

AXES = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)  # few different vectors: many ties
NAMES = [f"{i:02d}" for i in range(30)]
KINDS = ["dress", "skirt", 7]


@pytest.fixture(scope="module")
def encoder(bundle_path):
    return Encoder.open(bundle_path, threads=2)


def rows_of(content):
    names = list(content)
    features = AXES[[content[name][0] for name in names]].reshape(len(names), 4) * 3
    items = [content[name][1] for name in names]
    return vectors_from_features(names, features, "float32", items)


def expected(content, query, k, dropped=(), where=None):
    """Rank in plain Python."""
    scores = {name: float(AXES[axis] @ query) for name, (axis, _) in content.items()}
    fits = [
        name
        for name, (_, item) in content.items()
        if name not in dropped and (where is None or item.get("kind") == where)
    ]
    return [(name, scores[name]) for name in sorted(fits, key=lambda name: (-scores[name], name))[:k]]


contents = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.integers(0, 7), st.one_of(st.just({}), st.fixed_dictionaries({"kind": st.sampled_from(KINDS)}))),
    max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_series_of_changes_equals_a_plain_dict(data, tmp_path_factory):
    content = data.draw(contents)
    snapshot = snapshots.snapshot_of(rows_of(content), kept=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(0, 6))):
        new, gone = data.draw(contents), set(data.draw(st.lists(st.sampled_from(NAMES), max_size=4)))
        places = [place for name in {*new, *gone} if (place := snapshot.place(name)) is not None]
        snapshot = snapshots.with_added(snapshots.without(snapshot, places), rows_of(new))
        content = {name: value for name, value in content.items() if name not in gone} | new
        check(snapshot, content, data)
    first, others = snapshots.parts(snapshot)
    path = tmp_path_factory.getbasetemp() / "changed.gallery"
    write_parts(path, first.vectors, first.alive, others, "0" * 64, path.parent)
    _, saved = read_gallery(path)
    assert list(saved.ids) == sorted(content)
    check(snapshots.snapshot_of(saved, kept=True), content, data)
    check(snapshots.snapshot_of(snapshots.whole(snapshot)), content, data)


def check(snapshot, content, data):
    assert len(snapshot) == len(content)
    assert snapshot.ids == tuple(sorted(content))
    for name in NAMES:
        place = snapshot.place(name)
        assert (place is not None) == (name in content)
        if place is None:
            with pytest.raises(UnknownIdError):
                snapshot.known_place(name)
        else:
            assert snapshot.item(place) == content[name][1]
            assert np.array_equal(snapshot.features([place], 4)[0], AXES[content[name][0]] * 3)
    query, k = AXES[data.draw(st.integers(0, 7))], data.draw(st.integers(1, 12))
    dropped = data.draw(st.sampled_from([None, *content]))
    place = None if dropped is None else snapshot.place(dropped)
    (answers,) = snapshot.search(query[None], k, [place])
    assert [(name, score) for score, name, _ in answers] == expected(content, query, k, [dropped])
    assert all(snapshot.place(name) == place for _, name, place in answers)
    kind = data.draw(st.sampled_from(KINDS))
    if snapshot.keys or not content:
        (answers,) = snapshot.search(query[None], k, [None], {"kind": [kind]})
        assert [(name, score) for score, name, _ in answers] == expected(content, query, k, where=kind)
    else:
        with pytest.raises(UsageError, match="'kind'"):
            snapshot.search(query[None], k, [None], {"kind": [kind]})


def test_adding_one_by_one_keeps_few_segments_and_spares_the_kept_one():
    base = rows_of({f"base-{i}": (i % 8, {}) for i in range(10)})
    snapshot = snapshots.snapshot_of(base, kept=True)
    for i in range(300):
        snapshot = snapshots.with_added(snapshot, rows_of({f"new-{i}": (i % 8, {})}))
    assert snapshot.segments[0].vectors is base
    assert len(snapshot.segments) < 12
    assert len(snapshot) == 310


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)


def test_answers_are_those_of_one_moment_while_images_come_and_go(encoder, tmp_path):
    """Readers meet each state of a scripted series whole, and never an earlier one after a later one."""
    start = {f"item-{i}": picture(i) for i in range(12)}
    items = {name: {"half": i % 2} for i, name in enumerate(start)}
    steps = [
        lambda g: g.add({"new-0": picture(100), "new-1": picture(101)}, metadata={"new-1": {"half": 1}}),
        lambda g: g.remove(["item-3", "item-4", "new-0"]),
        lambda g: g.add({"item-5": picture(200)}, replace=True),
        lambda g: g.add({"item-3": picture(3)}, metadata={"item-3": {"half": 0}}),
        lambda g: g.remove(["item-1", "item-3", "new-1"]),
    ]
    queries = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)

    def answers(gallery):
        return gallery.search_vectors(queries, 6), gallery.search_vectors(queries, 20, where={"half": 1})

    Gallery.build(encoder, start, metadata=items).save(tmp_path / "g")
    serial, gallery = [], Gallery.open(tmp_path / "g", encoder)
    serial.append(answers(gallery))
    for step in steps:
        step(gallery)
        serial.append(answers(gallery))
    assert all(a[0] != b[0] for a, b in pairwise(serial))

    for _ in range(2):
        shared, stop = Gallery.open(tmp_path / "g", encoder, "size"), threading.Event()
        seen = [[] for _ in range(4)]

        def read(into, shared=shared, stop=stop):
            while not stop.is_set():
                into.append((shared.search_vectors(queries, 6), shared.search_vectors(queries, 20, where={"half": 1})))
            into.append(answers(shared))

        readers = [threading.Thread(target=read, args=(into,)) for into in seen]
        for reader in readers:
            reader.start()
        for step in steps:
            step(shared)
        stop.set()
        for reader in readers:
            reader.join()
        for into in seen:
            for part in (0, 1):
                states = [[other[part] for other in serial].index(answer[part]) for answer in into]
                assert states == sorted(states)
            assert into[-1] == serial[-1]
