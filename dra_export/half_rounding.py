"""Rewrite a half graph so that a CPU computes what hardware with half arithmetic gives.

ONNX Runtime's CPU computes half nodes in float32 and takes the casts between them out again, at every optimization
level: a value beyond 65,504 passes on unharmed, and nothing is rounded but the weights. In a float32 graph, though, it
keeps a cast to half and back. So here every half value becomes a float32 one that is rounded to half where it is made.
A node's own sum stays float32, as tensor cores accumulate.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from dra_export.onnx_from_model import ExportError

# What only moves or selects values can't give one that isn't half already.
_MOVES = {
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Neg",
    "Relu", "Reshape", "Shape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def rounded_from_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that rounds each value that is half in ``model`` to half, beyond 65,504 to infinity.

    Inputs and outputs keep their names and must be of other types than half.

    Raises
    ------
    ExportError
        The graph has functions or subgraphs, half inputs or outputs, or types that can't be inferred.
    """
    half = half_values(model)
    if model.functions or any(a.type == onnx.AttributeProto.GRAPH for n in model.graph.node for a in n.attribute):
        raise ExportError("a graph with functions or subgraphs can't be rounded node by node; export it inlined")
    if outside := half & {v.name for v in (*model.graph.input, *model.graph.output)}:
        raise ExportError(f"{sorted(outside)[0]} is half; a bundle's graphs take and give float32")
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    graph = rounded.graph
    del graph.value_info[:], graph.node[:]
    for tensor in graph.initializer:
        _widen(tensor)
    for node in model.graph.node:
        graph.node.extend(_rounded_node(node, half))
    return rounded


def half_values(model: onnx.ModelProto) -> set[str]:
    """Return the names of a graph's half values: inputs, outputs, weights and all between them.

    ExportError when their types can't be inferred.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the graph's types can't be inferred: {' '.join(str(error).split())[:300]}") from error
    values = (*graph.input, *graph.output, *graph.value_info)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16} | {
        t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT16
    }


def _rounded_node(node: onnx.NodeProto, half: set[str]) -> list[onnx.NodeProto]:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    for attribute in result.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen(attribute.t)
        elif attribute.name == "to" and node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    if node.op_type in (*_MOVES, "Constant", "ConstantOfShape"):
        return [result]
    casts = []
    for i, name in enumerate(node.output):
        if name in half:
            result.output[i] = f"{name}/exact"
            casts += [
                helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=TensorProto.FLOAT16),
                helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT),
            ]
    return [result, *casts]


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
