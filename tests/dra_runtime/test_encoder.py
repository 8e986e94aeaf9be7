"""Vectors equal the reference's, however the inputs come."""

import threading

import numpy as np
import pytest
from bundle_factory import Reference
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dra_runtime
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError, BundleFormatError, ImageError, SelfCheckError, TextError, UsageError
from dra_runtime.selfcheck import selfcheck


@pytest.fixture(scope="module")
def encoder(bundle_path):
    return Encoder.open(bundle_path, threads=1)


@pytest.fixture(scope="module")
def model():
    return Reference()


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*rng.integers(10, 40, 2), 3), np.uint8) for _ in range(count)]


def image_reference(model, encoder, images):
    return model.image(np.stack([encoder.preprocess(Image.fromarray(image)) for image in images]))[0]


def text_reference(model, encoder, texts):
    return np.concatenate([model.text(encoder.tokenizer([text])) for text in texts])


def close(found, expected):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_what_it_says_of_itself(encoder, bundle_path):
    assert encoder.backend == "onnxruntime-cpu"
    assert encoder.dim == 8
    assert encoder.threads == 1
    assert encoder.bundle_id == encoder.bundle.manifest.bundle_id
    assert encoder.bundle.path == bundle_path


@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 40])
def test_images(encoder, model, count):
    images = pictures(count)
    close(encoder.encode_images(images), image_reference(model, encoder, images))


def test_every_kind_of_source_gives_the_same(encoder, tmp_path):
    array = pictures(1)[0]
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    expected = encoder.encode_images(array)
    assert expected.shape == (1, 8)
    for source in (path, str(path), path.read_bytes(), Image.open(path), array):
        assert np.array_equal(encoder.encode_images(source), expected)
        assert np.array_equal(encoder.encode_images([source]), expected)
    assert np.array_equal(encoder.encode_images(array[None]), expected)
    assert np.array_equal(encoder.encode_images(image for image in (array, path)), np.concatenate([expected] * 2))


def test_images_come_as_a_stream(encoder):
    taken = 0

    def stream():
        nonlocal taken
        for image in pictures(50):
            taken += 1
            yield image
        yield b"no image"

    with pytest.raises(ImageError):
        encoder.encode_images(stream())
    assert taken == 50


TEXTS = ["is shorter", "a", "in red, with long sleeves and a very wide collar", "word " * 100, "“ten” &amp; more"]


def test_texts_of_any_length_in_any_order(encoder, model):
    texts = [TEXTS[i % 5] + " x" * (i % 11) for i in range(150)]
    close(encoder.encode_texts(texts), text_reference(model, encoder, texts))
    close(encoder.encode_texts(text for text in texts[:3]), text_reference(model, encoder, texts[:3]))
    assert np.array_equal(encoder.encode_texts("is shorter"), encoder.encode_texts(["is shorter"]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab c", min_size=1, max_size=60).filter(lambda t: t.strip()), min_size=1, max_size=9))
def test_a_text_does_not_depend_on_its_neighbours(encoder, texts):
    together = encoder.encode_texts(texts)
    alone = np.concatenate([encoder.encode_texts(text) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_long_texts_do_not_lengthen_short_ones(encoder, monkeypatch):
    seen = []
    session = encoder.session("text_encoder")
    monkeypatch.setitem(
        encoder._sessions,
        "text_encoder",
        type("Spy", (), {"run": lambda _, inputs: seen.append(inputs["tokens"].shape) or session.run(inputs)})(),
    )
    encoder.encode_texts(["a"] * 70 + ["word " * 100] + ["in red"] * 3)
    assert seen == [(64, 3), (9, 4), (1, 77)]


def test_compose(encoder, model):
    rng = np.random.default_rng(0)
    for count in (1, 3, 300):
        image, text = rng.normal(size=(2, count, 8)).astype(np.float32)
        queries = encoder.compose(image, text)
        close(queries, model.compose(image, text))
        np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)
    assert np.array_equal(encoder.compose(image.astype(np.float64), text.tolist()), queries)


def test_whole_queries(encoder, model):
    images, texts = pictures(5), TEXTS
    expected = model.compose(image_reference(model, encoder, images), text_reference(model, encoder, texts))
    close(encoder.encode_queries(images, texts), expected)
    close(encoder.encode_queries(images[0], texts[0]), expected[:1])
    with pytest.raises(UsageError, match="pairs"):
        encoder.encode_queries(images, texts[:4])


def test_the_whole_query_graph_agrees(encoder):
    images = pictures(3)
    pixels = np.stack([encoder.preprocess(Image.fromarray(image)) for image in images])
    inputs = {"image": pixels, "tokens": encoder.tokenizer(TEXTS[:3])}
    np.testing.assert_allclose(
        encoder.session("query").run(inputs)["query"], encoder.encode_queries(images, TEXTS[:3]), atol=1e-5
    )


def test_nothing_gives_nothing(encoder):
    assert encoder.encode_images([]).shape == (0, 8)
    assert encoder.encode_texts([]).shape == (0, 8)
    assert encoder.compose(np.empty((0, 8)), np.empty((0, 8))).shape == (0, 8)


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000", "\x00\x1b", None, 3, b"in red", "x" * 10_001])
def test_unusable_texts(encoder, text):
    with pytest.raises(TextError) as caught:
        encoder.encode_texts(["fine", text])
    assert "text 1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "features",
    [
        np.ones(8),
        np.ones((2, 9)),
        np.ones((1, 2, 8)),
        np.full((1, 8), np.nan),
        np.full((1, 8), 1e300),
        np.ones((1, 8), complex),
        [["a"] * 8],
        [[1.0] * 8, [1.0]],
        None,
    ],
    ids=range(9),
)
def test_unusable_features(encoder, features):
    for arguments in ((features, np.ones((1, 8))), (np.ones((1, 8)), features)):
        with pytest.raises(UsageError) as caught:
            encoder.compose(*arguments)
        assert "\n" not in str(caught.value)


def test_other_misuse(encoder):
    for call in (lambda: encoder.encode_images(7), lambda: encoder.encode_texts(7), lambda: encoder.session("decoder")):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(ImageError):
        encoder.encode_images([None])


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda", "tensorrt-rtx", "cuda", ""])
def test_an_absent_backend_is_an_error(bundle_path, backend):
    with pytest.raises(BackendError, match="onnxruntime-cpu"):
        Encoder.open(bundle_path, backend)


def test_without_onnxruntime_the_message_says_how_to_install_it(bundle_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    for backend in ("auto", "onnxruntime-cpu"):
        with pytest.raises(BackendError, match=r'pip install "dra-toolkit\[cpu\]"'):
            Encoder.open(bundle_path, backend)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 5000])
def test_threads_out_of_range(bundle_path, threads):
    with pytest.raises(UsageError, match="threads"):
        Encoder.open(bundle_path, threads=threads)


def test_shared_between_threads(bundle_path):
    shared = Encoder.open(bundle_path, threads=1)  # its sessions are opened by the threads
    images, texts = pictures(6), [*TEXTS, "in blue"]
    expected = Encoder.open(bundle_path, threads=1).encode_queries(images, texts)
    results = [None] * 8

    def work(number):
        for _ in range(5):
            results[number] = shared.encode_queries(images, texts)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, expected) for result in results)


