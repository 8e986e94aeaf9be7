"""Re-ranked answers equal those of dra_train's PyTorch, wherever the tokens come from."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dra_runtime.encoder import Encoder
from dra_runtime.errors import GalleryError, GalleryFormatError, ImageError, UsageError
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_file import write_gallery
from dra_runtime.rerank import DEFAULT_MU, KnownImages, half_tokens
from dra_train.checkpoint import load_checkpoint
from dra_train.rerank import agreement

TEXT = "with darker hair"
MUS = (0.0, 0.05, 0.5, 40.0, -3.0)


@pytest.fixture(scope="module")
def encoder(tiny_bundle):
    return Encoder.open(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def images(emoji_images):
    """Map ids, which sort otherwise than the paths, to paths."""
    return {f"{i * 7 % 16:02}": path for i, path in enumerate(emoji_images)}


@pytest.fixture(scope="module")
def gallery(encoder, images):
    return Gallery.build(encoder, images)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint).model.eval()


@pytest.fixture(scope="module")
def reference(model, encoder, images):
    """Return the features and feature maps of all images, by PyTorch, in the order of their ids."""
    pixels = torch.from_numpy(np.stack([encoder.preprocess(Image.open(images[name])) for name in sorted(images)]))
    with torch.inference_mode():
        frozen = model.image_trunk(pixels)
        return model.project_image(frozen.pooled), frozen.feature_map


@torch.inference_mode()
def expected(model, encoder, reference, names, row, k, mu):
    """Return ids in the order of dra_train's sums for a query by the row of its reference, and the sums."""
    features, maps = reference
    text = model.encode_text(torch.from_numpy(encoder.tokenizer([TEXT])))
    query = model.compose(features[row : row + 1], text)[0]
    cosine = F.normalize(features, dim=-1) @ query
    others = sorted((i for i in range(len(names)) if i != row), key=lambda i: (-cosine[i].item(), names[i]))
    first = torch.tensor(others[:k])
    agreements = agreement(model, torch.tensor([row]), first[None], text, lambda rows: maps[rows])[0]
    sums = {names[i]: cosine[i].item() + mu * a for i, a in zip(first.tolist(), agreements.tolist(), strict=True)}
    return sorted(sums, key=lambda name: (-sums[name], name)) + [names[i] for i in others[k:]], sums


def check(found, wanted, sums, mu):
    """Compare the orders; two that PyTorch's rounding could swap may be swapped."""
    found = [hit.id for hit in found]
    assert len(found) == len(wanted)
    assert set(found[: len(sums)]) == set(sums)
    assert found[len(sums) :] == wanted[len(sums) :]
    for mine, theirs in zip(found[: len(sums)], wanted, strict=False):
        assert sums[mine] == pytest.approx(sums[theirs], abs=2e-5 * (1 + abs(mu)))


def same(found, wanted):
    """Require the same order; the cosines may differ by rounding, since the images were encoded in other batches."""
    assert [hit.id for hit in found] == [hit.id for hit in wanted]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in wanted], atol=1e-6)


@pytest.mark.parametrize("k", [2, 5, 15, 100])
@pytest.mark.parametrize("mu", MUS)
def test_the_order_is_dra_trains(gallery, model, encoder, reference, images, k, mu):
    names, moved = sorted(images), 0
    for row in range(0, 16, 3):
        plain = gallery.search(text=TEXT, id=names[row], k=16)
        found = gallery.search(text=TEXT, id=names[row], k=16, rerank=k, mu=mu)
        check(found, *expected(model, encoder, reference, names, row, k, mu), mu)
        assert {h.id: h.score for h in found} == {h.id: h.score for h in plain}  # scores stay cosines
        assert [h.rank for h in found] == list(range(1, 16))
        moved += [h.id for h in found] != [h.id for h in plain]
    assert moved or abs(mu) < 1 or k == 2
    assert not moved or mu


def test_fewer_answers_than_are_reranked(gallery):
    whole = gallery.search(text=TEXT, id="03", k=16, rerank=10, mu=5)
    assert gallery.search(text=TEXT, id="03", k=3, rerank=10, mu=5) == whole[:3]
    assert gallery.search(text=TEXT, id="03", k=12, rerank=10, mu=5) == whole[:12]
    assert gallery.search(text=TEXT, id="03", rerank=10) == gallery.search(text=TEXT, id="03", rerank=10, mu=DEFAULT_MU)


