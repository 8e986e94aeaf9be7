"""Who takes part, who can't and why, and that all of them are the same model."""

import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from dra_bench.contenders import choose
from dra_bench.contenders.bundles import open_bundles
from dra_bench.contenders.choose import NAMES, line_up
from dra_bench.contenders.openvino_cpu import openvino_graphs
from dra_bench.contenders.plain_onnx import default_graphs, plain_graphs, plain_onnx
from dra_bench.contenders.pytorch import pytorch_towers
from dra_bench.latency import Workload
from dra_bench.latency_cells import agreeing
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError
from dra_train.checkpoint import load_checkpoint

TEXTS = ["in red", "is shorter with long sleeves and a darker blue collar"]
GPU = ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]


@pytest.fixture(scope="module")
def source(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoder(tiny_bundle):
    return Encoder.open(tiny_bundle, "onnxruntime-cpu", threads=1)


@pytest.fixture
def pixels(source):
    size = source.model.preprocess.image_size
    return np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("dra_runtime.engine_host.first_gpu", lambda: None)


def assert_same_model(contender, model, pixels):
    """Compare every call with PyTorch's, at batches 2 and 1."""
    pytorch = pytorch_towers(model)
    for rows in (slice(0, 2), slice(1, 2)):
        image, text = pytorch.image(pixels[rows]), pytorch.text(TEXTS[rows])
        query = pytorch.query(pixels[rows], TEXTS[rows])
        found = {
            "image": (contender.image(pixels[rows]), image),
            "text": (contender.text(TEXTS[rows]), text),
            "compose": (contender.compose(image, text), query),
            "query": (contender.query(pixels[rows], TEXTS[rows]), query),
            "query_by_id": (contender.query_by_id(image, TEXTS[rows]), query),
        }
        for part, (vectors, expected) in found.items():
            assert vectors.dtype == np.float32
            np.testing.assert_allclose(vectors, expected, atol=2e-5, err_msg=f"{contender.name} {part}")


def test_openvino_runs_the_bundles_graphs_with_texts_cut(source, encoder, pixels):
    openvino = openvino_graphs(encoder, threads=1)
    assert openvino.text_tokens(TEXTS) == 12
    assert openvino.text_tokens(TEXTS[:1]) == 4
    assert_same_model(openvino, source.model, pixels)


def test_openvino_takes_the_pixels_that_its_bundle_takes(tiny_uint8_bundle):
    encoder = Encoder.open(tiny_uint8_bundle, "onnxruntime-cpu", threads=1)
    openvino = openvino_graphs(encoder, threads=1)
    assert openvino.image_input == "uint8"
    size = encoder.preprocess.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), np.uint8)
    expected = encoder.encode_pixels(image)["image_features"]
    np.testing.assert_allclose(openvino.image(image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_plain_export_is_the_model_with_padded_texts_on_as_many_threads(source, pixels, tmp_path, monkeypatch):
    files = plain_onnx(source.model, tmp_path)
    asked = []
    open_session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **more: asked.append(options.intra_op_num_threads) or open_session(path, options, **more),
    )
    contenders = plain_graphs(source.model, files, threads=1), default_graphs(source.model, files)
    assert asked == [1, 1, 1, 0, 0, 0]  # 0: ONNX Runtime chooses
    for file in files.values():
        file.unlink()  # not read any more
    for contender in contenders:
        assert contender.text_tokens(TEXTS) == 77
        assert_same_model(contender, source.model, pixels)


def test_everybody_is_lined_up_or_named_with_the_reason(source, encoder, monkeypatch, no_gpu, tmp_path):
    def broken(*_):
        raise RuntimeError("no working C++ compiler\nfound: g++")

    monkeypatch.setattr(choose, "compiled_towers", broken)
    monkeypatch.setattr(choose, "plain_onnx", broken)
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it weren't installed
    steps = []
    found = line_up(source, [encoder], 1, None, tmp_path, steps.append)
    assert [c.name for c in found.contenders] == ["pytorch-eager", "pytorch-half", "clip4cir-demo", "onnxruntime-cpu"]
    reasons = {missing.backend: missing.reason for missing in found.unavailable}
    assert sorted([*(c.name for c in found.contenders), *reasons]) == sorted(NAMES)
    assert reasons["pytorch-compile"] == "RuntimeError: no working C++ compiler found: g++"
    assert reasons["onnxruntime-plain"] == reasons["onnxruntime-defaults"] == reasons["pytorch-compile"]
    assert "pip install openvino" in reasons["openvino"]
    assert all(reasons[name].startswith(f"{name} needs a CUDA GPU") for name in GPU)
    assert steps == list(NAMES[1:])
    assert all(c.about and c.precision in ("fp32", "bf16", "fp16") for c in found.contenders)


def test_those_that_are_asked_for_come_with_pytorch_in_the_tables_order(source, encoder, tmp_path):
    found = line_up(source, [encoder], 1, ["onnxruntime-cpu", "clip4cir-demo"], tmp_path)
    assert [c.name for c in found.contenders] == ["pytorch-eager", "clip4cir-demo", "onnxruntime-cpu"]
    assert found.unavailable == ()
    assert [c.name for c in line_up(source, [encoder], 1, ["pytorch-eager"], tmp_path).contenders] == ["pytorch-eager"]


def test_one_that_is_asked_for_and_cannot_be_used_is_an_error(source, encoder, no_gpu, tmp_path):
    with pytest.raises(BackendError, match=r"^tensorrt can't be used here: tensorrt needs a CUDA GPU"):
        line_up(source, [encoder], 1, ["pytorch-eager", "tensorrt"], tmp_path)
    with pytest.raises(BackendError, match=r"^'onnxruntime' is no contender; give one or more of pytorch-eager, "):
        line_up(source, [encoder], 1, ["onnxruntime"], tmp_path)
    with pytest.raises(BackendError, match=r"^openvino can't be used here: .*add one with --bundle$"):
        line_up(source, [], 1, ["openvino"], tmp_path)


def test_a_bundle_takes_part_in_every_backend_that_runs_it(encoder, monkeypatch):
    """On a machine with a GPU, an INT8 bundle stays out of it and says so; an encoder that fits is taken as it is."""
    int8 = Encoder.open(encoder.bundle.path, "onnxruntime-cpu", threads=1)
    int8._bundle = replace(int8.bundle, manifest=replace(int8.bundle.manifest, precision="int8"))
    opened = []

    def open_encoder(path, backend, threads, integrity):
        opened.append((backend, threads))
        if len(opened) == 1:
            raise BackendError(f"{path} is an INT8 bundle, made for CPUs; for {backend} use an fp16 or fp32 one")
        return encoder

    monkeypatch.setattr(Encoder, "open", open_encoder)
    found, missing = open_bundles([int8, encoder], "tensorrt", 1)
    assert [c.encoder for c in found] == [encoder]
    assert [(m.backend, m.reason) for m in missing] == [
        ("tensorrt int8", "bundle is an INT8 bundle, made for CPUs; for tensorrt use an fp16 or fp32 one")
    ]
    assert opened == [("tensorrt", 1), ("tensorrt", 1)]
    assert open_bundles([encoder], "onnxruntime-cpu", 1)[0][0].encoder is encoder
    assert len(opened) == 2
    open_bundles([encoder], "onnxruntime-cpu", 2)
    assert opened[2:] == [("onnxruntime-cpu", 2)]


def test_a_contender_whose_texts_are_wrong_is_refused_by_name(source, encoder):
    right = openvino_graphs(encoder, threads=1)
    wrong = replace(right, name="wrong-texts", text_encoder=lambda tokens: right.text_encoder(tokens)[:, ::-1].copy())
    images = tuple(Image.fromarray(image) for image in encoder.bundle.selftest()["images"][:1])
    work = Workload(images, encoder.preprocess, TEXTS[1])
    kept, cosines, refused = agreeing([pytorch_towers(source.model), right, wrong], work)
    assert [c.name for c in kept] == ["pytorch-eager", "openvino"]
    assert min(cosines["openvino"].values()) > 0.99999
    assert [missing.backend for missing in refused] == ["wrong-texts"]
    assert "wrong-texts: cosine" in refused[0].reason
