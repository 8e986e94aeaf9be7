"""Compute on a CPU what a half precision graph gives where half is real.

ONNX Runtime has hardly any half kernels for x86: it computes in float32 and drops the casts between nodes, and with
them every rounding and overflow. A graph that gives infinity on a GPU then looks faultless. So the graph on disk is
rewritten: its weights in float32 with their half values, and each half value rounded to half where it arises. That is
half storage with float32 accumulation, which is how GPUs compute it.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from dra_export.half.convert import types_of

_HALF, _FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def emulation_from_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that rounds to half wherever ``model`` holds a half value; inputs and outputs as there."""
    types = types_of(model)
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    graph = emulated.graph
    del graph.node[:], graph.value_info[:], graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.data_type == _HALF:
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
        graph.initializer.append(tensor)
    for source in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        _give_float(node)
        rounded = [name for name in source.output if name and types[name] == _HALF]
        for i, name in enumerate(source.output):
            if name in rounded:
                node.output[i] = f"{name}/exact"
        graph.node.append(node)
        for name in rounded:
            graph.node.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=_HALF))
            graph.node.append(helper.make_node("Cast", [f"{name}/rounded"], [name], to=_FLOAT))
    return emulated


def _give_float(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _HALF:
            attribute.i = _FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _HALF:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype("float32")))
