"""A net in static INT8 against quantisation written down in numpy, and what ONNX Runtime makes of the graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from int8_nets import longer_net, optimized_ops, residual_net, run
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dra_export.int8.graph import blocks_of
from dra_export.int8.static import Ranges, quantized_tensors, static_int8

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def image() -> Array:
    return np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)


def ranges_on(model: onnx.ModelProto, image: Array) -> Ranges:
    names = quantized_tensors(model.graph)
    inner = [name for name in names if name != "image"]
    values = dict(zip(inner, run(model, image, inner), strict=True)) | {"image": image}
    return {name: (float(values[name].min()), float(values[name].max())) for name in names}


def everything(model: onnx.ModelProto) -> list[str]:
    return [output for block in blocks_of(model.graph) for output in block.outputs]


def rounded(x: Array, low: float, high: float) -> Array:
    """What 256 steps over a range that holds zero leave of values."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def rounded_weights(w: Array) -> Array:
    scale = np.abs(w).reshape(len(w), -1).max(axis=1).reshape(-1, 1, 1, 1) / 127
    return (np.rint(w / scale) * scale).astype(np.float32)


def test_int8_is_rounding_before_each_convolution_and_behind_each_activation(image: Array) -> None:
    model = residual_net()
    ranges = ranges_on(model, image)
    w = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}

    def conv(x: Array, weight: str, bias: str = "", groups: int = 1) -> Array:
        b = torch.from_numpy(w[bias]) if bias else None
        y: Array = F.conv2d(
            torch.from_numpy(x), torch.from_numpy(rounded_weights(w[weight])), b, padding=1, groups=groups
        ).numpy()
        return y

    def at(name: str, x: Array) -> Array:
        return rounded(x, *ranges[name])

    r0 = at("r0", np.maximum(conv(at("image", image), "w0", "b0"), 0))
    r1 = at("r1", np.maximum(conv(r0, "w1"), 0))
    r2 = at("r2", np.maximum(at("c2", conv(r1, "w2", "b2")) + r0, 0))
    r3 = at("r3", np.clip(conv(r2, "w3", groups=8), 0, 6))
    expected = r3.mean(axis=(2, 3)) @ w["head"]

    (found,) = run(static_int8(model, ranges, everything(model)), image)
    (exact,) = run(model, image)
    # Sums in another order fall on the other side of a step now and then
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected - exact).max()
    assert np.abs(expected - exact).max() > 1e-3


def test_onnxruntime_stays_in_int8_from_the_first_convolution_to_the_last(image: Array, tmp_path: Path) -> None:
    model = residual_net()
    int8 = static_int8(model, ranges_on(model, image), everything(model))
    onnx.checker.check_model(int8, full_check=True)
    kinds = optimized_ops(int8, str(tmp_path))
    assert kinds.count("QLinearConv") == 4
    assert kinds.count("QLinearAdd") == 1
    assert not {"Conv", "FusedConv", "Relu", "Clip", "Add"} & set(kinds)
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 1)


@pytest.mark.parametrize(("left", "convolutions"), [(0, 1), (1, 2), (2, 1), (3, 1)])
def test_a_block_left_out_stays_float32(left: int, convolutions: int, image: Array, tmp_path: Path) -> None:
    """ONNX Runtime would quantise the weights of a lone convolution between two pairs by itself."""
    model = longer_net()
    chosen = [o for i, block in enumerate(blocks_of(model.graph)) if i != left for o in block.outputs]
    kinds = optimized_ops(static_int8(model, ranges_on(model, image), chosen), str(tmp_path))
    assert kinds.count("QLinearConv") == 5 - convolutions
    assert kinds.count("Conv") + kinds.count("FusedConv") == convolutions


def test_nothing_chosen_changes_nothing(image: Array) -> None:
    model = residual_net()
    (found,), (expected,) = run(static_int8(model, {}, []), image), run(model, image)
    np.testing.assert_array_equal(found, expected)


def test_the_given_model_stays_as_it_was(image: Array) -> None:
    model = residual_net()
    before = model.SerializeToString(deterministic=True)
    static_int8(model, ranges_on(model, image), everything(model))
    assert model.SerializeToString(deterministic=True) == before


def test_a_dead_channel_with_a_bias_keeps_the_bias(image: Array) -> None:
    """Its weights ask for steps so small that the bias wouldn't fit into 32 bits of them."""
    model = residual_net()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    dead = onnx.numpy_helper.to_array(weights["w0"]).copy()
    dead[0] = 0
    dead[1] *= 1e-12
    weights["w0"].CopyFrom(onnx.numpy_helper.from_array(dead, "w0"))
    bias = onnx.numpy_helper.to_array(weights["b0"]).copy()
    bias[:2] = 2
    weights["b0"].CopyFrom(onnx.numpy_helper.from_array(bias, "b0"))
    (found,) = run(static_int8(model, ranges_on(model, image), everything(model)), image)
    (expected,) = run(model, image)
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_a_chain_that_ends_the_graph_keeps_the_name_of_its_output(image: Array) -> None:
    model = residual_net()
    del model.graph.node[-2:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("r3", TensorProto.FLOAT, ["batch", 8, 8, 8]))
    int8 = static_int8(model, ranges_on(model, image), everything(model))
    (found,), (expected,) = run(int8, image), run(model, image)
    assert [output.name for output in int8.graph.output] == ["r3"]
    assert np.abs(found - expected).max() < 0.1 * expected.max()
