"""Answers equal a plain full sort; saved galleries come back or are refused."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from dra_runtime import search
from dra_runtime.encoder import Encoder
from dra_runtime.errors import (
    GalleryError,
    ImageError,
    TextError,
    UnknownIdError,
    UsageError,
)
from dra_runtime.folder import images_of_folder
from dra_runtime.gallery import Gallery, Hit


@pytest.fixture(scope="module")
def encoder(bundle_path):
    return Encoder.open(bundle_path, threads=2)


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return {f"item-{i}": rng.integers(0, 256, (*rng.integers(10, 40, 2), 3), np.uint8) for i in range(count)}


@pytest.fixture(scope="module")
def images():
    return pictures(40)


@pytest.fixture(scope="module")
def gallery(encoder, images):
    return Gallery.build(encoder, images)


def full_sort(encoder, ids, features, query, k, dropped=()):
    """Rank by cosine in float64, rounded to float32 once; ties by id."""
    features, query = np.asarray(features, np.float64), np.asarray(query, np.float64)
    scores = {}
    for name, vector in zip(ids, features, strict=True):
        unit = (vector / np.linalg.norm(vector)).astype(np.float32).astype(np.float64)
        scores[name] = float(np.float32(unit @ query / np.linalg.norm(query)))
    ranked = sorted((name for name in ids if name not in dropped), key=lambda name: (-scores[name], name))
    return [(name, scores[name]) for name in ranked[:k]]


def assert_hits(hits, expected):
    assert [hit.id for hit in hits] == [name for name, _ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=2e-6)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


def test_search_by_image_and_by_id_equal_a_full_sort(encoder, gallery, images):
    features = encoder.encode_images(images.values())
    query = encoder.encode_queries(images["item-3"], "is shorter")[0]
    expected = full_sort(encoder, list(images), features, query, 10)
    assert_hits(gallery.search(text="is shorter", image=images["item-3"]), expected)
    assert_hits(gallery.search(text="is shorter", id="item-3", keep_reference=True), expected)
    without = full_sort(encoder, list(images), features, query, 5, dropped=["item-3"])
    assert_hits(gallery.search(text="is shorter", id="item-3", k=5), without)


def test_by_id_no_image_is_encoded(bundle_path, gallery):
    fresh = Encoder.open(bundle_path)
    same = Gallery.from_features(fresh, gallery.ids, gallery.features(gallery.ids))
    same.search(text="is shorter", id="item-3")
    assert "image_encoder" not in fresh._sessions


def test_k_larger_than_the_gallery(gallery):
    assert len(gallery.search(text="a", id="item-0", k=10_000)) == 39
    assert len(gallery.search(text="a", id="item-0", k=10_000, keep_reference=True)) == 40
    assert len(gallery.search_vectors(np.ones((2, 8)), 41)[1]) == 40


def test_answers_do_not_depend_on_the_batch(encoder, gallery):
    queries = np.random.default_rng(3).normal(size=(70, 8)).astype(np.float32)
    together = gallery.search_vectors(queries, 7)
    assert together == [gallery.search_vectors(query[None], 7)[0] for query in queries]
    assert together == gallery.search_vectors(queries * 1024, 7)
    assert gallery.search_vectors(np.empty((0, 8))) == []


@pytest.mark.parametrize("block", [1, 3, 16, 1000])
def test_equal_vectors_tie_by_id(encoder, block, monkeypatch):
    monkeypatch.setattr(search, "ROWS", block)
    monkeypatch.setattr(search, "SCORES", 50)
    rng = np.random.default_rng(1)
    distinct = rng.normal(size=(6, 8)).astype(np.float32)
    features = np.concatenate([distinct[rng.integers(0, 6, 90)], distinct])
    ids = [f"{i * 37 % 96:02d}" for i in range(96)]
    gallery = Gallery.from_features(encoder, ids, features)
    queries = rng.normal(size=(9, 8)).astype(np.float32)
    for k in (1, 2, 10, 50, 96, 200):
        for query, hits in zip(queries, gallery.search_vectors(queries, k), strict=True):
            assert_hits(hits, full_sort(encoder, ids, features, query, k))
        excluded = gallery.search_vectors(queries, k, exclude=["05", None, "95", *["00"] * 6])
        assert_hits(excluded[0], full_sort(encoder, ids, features, queries[0], k, dropped=["05"]))
        assert_hits(excluded[1], full_sort(encoder, ids, features, queries[1], k))


def test_equal_vectors_tie_at_the_width_of_a_real_model():
    # rows at different places go through different kernels of the matrix product; the scores must not show it
    rng = np.random.default_rng(0)
    row = rng.normal(size=640).astype(np.float32)
    unit = np.repeat((row / np.linalg.norm(row))[None], 1031, axis=0)
    queries = rng.normal(size=(37, 640)).astype(np.float32)
    none = np.full(37, -1)
    for answers in (search.top_k(unit, queries, 5, none), search.top_k(unit, queries, 2000, none)):
        for rows, scores in answers:
            assert rows.tolist() == list(range(len(rows)))
            assert len(set(scores.tolist())) == 1


def test_search_misuse(gallery, tmp_path):
    image = tmp_path / "none.jpg"
    for error, arguments in (
        (UsageError, {"text": "a"}),
        (UsageError, {"text": "a", "image": image, "id": "item-0"}),
        (UsageError, {"text": "a", "id": "item-0", "k": 0}),
        (UsageError, {"text": "a", "id": "item-0", "k": 2.0}),
        (UsageError, {"text": "a", "id": "item-0", "k": True}),
        (TextError, {"text": " ", "id": "item-0"}),
        (TextError, {"text": None, "id": "item-0"}),
        (UnknownIdError, {"text": "a", "id": "item-99"}),
        (UnknownIdError, {"text": "a", "id": 7}),
        (ImageError, {"text": "a", "image": image}),
        (ImageError, {"text": "a", "image": b""}),
    ):
        with pytest.raises(error) as caught:
            gallery.search(**arguments)
        assert "\n" not in str(caught.value)
    for arguments in (
        (np.ones(8),),
        (np.ones((1, 9)),),
        (np.full((1, 8), np.nan),),
        (np.zeros((1, 8)),),
        (np.ones((1, 8)), 0),
        (np.ones((2, 8)), 1, ["item-0"]),
        (np.ones((2, 8)), 1, "ab"),
    ):
        with pytest.raises(UsageError):
            gallery.search_vectors(*arguments)
    with pytest.raises(UnknownIdError):
        gallery.search_vectors(np.ones((1, 8)), 1, ["nobody"])


def test_raw_features_are_kept(encoder, gallery, images):
    np.testing.assert_allclose(
        gallery.features(["item-7", "item-3"]),
        encoder.encode_images([images["item-7"], images["item-3"]]),
        rtol=1e-6,
        atol=1e-6,
    )


def test_add_remove_replace(encoder, images):
    gallery = Gallery.build(encoder, {})
    assert len(gallery) == 0
    assert gallery.search_vectors(np.ones((1, 8))) == [[]]
    gallery.add({name: images[name] for name in ("item-9", "item-1")})
    assert gallery.ids == ("item-1", "item-9")
    assert "item-1" in gallery
    assert "item-2" not in gallery
    with pytest.raises(UsageError, match="already"):
        gallery.add({"item-5": images["item-5"], "item-9": images["item-3"]})
    assert gallery.ids == ("item-1", "item-9")
    gallery.add({"item-5": images["item-5"], "item-9": images["item-3"]}, replace=True)
    reference = Gallery.build(
        encoder, {"item-1": images["item-1"], "item-9": images["item-3"], "item-5": images["item-5"]}
    )
    query = np.random.default_rng(0).normal(size=(1, 8))
    assert gallery.search_vectors(query) == reference.search_vectors(query)
    with pytest.raises(UnknownIdError, match="nobody"):
        gallery.remove(["item-1", "nobody"])
    assert len(gallery) == 3
    gallery.remove(["item-1", "item-9"])
    assert gallery.ids == ("item-5",)
    for call in (gallery.remove, gallery.features):
        with pytest.raises(UsageError, match="list"):
            call("item-5")


def test_adding_is_all_or_nothing(encoder, images):
    gallery = Gallery.build(encoder, {"a": images["item-0"]})
    with pytest.raises(ImageError):
        gallery.add({"b": images["item-1"], "c": b"no image"})
    assert gallery.ids == ("a",)


def test_an_id_added_meanwhile_is_not_overwritten(encoder, images):
    gallery = Gallery.build(encoder, {})
    one, other = {"a": images["item-0"]}, {"a": images["item-1"]}
    with pytest.raises(UsageError, match="already"):  # progress is called when the image is encoded, but not yet added
        gallery.add(one, progress=lambda *_: gallery.add(other))
    assert np.array_equal(gallery.features(["a"]), Gallery.build(encoder, other).features(["a"]))


@pytest.mark.parametrize("images", [{"": b""}, {7: b""}, {"\ud800": b""}, {"x" * 2000: b""}, [b""], None])
def test_ids_that_are_none(encoder, images):
    with pytest.raises(UsageError):
        Gallery.build(encoder, images)


def test_features_that_fit_no_gallery(encoder):
    for ids, features in ((["a"], np.ones((2, 8))), (["a", "a"], np.ones((2, 8))), (["a"], np.ones((1, 9)))):
        with pytest.raises(UsageError):
            Gallery.from_features(encoder, ids, features)
    with pytest.raises(UsageError, match="list of ids"):
        Gallery.from_features(encoder, "ab", np.ones((2, 8)))
    with pytest.raises(GalleryError, match="'b'"):
        Gallery.from_features(encoder, ["a", "b"], [[1.0] * 8, [0.0] * 8])


def test_searches_see_one_moment(encoder, images):
    """Two images come and go together: no search may see one of them alone."""
    gallery = Gallery.build(encoder, {name: images[name] for name in ("item-0", "item-1", "item-2")})
    pair = {"x": images["item-3"], "y": images["item-4"]}
    faults, stop = [], threading.Event()

    def search_all():
        while not stop.is_set():
            ids = {hit.id for hit in gallery.search(text="a", id="item-0", k=10)}
            if ids not in ({"item-1", "item-2"}, {"item-1", "item-2", "x", "y"}):
                faults.append(ids)

    readers = [threading.Thread(target=search_all) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(40):
        gallery.add(pair)
        gallery.remove(["x", "y"])
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []


def test_adding_from_many_threads_loses_nothing(encoder):
    gallery = Gallery.build(encoder, {})
    parts = [pictures(3, seed) for seed in range(8)]
    threads = [
        threading.Thread(target=lambda n=n: gallery.add({f"{n}-{name}": image for name, image in parts[n].items()}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gallery) == 24


def test_metadata_filters_and_comes_back(encoder, images):
    items = {f"item-{i}": {"category": ["dress", "skirt"][i % 2], "size": i} for i in range(30)}
    gallery = Gallery.build(encoder, images, metadata=items)
    assert gallery.metadata_keys == ("category", "size")
    assert gallery.metadata("item-3") == {"category": "skirt", "size": 3}
    assert gallery.metadata("item-35") == {}
    everything = gallery.search(text="a", id="item-0", k=99)
    assert everything[0].metadata == gallery.metadata(everything[0].id)
    for where, fits in (
        ({"category": "dress"}, lambda item: item.get("category") == "dress"),
        ({"category": ["dress", "skirt"]}, lambda item: "category" in item),
        ({"category": "dress", "size": [2, 3, 4]}, lambda item: item.get("size") in (2, 4)),
        ({"category": "shoe"}, lambda item: False),
        ({}, lambda item: True),
    ):
        hits = gallery.search(text="a", id="item-0", k=99, where=where)
        expected = [hit.id for hit in everything if fits(items.get(hit.id, {}))]
        assert [hit.id for hit in hits] == expected
        assert [hit.rank for hit in hits] == list(range(1, len(expected) + 1))
    with pytest.raises(UsageError, match="'colour'; its keys are category, size"):
        gallery.search(text="a", id="item-0", where={"colour": "red"})
    with pytest.raises(UnknownIdError):
        gallery.metadata("nobody")
    with pytest.raises(UsageError, match="its images have none"):
        Gallery.build(encoder, images).search_vectors(np.ones((1, 8)), where={"a": 1})
    assert Gallery.build(encoder, {}).search_vectors(np.ones((1, 8)), where={"a": 1}) == [[]]


def test_metadata_is_replaced_with_its_image(encoder, images):
    gallery = Gallery.build(encoder, {"a": images["item-0"]}, metadata={"a": {"x": 1}})
    gallery.add({"b": images["item-1"]}, metadata={"b": {"y": 2}})
    assert gallery.metadata_keys == ("x", "y")
    gallery.add({"a": images["item-2"]}, replace=True)
    assert (gallery.metadata("a"), gallery.metadata("b")) == ({}, {"y": 2})
    for call in (
        lambda: gallery.add({"c": images["item-3"]}, metadata={"d": {}}),
        lambda: gallery.add({"c": images["item-3"]}, metadata=[{}]),
        lambda: gallery.add({"c": images["item-3"]}, metadata={"c": {"x": None}}),
        lambda: Gallery.build(encoder, {"c": images["item-3"]}, metadata={"d": {}}),
    ):
        with pytest.raises(UsageError):
            call()
    assert gallery.ids == ("a", "b")
    with pytest.raises(UsageError, match="65 different keys"):  # with y; the file couldn't hold them
        gallery.add({"c": images["item-3"]}, metadata={"c": {str(i): i for i in range(64)}})
    assert gallery.ids == ("a", "b")


def test_half_storage(encoder, images, tmp_path):
    single, half = Gallery.build(encoder, images), Gallery.build(encoder, images, storage="float16")
    assert (single.storage, half.storage) == ("float32", "float16")
    np.testing.assert_allclose(half.features(half.ids), single.features(single.ids), rtol=2e-3, atol=1e-3)
    half.remove(["item-0"])
    half.add({"item-0": images["item-0"]})
    half.save(tmp_path / "g")
    opened = Gallery.open(tmp_path / "g", encoder)
    assert opened.storage == "float16"
    query = np.random.default_rng(0).normal(size=8)
    (hits,) = half.search_vectors(query[None], 40)
    assert hits == opened.search_vectors(query[None], 40)[0]
    opened.add({"more": images["item-1"]})
    stored = (opened._snapshot.segments[0].vectors.unit.dtype, opened._snapshot.segments[1].vectors.unit.dtype)
    assert stored == (np.float16, np.float16)
    for hit in hits:  # the score is exact for what is stored, which unit_of reads back
        vector = unit_of(half, hit.id).astype(np.float64)
        direction = query.astype(np.float32).astype(np.float64)
        assert hit.score == pytest.approx(vector @ direction / np.linalg.norm(direction), abs=1e-7)
    with pytest.raises(UsageError, match="float64"):
        Gallery.build(encoder, images, storage="float64")


def unit_of(gallery, name):
    number, row = gallery._snapshot.place(name)
    return gallery._snapshot.segments[number].vectors.unit[row]


def test_tokens_are_stored_and_kept_through_changes(encoder, other_bundle_path, images, tmp_path):
    gallery = Gallery.build(encoder, {}, tokens=True)
    gallery.add({name: images[name] for name in ("item-0", "item-1", "item-2")})
    gallery.remove(["item-1"])
    gallery.add({"item-3": images["item-3"]})
    gallery.save(tmp_path / "g")
    opened = Gallery.open(tmp_path / "g", encoder)
    opened.add({"item-4": images["item-4"], "item-0": images["item-5"]}, replace=True)
    assert opened.stores_tokens
    pictures_by_id = {"item-0": "item-5", "item-2": "item-2", "item-3": "item-3", "item-4": "item-4"}
    for name, picture in pictures_by_id.items():
        expected = encoder.encode_pixels(encoder.pixels(images[picture])[None])["image_tokens"][0]
        found = opened._snapshot.tokens(opened._snapshot.place(name))
        assert found.dtype == np.float16
        assert np.array_equal(found, expected.astype(np.float16))
    assert not Gallery.build(encoder, {}).stores_tokens
    with pytest.raises(UsageError, match="no reranker"):
        Gallery.build(Encoder.open(other_bundle_path), images, tokens=True)


def write_images(folder, names):
    rng = np.random.default_rng(5)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
        image.save(path, format="PNG")


def test_ids_of_a_folder(tmp_path):
    names = ["b.png", "sub/a.JPG", "a.jpg", "a.png", "a.jpg.webp", "sub/deep/x.y.gif", "c.jpeg"]
    write_images(tmp_path, [*names, ".hidden.png", ".dir/x.png"])
    (tmp_path / "notes.txt").write_text("x")
    found = images_of_folder(tmp_path)
    assert list(found) == ["a.jpg", "a.jpg.webp", "a.png", "b", "c", "sub/a", "sub/deep/x.y"]
    assert found["sub/a"] == tmp_path / "sub/a.JPG"


def test_build_from_a_folder(encoder, tmp_path):
    write_images(tmp_path, ["a.png", "sub/b.png", "c.png"])
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty.png").write_bytes(b"")
    done = []
    gallery = Gallery.build(encoder, tmp_path, lambda *numbers: done.append(numbers))
    assert gallery.ids == ("a", "c", "sub/b")
    assert done[-1] == (5, 5)
    assert [name for name, _ in gallery.skipped] == ["broken", "empty"]
    assert np.array_equal(gallery.features(["a"]), Gallery.build(encoder, {"a": tmp_path / "a.png"}).features(["a"]))


def test_folders_without_images(encoder, tmp_path):
    with pytest.raises(GalleryError, match="no such folder"):
        Gallery.build(encoder, tmp_path / "missing")
    with pytest.raises(GalleryError, match="no images"):
        Gallery.build(encoder, tmp_path)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(GalleryError, match="none of its 1 images"):
        Gallery.build(encoder, str(tmp_path))


def test_hits_are_plain_values(gallery):
    (hit,) = gallery.search(text="a", id="item-0", k=1)
    assert hit == Hit(hit.id, hit.score, 1)
    assert json.dumps([hit.id, hit.score, hit.rank])
