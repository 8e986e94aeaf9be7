"""PyTorch as its users run it today."""

import numpy as np
import open_clip
import pytest
import torch

from dra_bench.backends import channels_last_towers, pytorch_towers
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
