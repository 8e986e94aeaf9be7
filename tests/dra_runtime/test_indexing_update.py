"""`--update`: what hasn't changed is taken over, and the result holds what a new run would."""

import os

import numpy as np
import pytest
from PIL import Image

from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.folder import images_of_folder
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_file import read_files, read_gallery, read_header
from dra_runtime.indexing import index_folder
from dra_runtime.journal import journal_path

COUNT = 40


@pytest.fixture(scope="module")
def encoder(bundle_path):
    return Encoder.open(bundle_path, threads=1, integrity="size")


def write_image(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for i in range(COUNT):
        write_image(path / f"{i:02}.png", i)
    (path / "99.png").write_bytes(b"no image")
    return path


def change(folder):
    """One image changed, one gone, one new, the damaged one mended."""
    write_image(folder / "05.png", 1005)
    os.utime(folder / "05.png", ns=(0, 9_000_000_000))
    (folder / "06.png").unlink()
    write_image(folder / "07a.png", 1007)
    write_image(folder / "99.png", 1099)


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_an_update_encodes_only_what_changed(encoder, folder, tmp_path, monkeypatch, storage):
    out = tmp_path / "shop.gallery"
    metadata = {f"{i:02}": {"number": i} for i in range(COUNT)}
    index_folder(encoder, folder, out, storage=storage, tokens=True, metadata=metadata)
    change(folder)
    decoded, pixels = [], Encoder.pixels
    monkeypatch.setattr(
        Encoder, "pixels", lambda self, path, *how: decoded.append(path.name) or pixels(self, path, *how)
    )
    notes = []
    report = index_folder(encoder, folder, out, update=True, note=notes.append)
    assert sorted(decoded) == ["05.png", "07a.png", "99.png"]
    assert notes == [f"updating: {COUNT - 2} of {COUNT + 1} images are unchanged"]
    assert (report.images, report.kept, report.resumed, report.left_out) == (COUNT + 1, COUNT - 2, 0, [])
    header, vectors = read_gallery(out)
    assert (header.storage, header.tokens, header.keys) == (storage, True, ("number",))
    fresh = tmp_path / "fresh.gallery"
    index_folder(encoder, folder, fresh, storage=storage, tokens=True)
    expected = read_gallery(fresh)[1]
    assert list(vectors.ids) == list(expected.ids) == list(images_of_folder(folder))
    np.testing.assert_allclose(vectors.unit, expected.unit, atol=1e-3 if storage == "float16" else 1e-6)
    np.testing.assert_allclose(vectors.norms, expected.norms, rtol=1e-5)
    np.testing.assert_allclose(vectors.tokens, expected.tokens, atol=2e-3, rtol=2e-3)
    gallery = Gallery.open(out, encoder)
    assert [gallery.metadata(name) for name in ("04", "05", "07a")] == [{"number": 4}, {}, {}]
    for name in ("sizes", "mtimes_ns"):
        np.testing.assert_array_equal(getattr(read_files(out), name), getattr(read_files(fresh), name))
    decoded.clear()
    again = out.read_bytes()
    assert index_folder(encoder, folder, out, update=True).kept == COUNT + 1
    assert (decoded, out.read_bytes() == again) == ([], True)


def test_an_interrupted_update_is_resumed(encoder, folder, tmp_path):
    out = tmp_path / "shop.gallery"
    index_folder(encoder, folder, out)
    for i in range(50, 90):
        write_image(folder / f"{i}.png", i)
    change(folder)

    def stop(done, total):
        if done >= total - 12:
            raise KeyboardInterrupt

    before = out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        index_folder(encoder, folder, out, update=True, progress=stop)
    assert out.read_bytes() == before
    notes = []
    report = index_folder(encoder, folder, out, update=True, note=notes.append)
    assert (report.kept, report.resumed) == (COUNT - 2, 32)
    assert len(notes) == 2
    assert read_header(out).count == COUNT + 41
    assert not journal_path(out).exists()
    fresh = tmp_path / "fresh.gallery"
    index_folder(encoder, folder, fresh)
    np.testing.assert_allclose(read_gallery(out)[1].unit, read_gallery(fresh)[1].unit, atol=1e-6)


def test_an_index_is_kept_up(encoder, folder, tmp_path):
    pytest.importorskip("faiss")
    out = tmp_path / "shop.gallery"
    notes = []
    report = index_folder(encoder, folder, out, index="flat", note=notes.append)
    assert (report.index.kind, report.index.images) == ("flat", COUNT)
    assert notes[0] == f"building the index flat over {COUNT} images"
    change(folder)
    index_folder(encoder, folder, out, update=True)
    assert (read_header(out).index.kind, read_header(out).index.images) == ("flat", COUNT + 1)
    gallery = Gallery.open(out, encoder)
    assert [hit.id for hit in gallery.search(text="a", id="05", k=3)] == [
        hit.id for hit in Gallery.build(encoder, folder).search(text="a", id="05", k=3)
    ]


def test_galleries_that_cannot_be_updated(encoder, folder, tmp_path, other_bundle_path):
    out = tmp_path / "shop.gallery"
    assert index_folder(encoder, folder, out, update=True).kept == 0  # none is there: a first run
    other = Encoder.open(other_bundle_path, integrity="size")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for arguments, options, word in (
        ((other, folder, out), {}, "bundle"),
        ((encoder, elsewhere, out), {}, "folder"),
        ((encoder, folder, out), {"storage": "float16"}, "float32"),
        ((encoder, folder, out), {"tokens": True}, "tokens"),
    ):
        with pytest.raises(UsageError, match=f"can't be updated.*{word}.*without --update"):
            index_folder(*arguments, update=True, **options)
    gallery = Gallery.open(out, encoder)
    gallery.remove(["00"])
    gallery.save(out)
    with pytest.raises(UsageError, match="doesn't say which files"):
        index_folder(encoder, folder, out, update=True)
