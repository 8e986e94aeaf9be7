"""PyTorch: eager as its users run it today, in half, compiled, and as CLIP4Cir's demo calls it."""

import numpy as np
import open_clip
import pytest
import torch

from dra_bench.contenders.clip4cir_demo import clip4cir_demo
from dra_bench.contenders.pytorch import channels_last_towers, compiled_towers, half_towers, pytorch_towers
from dra_train.backbones import model_config, untrained_model

TEXTS = ["in red", "is shorter with long sleeves and a darker blue collar"]


@pytest.fixture(scope="module")
def model():
    return untrained_model(model_config("tiny-resnet"))


@pytest.fixture
def pixels(model):
    size = model.preprocess.image_size
    return np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)


def test_texts_are_open_clips_own_at_77_tokens(model):
    towers = pytorch_towers(model)
    assert towers.text_tokens(TEXTS) == 77
    with torch.inference_mode():
        expected = model.text(open_clip.tokenize(TEXTS)).numpy()
    np.testing.assert_array_equal(towers.text(TEXTS), expected)


def test_cut_texts_are_shorter_and_mean_the_same(model):
    cut = pytorch_towers(model, cut=True)
    assert cut.text_tokens(TEXTS) == 12
    assert cut.text_tokens(TEXTS[:1]) == 4
    np.testing.assert_allclose(cut.text(TEXTS), pytorch_towers(model).text(TEXTS), atol=1e-5)


def test_whole_queries_are_made_of_their_parts(model, pixels):
    towers = pytorch_towers(model)
    parts = towers.compose(towers.image(pixels), towers.text(TEXTS))
    np.testing.assert_allclose(towers.query(pixels, TEXTS), parts, atol=1e-6)
    np.testing.assert_allclose(towers.query_by_id(towers.image(pixels), TEXTS), parts, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(parts, axis=1), 1, atol=1e-6)


def test_vectors_leave_as_numpy_float32(model, pixels):
    towers = pytorch_towers(model)
    for vectors in (towers.image(pixels), towers.text(TEXTS), towers.query(pixels, TEXTS)):
        assert isinstance(vectors, np.ndarray)
        assert vectors.dtype == np.float32
        assert vectors.shape == (2, 32)


def test_images_are_the_checkpoints_own_where_all_stages_count():
    staged = untrained_model(model_config("tiny-resnet", image_stages="all"))
    size = staged.preprocess.image_size
    image = np.random.default_rng(0).standard_normal((2, 3, size, size), dtype=np.float32)
    with torch.no_grad():
        expected, _ = staged.encode_image(torch.from_numpy(image))
    np.testing.assert_allclose(pytorch_towers(staged).image(image), expected.numpy(), atol=1e-5)


def test_channels_last_is_the_same_model_in_another_layout(model, pixels):
    turned = channels_last_towers(model)
    assert turned.name == "pytorch-eager channels-last"
    convolution = next(m for m in turned.model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    original = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3))
    assert original.weight.is_contiguous()
    np.testing.assert_allclose(turned.query(pixels, TEXTS), pytorch_towers(model).query(pixels, TEXTS), atol=1e-5)


def test_half_is_the_whole_model_in_bfloat16_and_leaves_as_float32(model, pixels):
    half = half_towers(model, torch.device("cpu"))
    assert half.precision == "bf16"
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    vectors, expected = half.query(pixels, TEXTS), pytorch_towers(model).query(pixels, TEXTS)
    assert vectors.dtype == np.float32
    assert not np.array_equal(vectors, expected)
    np.testing.assert_allclose(np.sum(vectors * expected, axis=1), 1, atol=0.01)


def test_clip4cirs_demo_pads_texts_and_records_autograd_of_the_image_only(model, pixels):
    demo = clip4cir_demo(model, torch.device("cpu"))
    seen = []
    hooks = [
        part.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0].shape[1], torch.is_grad_enabled())))
        for part in (model.visual, model.text, model.combiner)
    ]
    vectors = demo.query(pixels, TEXTS)
    for hook in hooks:
        hook.remove()
    assert seen == [(3, True), (77, False), (32, False)]
    assert demo.text_tokens(TEXTS) == 77
    np.testing.assert_allclose(vectors, pytorch_towers(model).query(pixels, TEXTS), atol=1e-6)
    np.testing.assert_allclose(demo.query_by_id(demo.image(pixels), TEXTS), vectors, atol=1e-6)
    np.testing.assert_allclose(demo.compose(demo.image(pixels), demo.text(TEXTS)), vectors, atol=1e-6)


@pytest.mark.slow
def test_compiled_towers_answer_alike_and_compile_once_a_shape():
    staged = untrained_model(model_config("tiny-resnet", image_stages="all"))  # its hooks break the graph
    size = staged.preprocess.image_size
    images = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    compiled, eager = compiled_towers(staged, torch.device("cpu")), pytorch_towers(staged)
    expected = eager.query(images, TEXTS)
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    np.testing.assert_allclose(compiled.query(images, TEXTS), expected, atol=1e-5)
    after = counts["unique_graphs"]
    assert after >= before + 3
    np.testing.assert_allclose(compiled.query(images, TEXTS), expected, atol=1e-5)
    assert counts["unique_graphs"] == after


@pytest.mark.slow
def test_more_shapes_are_compiled_than_torch_would_by_itself(model):
    compiled, counts = compiled_towers(model, torch.device("cpu")), torch._dynamo.utils.counters["stats"]
    for batch in range(3, 13):  # 1 and 2 may be compiled already, for another model
        before, features = counts["unique_graphs"], np.ones((batch, 32), np.float32)
        compiled.compose(features, features)
        assert counts["unique_graphs"] == before + 1


@pytest.mark.gpu
def test_on_a_gpu_vectors_come_back_and_are_of_the_same_model(model, pixels):
    expected = pytorch_towers(model, device=torch.device("cpu")).query(pixels, TEXTS)
    for make in (pytorch_towers, half_towers, compiled_towers, clip4cir_demo):
        towers = make(model, device=torch.device("cuda"))
        for _ in range(3):  # the third replays a CUDA graph
            vectors = towers.query(pixels, TEXTS)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.sum(vectors * expected, axis=1), 1, atol=0.01)
