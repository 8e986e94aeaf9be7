"""INT8 with ranges found while running: the weights of matrix products are int8, their inputs become uint8 on the way.

For what is bound by reading its weights at batch 1, such as a text tower. ONNX Runtime fuses each group of nodes into
one kernel when it opens the graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dra_export.int8.graph import add_weights, without_weights


def dynamic_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` whose products with constant matrices (MatMul, Gemm) compute in INT8.

    A weight has one scale a column, an input one scale and zero point for the whole tensor: what shares a batch with a
    row has a small influence on it. Biases stay float32.
    """
    result = without_weights(model)
    graph = result.graph
    matrices = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    nodes: list[onnx.NodeProto] = []
    new: dict[str, onnx.TensorProto] = {}
    quantized: set[str] = set()
    for node in graph.node:
        weight = _weight(node, matrices)
        if weight is None:
            nodes.append(node)
            continue
        source = node.input[0]
        if source not in quantized:  # several products, such as query, key and value, share one
            quantized.add(source)
            ends = [f"{source}/q", f"{source}/scale", f"{source}/zero"]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [source], ends, f"{source}/DynamicQuantizeLinear"))
        nodes += _product(node, weight, new)
    del graph.node[:]
    graph.node.extend(nodes)
    add_weights(result, model, list(new.values()))
    return result


def _weight(node: onnx.NodeProto, matrices: dict[str, onnx.TensorProto]) -> NDArray[np.float32] | None:
    """Return the constant matrix (K, N) that a node multiplies with, or None."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in matrices or node.input[0] in matrices:
        return None
    if matrices[node.input[1]].data_type != TensorProto.FLOAT:
        return None
    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if options.get("transA", 0) or options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0:
        return None
    weight = numpy_helper.to_array(matrices[node.input[1]])
    return weight.T if options.get("transB", 0) else weight


def _product(
    node: onnx.NodeProto, weight: NDArray[np.float32], new: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    source, name, out = node.input[0], node.output[0], node.output[0]
    scale = np.maximum(np.abs(weight).max(axis=0) / np.float32(127), np.finfo(np.float32).tiny).astype(np.float32)
    integers = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    for key, values in (
        (f"{name}/weight", np.ascontiguousarray(integers)),
        (f"{name}/weight/scale", scale),
        (f"{name}/weight/zero", np.zeros(len(scale), np.int8)),
    ):
        new[key] = numpy_helper.from_array(values, key)
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    product = f"{name}/product" if bias else out
    nodes = [
        helper.make_node("Mul", [f"{source}/scale", f"{name}/weight/scale"], [f"{name}/scales"], f"{name}/scales"),
        helper.make_node(
            "MatMulInteger",
            [f"{source}/q", f"{name}/weight", f"{source}/zero", f"{name}/weight/zero"],
            [f"{name}/integers"],
            f"{name}/MatMulInteger",
        ),
        helper.make_node("Cast", [f"{name}/integers"], [f"{name}/floats"], f"{name}/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}/floats", f"{name}/scales"], [product], f"{name}/Mul"),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [product, bias], [out], f"{name}/Add"))
    return nodes
