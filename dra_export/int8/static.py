"""INT8 with fixed ranges: QuantizeLinear and DequantizeLinear around the convolutions of a tower.

Activations are uint8 with a zero point, weights int8 per output channel without one, biases int32. ONNX Runtime fuses
the pairs into integer kernels when it opens the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dra_export.int8.graph import FOLLOWERS, add_weights, fused_activations, quantizable_nodes, without_weights

Ranges = Mapping[str, tuple[float, float]]  #: smallest and largest value of a tensor, by name
# Between two pairs ONNX Runtime quantises the weights of these by itself, and coarsely: one scale for all channels. A
# float32 node in between must not look like that, so it reads its input through a Max of one tensor, which is a copy.
_QUANTIZED_UNASKED = ("Conv", "ConvTranspose", "Gemm")
_LEAST_SCALE = 1e-18  # of a tensor that is always zero; a product of two is still a normal number
_MOST_BIAS = 2**31 - 1


def quantized_tensors(graph: onnx.GraphProto) -> list[str]:
    """Return the tensors whose ranges `static_int8` needs, whichever of the nodes it is to quantise."""
    nodes = quantizable_nodes(graph)
    fused = fused_activations(graph, nodes)
    constants = {tensor.name for tensor in graph.initializer}
    names = []
    for node in nodes:
        names += [name for name in _values(node) if name not in constants and name not in fused]
        names += [node.output[0]] if node.output[0] not in fused else []
    return list(dict.fromkeys(names))


def static_int8(model: onnx.ModelProto, ranges: Ranges, chosen: Collection[str]) -> onnx.ModelProto:
    """Return a copy of ``model`` in which some nodes compute in INT8.

    Parameters
    ----------
    model
        A float32 graph.
    ranges
        Of every tensor that `quantized_tensors` names.
    chosen
        The first outputs of the nodes to quantise, out of `quantizable_nodes`; a node and the activation that it is
        fused with (`fused_activations`) are chosen together.
    """
    result = without_weights(model)
    graph = result.graph
    nodes = [node for node in quantizable_nodes(model.graph) if node.output[0] in chosen]
    fused = fused_activations(model.graph, nodes)
    clamped = set(fused.values())  # activations that go: the range of 8 bits clamps
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inside = {node.output[0] for node in nodes}
    made = inside - set(fused)
    taken = {name for node in nodes for name in _values(node) if name not in weights and name not in fused}

    scales = {name: _scale_and_zero(*ranges[name]) for name in (made | taken)}
    out: list[onnx.NodeProto] = []
    new: list[onnx.TensorProto] = []
    for name in (value.name for value in graph.input if value.name in scales):
        out += _pair(name, name, scales[name], new)
    for node in graph.node:
        name = node.output[0] if node.output else ""
        if name in clamped:
            continue
        if name not in inside:
            for i, value in enumerate(node.input):
                if value in made:  # what INT8 made is read behind its 8 bits by everybody
                    node.input[i] = f"{value}/wide" if node.op_type in _QUANTIZED_UNASKED else f"{value}/dq"
            out.append(node)
            for output in node.output:
                out += _pair(output, output, scales[output], new) if output in scales else []
            continue
        for i, value in enumerate(node.input):
            if value in scales:
                node.input[i] = f"{value}/dq"
        if node.op_type == "Conv":
            out += _quantize_weights(node, weights, scales[node.input[0].removesuffix("/dq")][0], new)
        out.append(node)
        end = fused.get(name, name)
        node.output[0] = f"{end}/float"
        out += _pair(end, f"{end}/float", scales[end], new)
    outputs = {value.name for value in graph.output}
    for name in sorted(made):
        if f"{name}/wide" in {value for node in out for value in node.input}:
            out.append(helper.make_node("Max", [f"{name}/dq"], [f"{name}/wide"], f"{name}/Max"))
    for name in sorted(made & outputs):
        out.append(helper.make_node("Identity", [f"{name}/dq"], [name], f"{name}/out"))
    del graph.node[:]
    graph.node.extend(out)
    add_weights(result, model, new)
    return result


def _values(node: onnx.NodeProto) -> list[str]:
    """Return a node's variable inputs."""
    return list(node.input if node.op_type in FOLLOWERS and node.op_type != "Clip" else node.input[:1])


def _scale_and_zero(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Spread 0..255 over a range widened to hold zero, which must be exact: padding is zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / 255, _LEAST_SCALE))
    return scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, 255))


def _pair(
    name: str, source: str, params: tuple[np.float32, np.uint8], new: list[onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Quantise ``source`` and read it back as ``name/dq``."""
    scale, zero = params
    new += [
        numpy_helper.from_array(np.array(scale), f"{name}/scale"),
        numpy_helper.from_array(np.array(zero), f"{name}/zero"),
    ]
    ends = [f"{name}/scale", f"{name}/zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *ends], [f"{name}/q"], f"{name}/QuantizeLinear"),
        helper.make_node("DequantizeLinear", [f"{name}/q", *ends], [f"{name}/dq"], f"{name}/DequantizeLinear"),
    ]


def _quantize_weights(
    node: onnx.NodeProto,
    weights: Mapping[str, NDArray[np.float32]],
    input_scale: np.float32,
    new: list[onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """Replace a convolution's weights, and its bias, by integers that are read back as floats."""
    base = node.output[0]
    weight = weights[node.input[1]]
    bias = weights[node.input[2]] if len(node.input) > 2 else None
    scale = np.abs(weight).reshape(len(weight), -1).max(axis=1) / np.float32(127)
    if bias is not None:  # as many steps as the bias needs must fit into 32 bits
        scale = np.maximum(scale, np.abs(bias) / (input_scale * np.float32(_MOST_BIAS // 2)))
    scale = np.maximum(scale, np.float32(_LEAST_SCALE)).astype(np.float32)
    shape = (-1, *[1] * (weight.ndim - 1))
    integers = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    nodes = [_constant(f"{base}/weight", integers, scale, new)]
    node.input[1] = f"{base}/weight/dq"
    if bias is not None:
        steps = (scale * input_scale).astype(np.float32)
        rounded = np.clip(np.rint(bias.astype(np.float64) / steps), -_MOST_BIAS, _MOST_BIAS).astype(np.int32)
        nodes.append(_constant(f"{base}/bias", rounded, steps, new))
        node.input[2] = f"{base}/bias/dq"
    return nodes


def _constant(
    name: str, integers: NDArray[np.int8] | NDArray[np.int32], scale: NDArray[np.float32], new: list[onnx.TensorProto]
) -> onnx.NodeProto:
    new += [
        numpy_helper.from_array(integers, name),
        numpy_helper.from_array(scale, f"{name}/scale"),
        numpy_helper.from_array(np.zeros(len(scale), integers.dtype), f"{name}/zero"),
    ]
    ends = [name, f"{name}/scale", f"{name}/zero"]
    return helper.make_node("DequantizeLinear", ends, [f"{name}/dq"], f"{name}/DequantizeLinear", axis=0)
