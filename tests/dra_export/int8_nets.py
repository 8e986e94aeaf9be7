"""Small nets in ONNX, written by hand, for the tests of INT8."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def net(
    nodes: list[onnx.NodeProto], weights: dict[str, NDArray[np.float32]], rest: tuple[int | str, ...] = (5,)
) -> onnx.ModelProto:
    """Return a checked graph from ``image`` (batch, 3, 8, 8) to ``image_features`` (batch, ...)."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    features = helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["batch", *rest])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", [image], [features], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def conv(source: str, out: str, weight: str, bias: str = "", **attributes: int | list[int]) -> onnx.NodeProto:
    """Return a convolution that keeps the size of 3 × 3 maps."""
    options = {"pads": [1, 1, 1, 1], **attributes}
    return helper.make_node("Conv", [source, weight, *([bias] if bias else [])], [out], out, **options)


def node(kind: str, sources: list[str], out: str) -> onnx.NodeProto:
    """Return a node without attributes."""
    return helper.make_node(kind, sources, [out], out)


def residual_net(width: int = 8, seed: int = 0) -> onnx.ModelProto:
    """Stem, a residual block, a depthwise convolution clamped at 6, and a pooled head that isn't quantisable."""
    generator = np.random.default_rng(seed)

    def weight(*shape: int) -> NDArray[np.float32]:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "w0": weight(width, 3, 3, 3),
        "b0": weight(width, 1)[:, 0],
        "w1": weight(width, width, 3, 3),
        "w2": weight(width, width, 3, 3),
        "b2": weight(width, 1)[:, 0],
        "w3": weight(width, 1, 3, 3),
        "head": weight(width, 5),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        conv("image", "c0", "w0", "b0"),
        node("Relu", ["c0"], "r0"),
        conv("r0", "c1", "w1"),
        node("Relu", ["c1"], "r1"),
        conv("r1", "c2", "w2", "b2"),
        node("Add", ["c2", "r0"], "sum"),
        node("Relu", ["sum"], "r2"),
        conv("r2", "c3", "w3", group=width),
        node("Clip", ["c3", "zero", "six"], "r3"),
        helper.make_node("ReduceMean", ["r3", "axes"], ["pooled"], "pooled", keepdims=0),
        node("MatMul", ["pooled", "head"], "image_features"),
    ]
    return net(nodes, weights)


def longer_net() -> onnx.ModelProto:
    """Add a convolution to `residual_net`, so that the depthwise one stands alone between two blocks."""
    model = residual_net()
    graph = model.graph
    weight = np.random.default_rng(2).standard_normal((8, 8, 3, 3)).astype(np.float32) / 8
    graph.initializer.append(numpy_helper.from_array(weight, "w4"))
    graph.node.insert(9, conv("r3", "c4", "w4"))
    graph.node.insert(10, node("Clip", ["c4", "zero", "six"], "r4"))
    graph.node[11].input[0] = "r4"
    return model


def run(
    model: onnx.ModelProto, image: NDArray[np.float32], outputs: list[str] | None = None
) -> list[NDArray[np.float32]]:
    """Run a model in ONNX Runtime as the runtime would; ``outputs`` may be any of its tensors."""
    if outputs:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        del model.graph.output[:]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: list[NDArray[np.float32]] = session.run(outputs, {"image": image})
    return result


def optimized_ops(model: onnx.ModelProto, folder: str) -> list[str]:
    """Return the kinds of nodes that ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = f"{folder}/optimized.onnx"
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