def test_a_graph_is_opened_once(bundle_path, monkeypatch):
    import time

    from dra_runtime.backends import onnxruntime_cpu as module

    opened, really_open = [], module.open_onnxruntime_cpu

    def slow(path, *rest):
        opened.append(path.name)
        time.sleep(0.05)
        return really_open(path, *rest)

    monkeypatch.setattr(module, "open_onnxruntime_cpu", slow)
    shared = Encoder.open(bundle_path, threads=1)
    threads = [threading.Thread(target=shared.encode_texts, args=("a",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["text_encoder.onnx"]


def test_a_failing_backend_is_one_line(encoder):
    with pytest.raises(BackendError) as caught:
        encoder.session("text_encoder").run({"tokens": np.zeros((1, 2), np.int64)})
    assert "\n" not in str(caught.value)


def test_selfcheck_passes_and_fails(bundle_path, other_bundle_path, bundle_copy):
    for path in (bundle_path, other_bundle_path):
        assert selfcheck(Encoder.open(path, check=True)).passed
    assert set(selfcheck(Encoder.open(bundle_path)).parts) == {
        *("image_features", "text_features", "queries", "relation_features")
    }
    from bundle_factory import reseal

    with np.load(bundle_copy / "selftest.npz") as archive:
        good = {name: archive[name] for name in archive.files}
    rotated = np.roll(good["queries"], 1, axis=1)
    for changes, name in (
        ({"queries": rotated}, "queries"),
        ({"relation_features": -good["relation_features"]}, "relation_features"),
        ({"text_features": np.zeros_like(good["text_features"])}, "text_features"),
        ({"tokens": good["tokens"] + 1}, "tokenizes"),
        ({"texts": np.array(["is shorter", "word " * 40, "b", "a"])}, "tokenizes"),
        ({"images": good["images"][:, ::-1]}, "image_features"),
    ):
        np.savez(bundle_copy / "selftest.npz", **(good | changes))
        reseal(bundle_copy)
        assert not selfcheck(Encoder.open(bundle_copy)).passed
        with pytest.raises(SelfCheckError, match=name) as caught:
            Encoder.open(bundle_copy, check=True)
        assert "\n" not in str(caught.value)


def test_a_bundle_that_is_none(tmp_path):
    with pytest.raises(BundleFormatError):
        Encoder.open(tmp_path)


def test_the_public_names():
    assert dra_runtime.__all__ == [
        "BackendError",
        "Batcher",
        "Bundle",
        "BundleError",
        "BundleFormatError",
        "BundleIntegrityError",
        "CheckpointError",
        "DatasetError",
        "DeadlineError",
        "DraError",
        "DriftReport",
        "Encoder",
        "Gallery",
        "GalleryError",
        "GalleryFormatError",
        "GalleryMismatchError",
        "GpuOptions",
        "Hit",
        "ImageError",
        "IndexingReport",
        "OverloadedError",
        "SelfCheckError",
        "ServiceError",
        "TextError",
        "UnknownIdError",
        "UsageError",
        "__version__",
        "adopt_bundle",
        "drift",
        "index_folder",
    ]
    assert all(hasattr(dra_runtime, name) for name in dra_runtime.__all__)
