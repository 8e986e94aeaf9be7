"""Indexing a folder: resumed runs give the same file as uninterrupted ones, and nothing stays behind."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dra_runtime.encoder import IMAGE_BATCH, Encoder
from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.folder import folder_images
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_file import read_gallery
from dra_runtime.image_stream import encoded_images
from dra_runtime.indexing import index_folder
from dra_runtime.journal import journal_path

COUNT = 3 * IMAGE_BATCH + 5


class Stop(Exception):
    """Ends a run from within its progress function."""


def stop_at(least):
    def progress(done, _):
        if done >= least:
            raise Stop

    return progress


def write_image(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)


@pytest.fixture(scope="module")
def encoder(bundle_path):
    return Encoder.open(bundle_path, threads=2, integrity="size")


@pytest.fixture
def folder(tmp_path):
    """More than three batches of images, one damaged file in the second."""
    path = tmp_path / "images"
    (path / "sub").mkdir(parents=True)
    for i in range(COUNT - 1):
        write_image(path / (f"sub/{i:02}.png" if i % 5 == 0 else f"{i:02}.png"), i)
    (path / "20b.png").write_bytes(b"no image")
    return path


@pytest.fixture
def whole(encoder, folder, tmp_path):
    """The bytes of a gallery made in one go."""
    out = tmp_path / "whole.gallery"
    index_folder(encoder, folder, out)
    return out.read_bytes()


def interrupted(encoder, folder, out, done, **options):
    with pytest.raises(Stop):
        index_folder(encoder, folder, out, progress=stop_at(done), **options)
    assert journal_path(out).is_dir()


def test_a_folder_is_indexed_as_gallery_build_does(encoder, folder, tmp_path):
    out = tmp_path / "shop.gallery"
    seen, notes = [], []
    report = index_folder(encoder, folder, out, progress=lambda *at: seen.append(at), note=notes.append)
    built = Gallery.build(encoder, folder)
    built.save(tmp_path / "built.gallery")
    ours, theirs = (read_gallery(tmp_path / f"{name}.gallery")[1] for name in ("shop", "built"))
    assert list(ours.ids) == list(theirs.ids)
    np.testing.assert_array_equal(ours.unit, theirs.unit)
    np.testing.assert_array_equal(ours.norms, theirs.norms)
    assert report.images == len(built) == COUNT - 1
    assert report.left_out == list(built.skipped)
    assert (report.left_out[0][0], report.resumed, notes) == ("20b", 0, [])
    assert seen == [(0, COUNT), (16, COUNT), (32, COUNT), (48, COUNT), (COUNT, COUNT)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built.gallery", "images", "shop.gallery"]


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_resumed_run_gives_the_same_file(encoder, folder, tmp_path, storage, tokens):
    options = {"storage": storage, "tokens": tokens}
    out, plain = tmp_path / "shop.gallery", tmp_path / "plain.gallery"
    index_folder(encoder, folder, plain, **options)
    interrupted(encoder, folder, out, 1, **options)
    interrupted(encoder, folder, out, 30, **options)
    notes, seen = [], []
    report = index_folder(encoder, folder, out, note=notes.append, progress=lambda *at: seen.append(at), **options)
    assert notes == [f"resuming: 32 of {COUNT} done"]
    assert seen[0] == (32, COUNT)
    assert report.resumed == 32
    assert [name for name, _ in report.left_out] == ["20b"]  # remembered
    assert out.read_bytes() == plain.read_bytes()
    assert not journal_path(out).exists()


def test_nothing_is_encoded_twice(encoder, folder, tmp_path, monkeypatch):
    out = tmp_path / "shop.gallery"
    interrupted(encoder, folder, out, COUNT)
    monkeypatch.setattr(Encoder, "pixels", None)
    assert index_folder(encoder, folder, out).resumed == COUNT


def test_changed_vanished_and_new_images_are_noticed(encoder, folder, tmp_path):
    out = tmp_path / "shop.gallery"
    interrupted(encoder, folder, out, 32)
    write_image(folder / "01.png", 1000)  # as long as before: noticed by its time
    os.utime(folder / "01.png", ns=(0, 5_000_000_000))
    (folder / "02.png").unlink()
    write_image(folder / "00new.png", 2000)
    write_image(folder / "20b.png", 3000)
    report = index_folder(encoder, folder, out)
    assert report.resumed == 32 - 3
    assert report.left_out == []
    fresh = tmp_path / "fresh.gallery"
    index_folder(encoder, folder, fresh)
    left, right = Gallery.open(out, encoder), Gallery.open(fresh, encoder)
    assert tuple(left.ids) == tuple(right.ids)
    # other neighbours in the batch may change the last bits
    np.testing.assert_allclose(left.features(left.ids), right.features(right.ids), rtol=1e-5, atol=1e-6)


def test_an_id_that_changes_between_runs(encoder, folder, tmp_path):
    """The journal goes by path: `01` becomes `01.png` beside `01.bmp`."""
    out = tmp_path / "shop.gallery"
    interrupted(encoder, folder, out, 32)
    Image.new("RGB", (9, 9), "red").save(folder / "01.bmp")
    index_folder(encoder, folder, out)
    gallery = Gallery.open(out, encoder)
    assert {"01.png", "01.bmp"} < set(gallery.ids)
    assert "01" not in gallery
    expected = encoder.encode_images([folder / "01.png"])
    np.testing.assert_allclose(gallery.features(["01.png"]), expected, rtol=1e-5)


def copy_cut(journal, target, lengths):
    shutil.copytree(journal, target)
    for name, length in lengths.items():
        os.truncate(target / name, length)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_journal_cut_anywhere_is_resumed(encoder, tmp_path_factory, data):
    """What a kill leaves is a part of this, and what the loss of power or a bad disk leaves is the rest."""
    base = cut_base(encoder, tmp_path_factory)
    sizes = {path.name: path.stat().st_size for path in base["journal"].iterdir()}
    lengths = {name: data.draw(st.integers(0, sizes[name]), name) for name in ("unit", "norms", "images.jsonl")}
    out = base["folder"].parent / "shop.gallery"  # where the gallery lies is part of the file
    shutil.rmtree(journal_path(out), ignore_errors=True)  # of an example that failed
    copy_cut(base["journal"], journal_path(out), lengths)
    if data.draw(st.booleans(), "damaged"):
        name = data.draw(st.sampled_from(["unit", "norms", "images.jsonl"]))
        path = journal_path(out) / name
        content = bytearray(path.read_bytes())
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(content)
    index_folder(encoder, base["folder"], out)
    assert out.read_bytes() == base["whole"]
    assert not journal_path(out).exists()


@pytest.mark.parametrize("name", ["unit", "norms", "tokens", "images.jsonl"])
def test_a_damaged_batch_and_what_follows_are_done_again(encoder, folder, tmp_path, name):
    out, plain = tmp_path / "shop.gallery", tmp_path / "plain.gallery"
    index_folder(encoder, folder, plain, tokens=True)
    interrupted(encoder, folder, out, 48, tokens=True)
    path = journal_path(out) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the second of three batches
    path.write_bytes(content)
    assert index_folder(encoder, folder, out, tokens=True).resumed == 16
    assert out.read_bytes() == plain.read_bytes()


_BASE = {}


def cut_base(encoder, tmp_path_factory):
    """An interrupted run whose journal holds everything, and the gallery that must come of it; made once."""
    if not _BASE:
        path = tmp_path_factory.mktemp("base")
        (path / "images").mkdir()
        for i in range(2 * IMAGE_BATCH + 3):
            write_image(path / "images" / f"{i}.png", i)
        (path / "images" / "bad.png").write_bytes(b"")
        interrupted(encoder, path / "images", path / "g", 2 * IMAGE_BATCH + 4)
        index_folder(encoder, path / "images", path / "whole")
        _BASE.update(journal=journal_path(path / "g"), folder=path / "images", whole=(path / "whole").read_bytes())
    return _BASE


def test_another_runs_journal_is_refused_and_kept(encoder, folder, tmp_path, other_bundle_path, whole):
    out = tmp_path / "shop.gallery"
    interrupted(encoder, folder, out, 16)
    other = Encoder.open(other_bundle_path, integrity="size")
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    for word, arguments, options in (
        (encoder.bundle_id[:16], (other, folder, out), {}),
        (str(folder), (encoder, elsewhere, out), {}),
        ("--storage", (encoder, folder, out), {"storage": "float16"}),
        ("--tokens", (encoder, folder, out), {"tokens": True}),
    ):
        with pytest.raises(UsageError, match="--restart") as caught:
            index_folder(*arguments, **options)
        assert word in str(caught.value)
        assert "\n" not in str(caught.value)
    head = journal_path(out) / "head.json"
    text = head.read_text()
    head.write_text(text.replace('"version": "1"', '"version": "2"'))
    with pytest.raises(UsageError, match="another version"):
        index_folder(encoder, folder, out)
    head.write_text(text)
    assert index_folder(encoder, folder, out).resumed == 16
    assert out.read_bytes() == whole


def test_restart_drops_a_journal(encoder, folder, tmp_path, other_bundle_path, whole):
    out = tmp_path / "shop.gallery"
    interrupted(Encoder.open(other_bundle_path, integrity="size"), folder, out, 16)
    assert index_folder(encoder, folder, out, restart=True).resumed == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"version": "1"}', b"\xff"])
def test_a_journal_without_a_head_begins_anew(encoder, folder, tmp_path, whole, content):
    out = tmp_path / "shop.gallery"
    interrupted(encoder, folder, out, 16)
    (journal_path(out) / "head.json").write_bytes(content)
    assert index_folder(encoder, folder, out).resumed == 0
    assert out.read_bytes() == whole
    assert not journal_path(out).exists()


def test_a_second_indexer_of_the_same_target_is_refused(encoder, folder, tmp_path):
    out = tmp_path / "shop.gallery"
    refused = []

    def progress(done, _):
        if done == 16:
            with pytest.raises(UsageError, match="another process") as caught:
                index_folder(encoder, folder, out)
            refused.append(str(caught.value))
            index_folder(encoder, folder, tmp_path / "other.gallery")  # another target may

    index_folder(encoder, folder, out, progress=progress)
    assert len(refused) == 1
    assert out.read_bytes() == (tmp_path / "other.gallery").read_bytes()
    index_folder(encoder, folder, out)  # the lock is gone


def test_an_unwritable_journal_keeps_what_was_done(encoder, folder, tmp_path, monkeypatch, whole):
    out = tmp_path / "shop.gallery"
    from dra_runtime import journal

    written, write = [], journal._write

    def full(file, data):
        written.append(data)
        if len(written) == 5:  # in the second batch, between its vectors and its line
            write(file, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        write(file, data)

    monkeypatch.setattr(journal, "_write", full)
    with pytest.raises(GalleryError, match="No space left") as caught:
        index_folder(encoder, folder, out)
    assert "same command" in str(caught.value)
    monkeypatch.undo()
    assert index_folder(encoder, folder, out).resumed == 16
    assert out.read_bytes() == whole


def test_nothing_stays_behind_when_nothing_was_done(encoder, tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    (images / "bad.png").write_bytes(b"x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(GalleryError, match="none of its 1 images can be read"):
        index_folder(encoder, images, tmp_path / "g")
    with pytest.raises(Stop):
        index_folder(encoder, images, tmp_path / "g", progress=stop_at(0))
    (images / "g").write_bytes(b"precious")
    with pytest.raises(UsageError, match="is no gallery"):
        index_folder(encoder, images, images / "g")
    assert sorted(tmp_path.iterdir()) == before


def test_tokens_without_a_reranker(folder, tmp_path, other_bundle_path):
    with pytest.raises(UsageError, match="no reranker"):
        index_folder(Encoder.open(other_bundle_path, integrity="size"), folder, tmp_path / "g", tokens=True)


def test_names_that_are_no_unicode_are_left_out(encoder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    write_image(images / "fine ü 💡.png", 0)
    try:
        write_image(os.fsencode(images) + b"/\xff.png", 1)
    except (OSError, ValueError):
        pytest.skip("this file system takes Unicode names only")
    report = index_folder(encoder, images, tmp_path / "g")
    assert report.images == 1
    assert "Unicode" in report.left_out[0][1]


def test_metadata_goes_by_id(encoder, folder, tmp_path):
    out = tmp_path / "g"
    index_folder(encoder, folder, out, metadata={"01": {"color": "red"}, "sub/05": {"price": 3}, "nobody": {"a": 1}})
    gallery = Gallery.open(out, encoder)
    assert [gallery.metadata(name) for name in ("01", "sub/05", "02")] == [{"color": "red"}, {"price": 3}, {}]


def test_a_stream_decodes_ahead_but_not_far(encoder):
    """At most two batches are taken from the source before the first comes out."""
    taken = []

    def source():
        for i in range(10 * IMAGE_BATCH):
            taken.append(i)
            yield i, np.full((4, 4, 3), i % 256, np.uint8)

    stream = encoded_images(encoder, source())
    first = next(stream)
    assert list(first.keys) == list(range(IMAGE_BATCH))
    assert len(taken) == 2 * IMAGE_BATCH
    expected = encoder.encode_images([np.full((4, 4, 3), i, np.uint8) for i in range(IMAGE_BATCH)])
    np.testing.assert_array_equal(first.features, expected)
    stream.close()
    assert len(taken) == 2 * IMAGE_BATCH


def test_images_of_a_folder_have_size_and_time(folder):
    images = {image.name: image for image in folder_images(folder)}
    assert list(images) == [i.name for i in sorted(images.values(), key=lambda i: i.id)]
    found = (folder / "sub/05.png").stat()
    image = images["sub/05.png"]
    assert (image.id, image.size, image.mtime_ns) == ("sub/05", found.st_size, found.st_mtime_ns)
    (folder / "nowhere.png").symlink_to("missing")
    assert {image.name: image.size for image in folder_images(folder)}["nowhere.png"] == -1


def test_a_journal_is_read_as_documented(encoder, folder, tmp_path):
    """docs/indexing.md: a line's checksum is of its text, and the text's checksum of the vectors."""
    import zlib

    out = tmp_path / "g"
    interrupted(encoder, folder, out, 32)
    journal = journal_path(out)
    unit, norms = (np.fromfile(journal / name, np.float32) for name in ("unit", "norms"))
    unit = unit.reshape(-1, encoder.dim)
    row = 0
    for line in (journal / "images.jsonl").read_bytes().splitlines():
        checksum, text = line.split(b" ", 1)
        assert int(checksum, 16) == zlib.crc32(text)
        batch = json.loads(text)
        count = len(batch["images"])
        part = slice(row, row + count)
        assert batch["checksum"] == zlib.crc32(norms[part].tobytes(), zlib.crc32(unit[part].tobytes()))
        row += count
    assert row == len(unit) == len(norms) == 31
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)


def test_a_changed_file_during_the_run_is_taken_up_later(encoder, folder, tmp_path):
    """Size and time are noted before a file is read: the older note wins, and the file counts as changed."""
    out = tmp_path / "g"

    def progress(done, total):
        if done == 0:
            write_image(folder / "00x.png", 1)
            time.sleep(0.01)
            write_image(folder / "01.png", 77)
            os.utime(folder / "01.png", ns=(0, 7_000_000_000))
        if done == total:
            raise Stop

    with pytest.raises(Stop):
        index_folder(encoder, folder, out, progress=progress)
    assert index_folder(encoder, folder, out).resumed == COUNT - 1


def test_images_that_are_decoded_side_by_side_take_a_thread_each(encoder, monkeypatch):
    """Or as many threads as CPUs would each start as many."""
    from dra_runtime import preprocess

    workers, together = [], preprocess.run_together
    monkeypatch.setattr(preprocess, "run_together", lambda work, count: workers.append(count) or together(work, count))
    large = np.zeros((1200, 1200, 3), np.uint8)
    (batch,) = encoded_images(encoder, [(0, large), (1, large)])
    assert batch.keys == [0, 1]
    assert workers == [1, 1]
    encoder.pixels(large)
    assert workers[2:] == [2]


def open_files(path):
    """Return which files below a folder this process holds open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # the listing's own is gone
    return [link for link in links if link.readlink().is_relative_to(path)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into Linux's /proc")
@pytest.mark.parametrize("resumed", [False, True])
def test_a_journal_that_cannot_be_opened_leaves_no_file_open_and_loses_nothing(
    encoder, folder, tmp_path, monkeypatch, whole, resumed
):
    from dra_runtime import journal

    out = tmp_path / "shop.gallery"
    if resumed:
        interrupted(encoder, folder, out, 16)

        monkeypatch.setattr(journal.os, "truncate", lambda path, size: full_disk() if path.name == "norms" else None)
    else:
        monkeypatch.setattr(journal, "write_bytes", lambda path, content: full_disk())
    with pytest.raises(GalleryError, match="No space left") as caught:
        index_folder(encoder, folder, out)
    assert caught.value.__traceback__  # which holds what the functions held
    assert open_files(tmp_path) == []
    assert journal_path(out).exists() == resumed
    monkeypatch.undo()
    assert index_folder(encoder, folder, out).resumed == (16 if resumed else 0)
    assert out.read_bytes() == whole
    assert not journal_path(out).exists()


def full_disk():
    raise OSError(28, "No space left on device")


def test_a_file_that_the_system_put_into_the_journal_does_not_spoil_the_end(encoder, folder, tmp_path, whole):
    """Network file systems keep what is removed while it is mapped, by another name."""
    out = tmp_path / "shop.gallery"
    interrupted(encoder, folder, out, 16)
    (journal_path(out) / ".nfs0001").write_bytes(b"")
    report = index_folder(encoder, folder, out)
    assert report.images == COUNT - 1
    assert out.read_bytes() == whole
    index_folder(encoder, folder, out, restart=True)
    assert out.read_bytes() == whole
