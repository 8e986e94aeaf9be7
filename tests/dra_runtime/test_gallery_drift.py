"""Drift: the verdict for the same bundle, one near it, one far from it, and another width."""

import json
import math
import shutil

import numpy as np
import onnx
import pytest
from bundle_factory import reseal
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image

from dra_runtime.cli import main
from dra_runtime.encoder import Encoder
from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_drift import adopt_bundle, drift
from dra_runtime.gallery_file import write_gallery
from dra_runtime.indexing import index_folder
from dra_runtime.vectors import vectors_from_features

COUNT = 40


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path / f"{i:02}.png")
    return path


@pytest.fixture(scope="module")
def gallery(bundle_path, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "shop.gallery"
    index_folder(Encoder.open(bundle_path, integrity="size"), folder, path)
    return path


def changed_bundle(bundle_path, target, change, weights="image_weights"):
    """Copy a bundle and change the weights of its image encoder: the query graph is left as it was."""
    shutil.copytree(bundle_path, target)
    path = target / "image_encoder.onnx"
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name == weights:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(proto, path)
    reseal(target)
    return target


def turned(angle):
    """Return a change that turns every vector by the angle: the features' pairs of values as complex numbers."""

    def change(weights):
        a, b = weights[:, 0::2], weights[:, 1::2]
        result = np.empty_like(weights)
        result[:, 0::2], result[:, 1::2] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
        return result.astype(np.float32)

    return change


def test_the_same_bundle(gallery, bundle_path, folder):
    found = drift(gallery, Encoder.open(bundle_path, integrity="size"), folder)
    assert (found.verdict, found.keep) == ("same", True)
    assert found.gallery_bundle_id == found.bundle_id
    assert (found.sampled, found.compared, found.missing, found.unreadable) == (COUNT, COUNT, 0, 0)
    assert found.cosine["min"] > 1 - 1e-6
    assert found.norm_change < 1e-5
    assert (found.top1_same, found.top10_overlap) == (100, 100)


@pytest.mark.parametrize("cosine", [0.999995, 0.9995, 0.99])
def test_vectors_turned_by_a_known_angle(gallery, bundle_path, folder, tmp_path, cosine):
    """Every vector turned by one angle has that cosine with what is stored."""
    bundle = changed_bundle(bundle_path, tmp_path / "turned", turned(math.acos(cosine)))
    found = drift(gallery, Encoder.open(bundle, integrity="size"), folder)
    for value in found.cosine.values():
        assert value == pytest.approx(cosine, abs=2e-7)
    assert found.norm_change < 1e-5
    if cosine == 0.999995:
        assert found.verdict == "same"
    elif cosine == 0.99:
        assert (found.verdict, found.keep) == ("reindex", False)
        assert "0.990000, below 0.999" in found.reason
    else:  # by the answers: all, or nearly all, of them must stay
        assert found.verdict == ("close" if found.top10_overlap >= 99 else "reindex")


def test_longer_vectors_change_queries_by_id(gallery, bundle_path, folder, tmp_path):
    longer = changed_bundle(bundle_path, tmp_path / "longer", lambda weights: weights * np.float32(3))
    found = drift(gallery, Encoder.open(longer, integrity="size"), folder)
    assert found.cosine["min"] > 1 - 1e-6
    assert found.norm_change == pytest.approx(2, rel=1e-5)
    assert found.top10_overlap < 99
    assert found.verdict == "reindex"
    slightly = changed_bundle(bundle_path, tmp_path / "slightly", lambda weights: weights * np.float32(1.002))
    found = drift(gallery, Encoder.open(slightly, integrity="size"), folder)
    assert found.norm_change == pytest.approx(0.002, rel=1e-2)
    assert found.verdict == "close"


def test_the_overlap_equals_that_of_two_galleries(gallery, bundle_path, folder, tmp_path):
    """Against plain searches in the kept gallery and one that was indexed again, with the same texts."""
    encoder = Encoder.open(bundle_path, integrity="size")
    other = Encoder.open(changed_bundle(bundle_path, tmp_path / "turned", turned(0.3)), integrity="size")
    found = drift(gallery, other, folder)
    texts = [str(text) for text in other.bundle.selftest()["texts"]]
    ids = [f"{i:02}" for i in range(COUNT)]
    kept = Gallery.from_features(other, ids, Gallery.open(gallery, encoder).features(ids))
    again = Gallery.build(other, folder)
    first = common = 0
    for i, name in enumerate(ids):
        a, b = ([hit.id for hit in g.search(id=name, text=texts[i % len(texts)], k=10)] for g in (kept, again))
        first += a[0] == b[0]
        common += len(set(a) & set(b))
    assert found.top1_same == pytest.approx(100 * first / COUNT)
    assert found.top10_overlap == pytest.approx(10 * common / COUNT)
    assert 0 < found.top10_overlap < 100


def test_another_model(gallery, other_bundle_path, folder):
    found = drift(gallery, Encoder.open(other_bundle_path, integrity="size"), folder)
    assert found.verdict == "reindex"
    assert found.cosine["p50"] < 0.9


def test_a_few_changed_files_are_suspected(gallery, bundle_path, folder, tmp_path):
    images = shutil.copytree(folder, tmp_path / "images")
    # The mean of the colours decides in this model, so an image of another colour is far away
    Image.new("RGB", (12, 12), (255, 0, 0)).save(images / "07.png")
    (images / "08.png").unlink()
    (images / "09.png").write_bytes(b"no image")
    found = drift(gallery, Encoder.open(bundle_path, integrity="size"), images)
    assert found.verdict == "reindex"
    assert "files were changed" in found.reason
    assert found.worst[0][0] == "07"
    assert (found.sampled, found.compared, found.missing, found.unreadable) == (COUNT, COUNT - 2, 1, 1)


def test_another_width_needs_no_image(bundle_path, tmp_path):
    path = tmp_path / "narrow.gallery"
    write_gallery(path, vectors_from_features(["a"], np.ones((1, 3), np.float32)), "0" * 64, tmp_path / "bundle")
    found = drift(path, Encoder.open(bundle_path, integrity="size"), tmp_path / "not there")
    assert (found.verdict, found.gallery_dim, found.dim, found.cosine) == ("reindex", 3, 8, None)


def test_a_sample_is_seeded(gallery, bundle_path, folder):
    encoder = Encoder.open(bundle_path, integrity="size")
    one, again, other = (drift(gallery, encoder, folder, sample=5, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.compared == 5
    assert {name for name, _ in one.worst} != {name for name, _ in other.worst}


def test_unusable_input(gallery, bundle_path, folder, tmp_path):
    encoder = Encoder.open(bundle_path, integrity="size")
    with pytest.raises(UsageError, match="sample is 1"):
        drift(gallery, encoder, folder, sample=1)
    Image.new("RGB", (4, 4)).save(tmp_path / "stranger.png")
    with pytest.raises(GalleryError, match="0 of the 40 sampled images are there") as caught:
        drift(gallery, encoder, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_command(gallery, bundle_path, other_bundle_path, folder, tmp_path):
    result = run("drift", gallery, bundle_path, "--images", folder)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert result.stdout.splitlines()[-1].startswith("keep: the same vectors")
    assert f"{COUNT} of {COUNT} sampled compared" in result.stdout
    failed = run("drift", gallery, other_bundle_path, "--images", folder, "--json", "--sample", 20)
    assert (failed.exit_code, failed.stderr) == (1, "")
    answer = json.loads(failed.stdout)
    assert (answer["verdict"], answer["keep"], answer["compared"]) == ("reindex", False, 20)
    for arguments, word in (
        ((tmp_path / "missing", bundle_path, "--images", folder), "no such file"),
        ((gallery, tmp_path / "missing", "--images", folder), "no such folder"),
        ((gallery, bundle_path, "--images", tmp_path / "missing"), "no such folder"),
        ((gallery, bundle_path, "--images", folder, "--sample", 1), "--sample"),
    ):
        refused = run("drift", *arguments)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert word in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_a_seed_below_zero_is_one_line(gallery, bundle_path, folder):
    with pytest.raises(UsageError, match="seed is -1"):
        drift(gallery, Encoder.open(bundle_path, integrity="size"), folder, seed=-1)
    done = run("drift", gallery, bundle_path, "--seed", "-1")
    assert done.exit_code == 2
    assert "--seed" in done.stderr


@pytest.fixture(scope="module")
def with_tokens(bundle_path, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "tokens.gallery"
    index_folder(Encoder.open(bundle_path, integrity="size"), folder, path, tokens=True)
    return path


@pytest.mark.parametrize("cosine", [0.999995, 0.9995, 0.99])
def test_stored_tokens_count_too(with_tokens, bundle_path, folder, tmp_path, cosine):
    """A vision compositor that was trained anew leaves the features as they are."""
    assert drift(with_tokens, Encoder.open(bundle_path, integrity="size"), folder).token_cosine > 1 - 1e-6
    bundle = changed_bundle(bundle_path, tmp_path / "turned", turned(math.acos(cosine)), "token_weights")
    found = drift(with_tokens, Encoder.open(bundle, integrity="size"), folder)
    assert found.cosine["min"] > 1 - 1e-6
    assert found.token_cosine == pytest.approx(cosine, abs=3e-5 if cosine < 0.9999 else 1e-6)  # stored in float16
    assert found.verdict == {0.999995: "same", 0.9995: "close", 0.99: "reindex"}[cosine]
    if cosine == 0.99:
        assert "tokens" in found.reason
        assert "below 0.999" in found.reason
        result = run("drift", with_tokens, bundle, "--images", folder, "--adopt")
        assert result.exit_code == 1
        assert "tokens" in result.stdout
        assert "is now" not in result.stdout


def test_tokens_of_another_shape_need_no_image(with_tokens, other_bundle_path, tmp_path):
    other = Encoder.open(other_bundle_path, integrity="size")
    found = drift(with_tokens, other, tmp_path / "not there")
    assert (found.verdict, found.cosine, found.token_cosine) == ("reindex", None, None)
    assert "tokens" in found.reason
    before = with_tokens.read_bytes()
    with pytest.raises(GalleryError, match="tokens"):
        adopt_bundle(with_tokens, other)
    assert with_tokens.read_bytes() == before