def test_tokens_from_everywhere_give_the_same(gallery, encoder, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, path in images.items():
        shutil.copy(path, folder / f"{name}{path.suffix}")
    stored = Gallery.build(encoder, images, tokens=True)
    plain, with_tokens = tmp_path / "plain.gallery", tmp_path / "tokens.gallery"
    gallery.save(plain)
    stored.save(with_tokens)
    others = {
        "a folder": Gallery.build(encoder, folder),
        "opened with a folder": Gallery.open(plain, encoder, images=folder),
        "opened with its name": Gallery.open(plain, encoder, images=str(folder)),
        "opened with a mapping": Gallery.open(plain, encoder, images={n: p.read_bytes() for n, p in images.items()}),
        "opened with a function": Gallery.open(plain, encoder, images=lambda name: folder / f"{name}.webp"),
        "stored": stored,
        "opened with tokens": Gallery.open(with_tokens, encoder),
    }
    others["stored, the pictures gone"] = others["opened with tokens"]
    for query in ({"id": "05"}, {"image": images["08"]}, {"image": Image.open(images["08"])}):
        first = gallery.search(text=TEXT, k=16, rerank=15, mu=2, **query)
        for kind, other in others.items():
            found = other.search(text=TEXT, k=16, rerank=15, mu=2, **query)
            if "stored" in kind or "tokens" in kind:  # float16: near ties may swap, and no more
                assert sum(a.id != b.id for a, b in zip(found, first, strict=True)) <= 4, kind
            else:
                same(found, first)


def test_the_reference_is_related_by_its_image(gallery, images):
    by_id = gallery.search(text=TEXT, id="05", k=16, rerank=16, mu=2, keep_reference=True)
    same(gallery.search(text=TEXT, image=images["05"], k=16, rerank=16, mu=2), by_id)


def test_equal_images_stay_in_the_order_of_their_ids(gallery, encoder, images, tmp_path):
    copies = {f"{name}{copy}": path for name, path in images.items() for copy in "zab"}
    features = gallery.features(name[:2] for name in copies)
    Gallery.from_features(encoder, list(copies), features).save(tmp_path / "copies.gallery")
    opened = Gallery.open(tmp_path / "copies.gallery", encoder, images=copies)
    found = opened.search(text=TEXT, image=images["05"], k=48, rerank=48, mu=3)
    assert [hit.id[2] for hit in found] == ["a", "b", "z"] * 16
    assert all(hit.id[:2] == found[3 * (i // 3)].id[:2] for i, hit in enumerate(found))


def test_equal_sums_stand_in_the_order_of_their_ids(gallery, monkeypatch):
    plain = gallery.search(text=TEXT, id="05", k=16)
    # what takes each cosine to zero
    sums = iter(np.array([-hit.score for hit in plain], np.float32).reshape(1, -1))
    monkeypatch.setattr("dra_runtime.rerank.agreement", lambda *arguments: next(sums))
    found = gallery.search(text=TEXT, id="05", k=16, rerank=16, mu=1)
    assert [hit.id for hit in found] == sorted(hit.id for hit in plain) != [hit.id for hit in plain]


def test_what_is_added_is_known_too(encoder, images, tmp_path):
    names = sorted(images)
    small = Gallery.build(encoder, {name: images[name] for name in names[:8]})
    small.add({name: images[name] for name in names[8:]})
    whole = Gallery.build(encoder, images)
    query = {"text": TEXT, "id": names[2], "k": 16, "rerank": 16, "mu": 3}
    same(small.search(**query), whole.search(**query))
    new = tmp_path / "new.png"
    Image.open(images[names[5]]).rotate(90).save(new)
    small.add({names[5]: new}, replace=True)  # the tokens are the new image's
    other = Gallery.build(encoder, {**images, names[5]: new})
    same(small.search(**query), other.search(**query))
    small.add({names[5]: new.read_bytes()}, replace=True)  # pictures in memory aren't kept
    with pytest.raises(UsageError, match=names[5]) as caught:
        small.search(**query)
    assert "\n" not in str(caught.value)
    small.remove([names[5]])
    assert len(small.search(**query)) == 14


def test_reranking_within_a_filter(encoder, images):
    metadata = {name: {"even": int(name) % 2 == 0} for name in images}
    gallery = Gallery.build(encoder, images, metadata=metadata)
    whole = gallery.search(text=TEXT, id="01", k=16, rerank=16, mu=3)
    found = gallery.search(text=TEXT, id="01", k=16, rerank=16, mu=3, where={"even": True})
    assert [h.id for h in found] == [h.id for h in whole if int(h.id) % 2 == 0]


def test_what_cannot_be_reranked_is_one_line(gallery, encoder, images, other_bundle_path, tmp_path):
    gallery.save(tmp_path / "a.gallery")
    unknown = Gallery.open(tmp_path / "a.gallery", encoder)
    in_memory = Gallery.build(encoder, {name: path.read_bytes() for name, path in images.items()})
    from_features = Gallery.from_features(encoder, ["05", "b"], np.eye(2, encoder.dim))
    nowhere = Gallery.open(tmp_path / "a.gallery", encoder, images=lambda name: None)
    partly = Gallery.open(tmp_path / "a.gallery", encoder, images={"05": images["05"]})
    plain = Gallery.build(Encoder.open(other_bundle_path, threads=1), {"05": images["05"], "b": images["02"]})
    good = {"text": TEXT, "id": "05", "rerank": 5}
    for searched, change, message in (
        (unknown, {}, "images=FOLDER"),
        (in_memory, {}, "tokens=True"),
        (from_features, {}, "tokens=True"),
        (nowhere, {}, "no tokens of '05'"),
        (partly, {}, "no tokens of '"),
        (plain, {}, "has no reranker"),
        (gallery, {"rerank": 1}, "at least 2"),
        (gallery, {"rerank": 0}, "at least 2"),
        (gallery, {"rerank": True}, "at least 2"),
        (gallery, {"rerank": 2.0}, "at least 2"),
        (gallery, {"mu": float("nan")}, "mu is nan"),
        (gallery, {"mu": float("inf")}, "mu is inf"),
        (gallery, {"mu": "1"}, "mu is '1'"),
        (gallery, {"mu": True}, "mu is True"),
        (gallery, {"rerank": None, "mu": 0.1}, "rerank"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            searched.search(**{**good, **change})
        assert "\n" not in str(caught.value)
    for call in (
        lambda: Encoder.open(other_bundle_path, threads=1).image_tokens(images["05"]),
        lambda: Encoder.open(other_bundle_path, threads=1).relations(np.ones((1, 5, 8)), np.ones((1, 5, 8))),
        lambda: Gallery.build(Encoder.open(other_bundle_path, threads=1), images, tokens=True),
        lambda: Gallery.open(tmp_path / "a.gallery", encoder, images=7),
    ):
        with pytest.raises(UsageError):
            call()


def test_an_image_that_is_gone_is_an_image_error(gallery, encoder, images, tmp_path):
    gallery.save(tmp_path / "a.gallery")
    gone = Gallery.open(tmp_path / "a.gallery", encoder, images=lambda name: tmp_path / f"{name}.webp")
    with pytest.raises(ImageError, match="no such image file"):
        gone.search(text=TEXT, id="05", rerank=5)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(GalleryError, match="no images in it"):
        Gallery.open(tmp_path / "a.gallery", encoder, images=empty).search(text=TEXT, id="05", rerank=5)
    assert Gallery.open(tmp_path / "a.gallery", encoder, images=empty).search(text=TEXT, id="05")  # not needed


@torch.inference_mode()
def test_tokens_and_relations_equal_pytorch(encoder, model, reference, images):
    paths = [images[name] for name in sorted(images)]
    tokens = encoder.image_tokens(paths)
    theirs = model.project_tokens(reference[1])
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(tokens, theirs.numpy(), rtol=1e-4, atol=1e-5)
    assert np.array_equal(encoder.image_tokens(paths[3]), tokens[3:4])
    assert np.array_equal(encoder.image_tokens(path for path in paths), tokens)
    assert encoder.image_tokens([]).shape == (0, *tokens.shape[1:])
    for count in (1, 2, 7, 31, 32, 33, 70):  # 32 are related at once
        rows = np.arange(count) % 16
        a, b = tokens[rows], tokens[(5 * rows + 1) % 16]
        found = encoder.relations(a, b)
        assert (found.dtype, found.shape) == (np.float32, (count, encoder.dim))
        np.testing.assert_allclose(found, model.relate(torch.tensor(a), torch.tensor(b)).numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(encoder.relations(a[:1], b), encoder.relations(a[:1].repeat(count, 0), b), atol=1e-6)
    half = encoder.relations(tokens[:3].astype(np.float16), tokens[3:6].astype(np.float64))
    np.testing.assert_allclose(half, encoder.relations(tokens[:3], tokens[3:6]), rtol=1e-2, atol=1e-3)
    assert encoder.relations(tokens[:1], tokens[:0]).shape == (0, encoder.dim)


def test_unusable_tokens(encoder):
    count, dim = encoder.image_tokens([]).shape[1:]
    good = np.ones((2, count, dim), np.float32)
    for bad in (
        np.ones((2, count + 1, dim)),
        np.ones((2, count, dim - 1)),
        np.ones((count, dim)),
        np.ones((2, count, dim), int),
        np.full((2, count, dim), np.nan),
        np.full((2, count, dim), 1e300),
        np.ones((3, count, dim)),
        [[1.0], [1.0, 2.0]],
        None,
        "tokens",
    ):
        for arguments in ((bad, good), (good, bad)):
            with pytest.raises(UsageError) as caught:
                encoder.relations(*arguments)
            assert "\n" not in str(caught.value)


def test_tokens_beyond_half_precision_are_refused():
    assert half_tokens(np.full((1, 2, 3), 65_000, np.float32)).dtype == np.float16
    with pytest.raises(GalleryError, match="float16"):
        half_tokens(np.full((1, 2, 3), 70_000, np.float32))


def test_images_are_known_before_they_can_be_answers(encoder, images, monkeypatch):
    """A search beside `add` that finds a new image must be able to re-rank it."""
    gallery = Gallery.build(encoder, {name: images[name] for name in ("00", "01")})
    found = []
    add = KnownImages.add

    def noted(known, sources):
        found.append("02" in gallery)
        add(known, sources)

    monkeypatch.setattr(KnownImages, "add", noted)
    gallery.add({"02": images["02"]})
    assert found == [False]
    assert "02" in gallery


def test_an_addition_that_fails_changes_no_known_image(encoder, images):
    keys = {"03": {f"k{i}": i for i in range(40)}}
    gallery = Gallery.build(encoder, {name: images[name] for name in ("00", "03")}, metadata=keys)
    with pytest.raises(UsageError, match="keys"):
        gallery.add(
            {"00": images["01"], "01": images["01"]}, replace=True, metadata={"01": {f"m{i}": i for i in range(40)}}
        )
    assert gallery._images("00") == images["00"]
    assert gallery._images("01") is None


def test_removed_images_are_forgotten(encoder, images):
    """Or a gallery that changes for months would grow."""
    gallery = Gallery.build(encoder, {"00": np.zeros((9, 9, 3), np.uint8)})
    gallery.add({"01": images["01"], "02": np.zeros((9, 9, 3), np.uint8)})
    assert gallery._images
    gallery.remove(["01", "02"])
    assert not gallery._images


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])  # the first could be stretched to the right one
def test_stored_tokens_of_another_shape_are_refused(encoder, images, tmp_path, shape):
    small = Gallery.build(encoder, {name: images[name] for name in ("00", "01", "02")}, tokens=True)
    vectors = small._snapshot.segments[0].vectors
    path = tmp_path / "a.gallery"
    wrong = replace(vectors, tokens=np.ones((3, *shape), np.float16))
    write_gallery(path, wrong, encoder.bundle_id, encoder.bundle.path)
    with pytest.raises(GalleryFormatError, match="tokens") as caught:
        Gallery.open(path, encoder)
    assert "\n" not in str(caught.value)
