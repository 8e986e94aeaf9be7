"""Arithmetic and bytes of graphs, against counts by hand and against PyTorch's own counter."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dra_bench.graph_cost import Cost, graph_cost
from dra_runtime.bundle import Bundle
from dra_runtime.errors import UsageError


def model(tmp_path, nodes, inputs, output, weights, **types):
    """Write a graph; ``inputs`` and ``output`` are names with shapes, ``weights`` arrays by name."""
    kinds = {name: types.get(name, TensorProto.FLOAT) for name in (*inputs, *output)}
    graph = helper.make_graph(
        [helper.make_node(kind, sources, [target], **attributes) for kind, sources, target, attributes in nodes],
        "test",
        [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in output.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def floats(*shape):
    return np.ones(shape, np.float32)


def test_a_grouped_convolution(tmp_path):
    node = ("Conv", ["x", "w", "b"], "y", {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]})
    weights = {"w": floats(6, 2, 3, 3), "b": floats(6)}
    path = model(tmp_path, [node], {"x": ["batch", 4, 8, 8]}, {"y": ["batch", 6, 4, 4]}, weights)
    cost = graph_cost(path, 5)
    # 5 x 6 x 4 x 4 values, each the sum of 2 channels of its group times 3 x 3
    assert cost.float_ops == 2 * (5 * 6 * 4 * 4) * (2 * 9)
    assert cost.int8_ops == 0
    assert cost.bytes == 4 * (6 * 2 * 9 + 6 + 5 * 4 * 64 + 5 * 6 * 16)


def test_products_of_two_matrices(tmp_path):
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Gemm", ["h", "v"], "y", {"transB": 1})]
    path = model(tmp_path, nodes, {"x": ["batch", 7]}, {"y": ["batch", 3]}, {"w": floats(7, 5), "v": floats(3, 5)})
    assert graph_cost(path, 4) == Cost(2 * 4 * 5 * 7 + 2 * 4 * 3 * 5, 0, 4 * (35 + 15 + 4 * 7 + 4 * 3))


def test_a_transposed_left_operand(tmp_path):
    node = ("Gemm", ["w", "x"], "y", {"transA": 1})
    path = model(tmp_path, [node], {"x": [11, "batch"]}, {"y": [3, "batch"]}, {"w": floats(11, 3)})
    assert graph_cost(path, 2).float_ops == 2 * 3 * 2 * 11


def test_of_a_table_only_the_rows_that_are_read_count(tmp_path):
    nodes = [("Gather", ["table", "tokens"], "rows", {}), ("MatMul", ["rows", "w"], "y", {})]
    inputs, output = {"tokens": ["batch", "length"]}, {"y": ["batch", "length", 2]}
    weights = {"table": floats(1000, 8), "w": floats(8, 2)}
    path = model(tmp_path, nodes, inputs, output, weights, tokens=TensorProto.INT32)
    cost = graph_cost(path, 3, 5)
    assert cost.float_ops == 2 * (3 * 5 * 2) * 8
    assert cost.bytes == 4 * (3 * 5 * 8 + 8 * 2 + 3 * 5 + 3 * 5 * 2)
    assert graph_cost(path, 3, 5000).bytes == 4 * (1000 * 8 + 16 + 3 * 5000 + 3 * 5000 * 2)  # not more than all rows


def test_int8_counts_apart(tmp_path):
    scale, zero = np.float32(0.1), np.uint8(128)
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], "q", {}),
        ("DequantizeLinear", ["q", "s", "z"], "d", {}),
        ("DequantizeLinear", ["w", "s", "wz"], "e", {}),
        ("MatMul", ["d", "e"], "h", {}),
        ("MatMul", ["h", "v"], "y", {}),
    ]
    weights = {
        **{"s": np.array(scale), "z": np.array(zero), "wz": np.array(0, np.int8)},
        **{"w": np.ones((6, 5), np.int8), "v": floats(5, 2)},
    }
    path = model(tmp_path, nodes, {"x": ["batch", 6]}, {"y": ["batch", 2]}, weights)
    cost = graph_cost(path, 3)
    assert (cost.float_ops, cost.int8_ops) == (2 * 3 * 2 * 5, 2 * 3 * 5 * 6)
    assert cost.bytes == 4 * (1 + 10 + 3 * 6 + 3 * 2) + 30 + 2


def test_arithmetic_that_is_not_counted_is_an_error(tmp_path):
    node = ("Einsum", ["x", "w"], "y", {"equation": "ij,jk->ik"})
    path = model(tmp_path, [node], {"x": ["batch", 7]}, {"y": ["batch", 5]}, {"w": floats(7, 5)})
    with pytest.raises(UsageError, match=r"graph\.onnx holds Einsum, whose arithmetic isn't counted"):
        graph_cost(path, 1)


def test_costs_add_up():
    assert Cost(1, 2, 3) + Cost(10, 20, 30) * 2 == Cost(21, 42, 63)


def counted(call):
    """Let PyTorch count the operations of a call; returns them by operator."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}


def test_a_bundle_has_the_operations_that_pytorch_counts(monkeypatch, tiny_bundle, tiny_checkpoint):
    import torch

    from dra_train.checkpoint import load_checkpoint

    network = load_checkpoint(tiny_checkpoint).model
    bundle = Bundle.open(tiny_bundle)
    size = bundle.manifest.preprocess.image_size
    features = torch.ones(3, bundle.manifest.dim)
    compose = counted(lambda: network.compose(features, features))
    assert graph_cost(bundle.file("compositor.onnx"), 3).float_ops == sum(compose.values())
    # The exporter pools attention at one place alone, so that only the convolutions are as many
    image = counted(lambda: network.image_trunk(torch.ones(2, 3, size, size)))
    graph = bundle.file("image_encoder.onnx")
    assert graph_cost(graph, 2).float_ops < sum(image.values())
    monkeypatch.setattr("dra_bench.graph_cost.FLOAT", ("Conv",))
    assert graph_cost.__wrapped__(graph, 2).float_ops == image["aten.convolution"]
