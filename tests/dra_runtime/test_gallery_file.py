"""Saved galleries come back as they were, or are refused."""

import hashlib
import itertools
import json
import os
import stat
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from dra_runtime.encoder import Encoder
from dra_runtime.errors import GalleryError, GalleryFormatError, GalleryMismatchError, UsageError
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_file import bundle_of, read_gallery, write_gallery
from dra_runtime.vectors import Vectors, row_of, vectors_from_features


@pytest.fixture(scope="module")
def encoder(bundle_path):
    return Encoder.open(bundle_path, threads=2)


def features(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def gallery(encoder):
    return Gallery.from_features(encoder, [f"item-{i}" for i in range(40)], features(40))


def test_saved_and_opened(encoder, gallery, tmp_path):
    path = tmp_path / "shop.gallery"
    gallery.save(path)
    opened = Gallery.open(path, encoder)
    assert opened.ids == gallery.ids
    query = np.random.default_rng(0).normal(size=(20, 8))
    assert opened.search_vectors(query) == gallery.search_vectors(query)
    assert opened.search(text="a", id="item-2") == gallery.search(text="a", id="item-2")
    opened.remove(["item-2"])
    opened.save(path)  # over the file that it is mapped from
    assert len(Gallery.open(path, encoder)) == 39
    assert [entry.name for entry in tmp_path.iterdir()] == ["shop.gallery"]


def test_an_empty_gallery_is_saved_and_opened(encoder, tmp_path):
    Gallery.build(encoder, {}).save(tmp_path / "empty.gallery")
    assert len(Gallery.open(tmp_path / "empty.gallery", encoder)) == 0


def test_the_file_is_safetensors(encoder, gallery, tmp_path):
    path = tmp_path / "shop.gallery"
    gallery.save(path)
    arrays = load_file(path)
    assert set(arrays) == {"unit", "norms", "ids", "id_offsets"}
    np.testing.assert_allclose(np.linalg.norm(arrays["unit"], axis=1), 1, atol=1e-6)
    assert np.array_equal(arrays["unit"] * arrays["norms"][:, None], gallery.features(gallery.ids))
    ends, text = arrays["id_offsets"], arrays["ids"].tobytes()
    assert [text[a:b].decode() for a, b in itertools.pairwise(ends)] == list(gallery.ids)


def test_a_gallery_remembers_its_bundle(bundle_path, tmp_path):
    import shutil

    home = tmp_path / "home"
    bundle = shutil.copytree(bundle_path, home / "bundles" / "demo")
    (home / "galleries").mkdir()
    Gallery.build(Encoder.open(bundle), {}).save(home / "galleries" / "g")
    assert bundle_of(home / "galleries" / "g") == bundle
    home.rename(tmp_path / "moved")
    assert bundle_of(tmp_path / "moved/galleries/g") == tmp_path / "moved/bundles/demo"


def test_everything_is_saved_and_opened(encoder, tmp_path):
    """Ids of any kind in the order of their code points, metadata, tokens and half vectors."""
    ids = ["a", "a b", "a/b", "ab", "Z", "é", "e\u0301", "\U0001f600", "\uffff", "\x00", "x" * 1024, "漢" * 1024]
    tokens = np.random.default_rng(1).normal(size=(12, 5, 3)).astype(np.float16)
    items = [{"n": i, "größe": "ö", "tags": ["x", str(i)]} if i % 3 else None for i in range(12)]
    vectors = vectors_from_features(ids, features(12), "float16", items, tokens)
    write_gallery(tmp_path / "g", vectors, encoder.bundle_id, encoder.bundle.path)
    for integrity in ("hash", "size"):
        header, read = read_gallery(tmp_path / "g", integrity)
        assert (header.count, header.storage, header.tokens) == (12, "float16", True)
        assert header.keys == ("größe", "n", "tags")
        assert list(read.ids) == sorted(ids) == [read.ids[i] for i in range(12)]
        assert read.ids[2:5] == tuple(sorted(ids)[2:5])
        assert read.ids[-1] == sorted(ids)[-1]
        for name in ids:
            row, place = row_of(read.ids, name), ids.index(name)
            assert read.metadata.item(row) == (items[place] or {})
            assert np.array_equal(read.tokens[row], tokens[place])
            np.testing.assert_allclose(read.unit[row] * read.norms[row], features(12)[place], rtol=1e-3, atol=1e-3)
        assert row_of(read.ids, "nobody") is None
        assert not read.unit.flags.writeable
    assert set(load_file(tmp_path / "g")) >= {"tokens", "metadata.codes.größe", "metadata.values.tags"}


def test_memory_maps_are_written_block_by_block(tmp_path):
    unit = np.memmap(tmp_path / "unit", np.float32, "w+", shape=(50_000, 128))
    unit[:, 0] = 1
    vectors = Vectors([f"{i:05d}" for i in range(50_000)], unit, np.ones(50_000, np.float32))
    tracemalloc.start()
    try:
        write_gallery(tmp_path / "g", vectors, "0" * 64, tmp_path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "g").stat().st_size > unit.nbytes > 3 * most
    _, read = read_gallery(tmp_path / "g")
    assert np.array_equal(read.unit, unit)


def test_a_saved_gallery_is_on_the_disk_before_its_name_and_its_name_before_save_returns(
    gallery, tmp_path, monkeypatch
):
    done, fsync, rename = [], os.fsync, Path.replace

    def note_fsync(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_rename(self, target):
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr("os.fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_rename)
    gallery.save(tmp_path / "g")
    assert done == ["file", "rename", "folder"]


def test_what_a_killed_save_left_is_removed(gallery, tmp_path):
    import fcntl

    old = {name: tmp_path / f".g.{name}.tmp" for name in ("0123456789ab", "ba9876543210", "aaaaaaaaaaaa", "notes")}
    for path in [*old.values(), tmp_path / ".other.0123456789ab.tmp"]:
        path.write_bytes(b"x")
        os.utime(path, (0, 0))
    os.utime(old["aaaaaaaaaaaa"])  # just now
    with old["ba9876543210"].open("rb") as somebody:
        fcntl.flock(somebody, fcntl.LOCK_EX)
        gallery.save(tmp_path / "g")
    kept = [".g.ba9876543210.tmp", ".g.aaaaaaaaaaaa.tmp", ".g.notes.tmp", ".other.0123456789ab.tmp", "g"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)


def test_a_bundle_whose_path_is_no_text(gallery, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes no such names")
    gallery.save(tmp_path / "g")
    _, vectors = read_gallery(tmp_path / "g")
    write_gallery(tmp_path / "h", vectors, "0" * 64, folder / "bundle")
    assert bundle_of(tmp_path / "h") == tmp_path


def test_another_bundles_gallery(encoder, other_bundle_path, gallery, tmp_path):
    gallery.save(tmp_path / "g")
    other = Encoder.open(other_bundle_path)
    with pytest.raises(GalleryMismatchError) as caught:
        Gallery.open(tmp_path / "g", other)
    message = str(caught.value)
    assert encoder.bundle_id[:16] in message
    assert other.bundle_id[:16] in message
    assert "dra-search index" in message
    assert "\n" not in message


def test_only_galleries_are_overwritten(gallery, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (notes, tmp_path, link, tmp_path / "missing" / "g"):
        with pytest.raises(UsageError) as caught:
            gallery.save(path)
        assert "\n" not in str(caught.value)
    assert notes.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "notes.txt"]


def test_a_failed_write_leaves_nothing_behind(gallery, tmp_path, monkeypatch):
    path = tmp_path / "g"
    gallery.save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(GalleryError, match="No space"):
        gallery.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["g"]


def test_files_that_are_no_gallery(encoder, gallery, tmp_path):
    good = tmp_path / "g"
    gallery.save(good)
    data = good.read_bytes()
    save_file({"unit": np.ones((2, 8), np.float32)}, tmp_path / "other")
    cases = [b"", b"short", b"\xff" * 100, data[:-1], data + b"x", data[:200], (tmp_path / "other").read_bytes()]
    for case in cases:
        (tmp_path / "case").write_bytes(case)
        for integrity in ("hash", "size"):
            with pytest.raises(GalleryFormatError) as caught:
                Gallery.open(tmp_path / "case", encoder, integrity)
            assert "\n" not in str(caught.value)
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(GalleryFormatError):
            Gallery.open(path, encoder)
    with pytest.raises(UsageError):
        Gallery.open(good, encoder, "none")


def write_file(path, encoder, arrays, metadata):
    """Write a safetensors file with a right hash, whatever it holds."""
    body = b"".join(array.tobytes() for array in arrays.values())
    header, offset = {}, 0
    names = {"float16": "F16", "float32": "F32", "float64": "F64", "uint8": "U8", "int32": "I32", "int64": "I64"}
    for name, array in arrays.items():
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    header["__metadata__"] = {
        "format": "dra-gallery",
        "version": "2",
        "bundle_id": encoder.bundle_id,
        "bundle": "b",
        "dim": "8",
        "data_sha256": hashlib.sha256(body).hexdigest(),
        **metadata,
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def packed(*ids):
    encoded = [name if isinstance(name, bytes) else name.encode() for name in ids]
    offsets = np.cumsum([0, *map(len, encoded)])
    return {"ids": np.frombuffer(b"".join(encoded), np.uint8), "id_offsets": offsets.astype(np.int64)}


def good_arrays():
    unit, norms = np.eye(2, 8, dtype=np.float32), np.ones(2, np.float32)
    return {"unit": unit, "norms": norms, **packed("a", "b")}


def column(codes, values):
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return {
        "metadata.codes.c": np.array(codes, np.int32),
        "metadata.values.c": np.frombuffer(text, np.uint8),
    }


INDEX = {"kind": "flat", "recall_at_10": 1.0, "queries": 5, "images": 2, "seconds": 0.1}


def test_the_files_of_the_next_test_are_galleries_but_for_one_thing(encoder, tmp_path):
    arrays = good_arrays() | {"tokens": np.ones((2, 3, 4), np.float16)} | column([-1, 0], ["x"])
    write_file(tmp_path / "g", encoder, arrays, {"index": json.dumps(INDEX)})
    header, vectors = read_gallery(tmp_path / "g")
    assert (header.count, header.dim, header.keys, header.tokens) == (2, 8, ("c",), True)
    assert list(vectors.ids) == ["a", "b"]
    assert vectors.metadata.item(1) == {"c": "x"}


@pytest.mark.parametrize(
    ("metadata", "arrays", "message"),
    [
        ({"version": "1"}, {}, "version is '1'"),
        ({"format": "other"}, {}, "format"),
        ({"more": "x"}, {}, "metadata"),
        ({"dim": "9"}, {}, "shapes"),
        ({"index": "{}"}, {}, "settings"),
        ({"index": "[" * 1000}, {}, "no gallery"),
        ({"index": json.dumps(INDEX | {"kind": "x"})}, {}, "settings"),
        ({"index": json.dumps(INDEX | {"queries": -1})}, {}, "settings"),
        ({"index": json.dumps(INDEX | {"recall_at_10": 1.5})}, {}, "settings"),
        ({"index": json.dumps(INDEX | {"seconds": -1})}, {}, "settings"),
        ({"index": json.dumps(INDEX | {"images": 3})}, {}, "index over 3 images"),
        ({}, packed("b", "a"), "order"),
        ({}, packed("a", "a"), "order"),
        ({}, packed("a"), "id_offsets"),
        ({}, packed("", "a"), "empty"),
        ({}, packed("a", "b" * 1025), "too long"),
        ({}, packed("a", "b" * 5000), "too long"),
        ({}, packed("a", b"\xff"), "utf-8"),
        ({}, packed("ä".encode()[:1], "ä".encode()[1:]), "within a character"),
        ({}, {"id_offsets": np.array([0, 3, 2])}, "empty or too long"),
        ({}, {"id_offsets": np.array([0, -1, 2])}, "empty or too long"),
        ({}, {"id_offsets": np.array([0, 1, 3])}, "begin or end"),
        ({}, {"id_offsets": np.array([1, 1, 2])}, "begin or end"),
        ({}, {"norms": np.array([1, -1], np.float32)}, "norm"),
        ({}, {"norms": np.array([1, 0], np.float32)}, "norm"),
        ({}, {"norms": np.array([1, np.nan], np.float32)}, "norm"),
        ({}, {"norms": np.array([1, np.inf], np.float32)}, "norm"),
        ({}, {"unit": np.ones((2, 8), np.float32)}, "unit length"),
        ({}, {"unit": np.zeros((2, 8), np.float32)}, "unit length"),
        ({}, {"unit": np.full((2, 8), np.nan, np.float16)}, "unit length"),
        ({}, {"unit": np.eye(2, 8)}, "type or shape of 'unit'"),
        ({}, {"norms": np.ones(3, np.float32)}, "shape of 'norms'"),
        ({}, {"tokens": np.ones((3, 1, 1), np.float16)}, "shape of 'tokens'"),
        ({}, {"tokens": np.ones((2, 0, 1), np.float16)}, "tokens"),
        ({}, {"extra": np.ones(3)}, "other arrays"),
        ({}, {"index.graph": np.ones(3)}, "index"),
        ({}, {"metadata.values.c": np.ones(3, np.uint8)}, "other arrays"),
        ({}, {"metadata.codes.c": np.ones(2, np.int32)}, "without values"),
        ({}, {"metadata.codes.": np.ones(2, np.int32)}, "key"),
        ({}, {f"metadata.codes.{i}": np.ones(2, np.int32) for i in range(65)}, "65 different keys"),
        ({}, column([0, 0, 0], ["x"]), "shape"),
        ({}, column([0, 1], ["x"]), "without a value"),
        ({}, column([0, -2], ["x"]), "without a value"),
        ({}, column([0, 0], {"x": 1}), "list"),
        ({}, column([0, 0], [{"x": 1}]), "finite number"),
        ({}, column([0, 0], [[1]]), "finite number"),
        ({}, column([0, 0], b"["), "damaged"),
        ({}, column([0, 0], b"[NaN]"), "damaged"),
        ({}, column([0, 0], b'["\\ud800"]'), "damaged"),
        ({}, column([0, 0], b"[" * 100_000), "damaged"),
        ({}, column([0, 0], b"[1" + b"0" * 10_000 + b"]"), "damaged"),
    ],
)
def test_made_up_galleries(encoder, tmp_path, metadata, arrays, message):
    """Files with right hashes and wrong content."""
    write_file(tmp_path / "g", encoder, good_arrays() | arrays, metadata)
    with pytest.raises(GalleryFormatError, match=message) as caught:
        read_gallery(tmp_path / "g")
    assert "\n" not in str(caught.value)


def test_the_hash_finds_what_nothing_else_can(encoder, gallery, tmp_path):
    gallery.save(tmp_path / "g")
    raw = bytearray((tmp_path / "g").read_bytes())
    raw[8 + int.from_bytes(raw[:8], "little")] ^= 1  # the last bit of the first number
    (tmp_path / "g").write_bytes(raw)
    with pytest.raises(GalleryFormatError, match="SHA-256"):
        Gallery.open(tmp_path / "g", encoder)
    assert len(Gallery.open(tmp_path / "g", encoder, "size")) == 40


def test_ids_in_a_wrong_order_do_not_crash_the_fast_mode(encoder, tmp_path):
    write_file(tmp_path / "g", encoder, good_arrays() | packed("b", "a"), {})
    gallery = Gallery.open(tmp_path / "g", encoder, "size")
    assert [hit.id for hit in gallery.search_vectors(np.eye(1, 8))[0]] == ["b", "a"]
    gallery.remove([name for name in ("a", "b") if name in gallery])
    with pytest.raises(GalleryError, match="order"):
        Gallery.open(tmp_path / "g", encoder, "size").save(tmp_path / "h")
    assert not (tmp_path / "h").exists()


@pytest.fixture(scope="module")
def full_file(encoder, tmp_path_factory):
    """A gallery with all that a file can hold but an index."""
    path = tmp_path_factory.mktemp("fuzz") / "good"
    items = [{"n": i, "tags": ["x", "y"]} for i in range(5)]
    vectors = vectors_from_features(list("abcde"), features(5), "float32", items, np.ones((5, 2, 2), np.float16))
    write_gallery(path, vectors, encoder.bundle_id, encoder.bundle.path)
    return path


def damaged(data, path):
    raw = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        end = header_end if data.draw(st.booleans()) else len(raw)
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (path.parent / "bad").write_bytes(raw)
    return path.parent / "bad"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_or_right(encoder, full_file, data):
    message = ""
    try:
        opened = Gallery.open(damaged(data, full_file), encoder)
    except GalleryError as error:
        message = str(error)
    else:
        query = np.arange(1.0, 9)[None]
        assert opened.search_vectors(query) == Gallery.open(full_file, encoder).search_vectors(query)
    assert "\n" not in message


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_do_not_crash_the_fast_mode(encoder, full_file, data):
    """Without a hash a changed vector can't be noticed: the answers may be wrong, but they are answers or an error."""
    message = ""
    try:
        opened = Gallery.open(damaged(data, full_file), encoder, "size")
        with np.errstate(all="ignore"):
            (hits,) = opened.search_vectors(np.ones((1, 8)))
            opened.search_vectors(np.ones((1, 8)), where={opened.metadata_keys[0]: 3})
            opened.features([hit.id for hit in hits if hit.id in opened])
        assert len(hits) <= 5
        opened.remove([name for name in opened.ids[:2] if name in opened])
        opened.save(full_file.parent / "again")
    except GalleryError as error:
        message = str(error)
    assert "\n" not in message
    (full_file.parent / "again").unlink(missing_ok=True)


def test_a_gallery_replaced_while_it_is_opened_is_the_one_or_the_other(encoder, gallery, tmp_path, monkeypatch):
    from dra_runtime import gallery_file

    path = tmp_path / "shop.gallery"
    gallery.save(path)
    newer = Gallery.from_features(encoder, ["a", "b"], features(2))
    read_layout = gallery_file.read_layout

    def then_replaced(*arguments):
        layout = read_layout(*arguments)
        monkeypatch.setattr(gallery_file, "read_layout", read_layout)
        newer.save(path)
        return layout

    monkeypatch.setattr(gallery_file, "read_layout", then_replaced)
    assert Gallery.open(path, encoder).ids == gallery.ids
    assert Gallery.open(path, encoder).ids == newer.ids
