"""Count what a graph has to do: its arithmetic and the bytes that must cross the memory at least once.

The rules:

- A multiply-add is two operations. Counted are convolutions and matrix products (Conv, Gemm, MatMul and their INT8
  forms). Everything elementwise is left out: norms, activations, softmax, pooling, quantisation. It is a few percent of
  the arithmetic, and backends fuse much of it.
- A product is INT8 where both of its operands are 8-bit numbers, or come from a DequantizeLinear each.
- Bytes: weights as the file holds them, each once, and the graph's inputs and outputs. Of a table that rows are looked
  up in (the token embeddings) the rows that are read. What lies between two layers is left out: it may stay in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx

from dra_runtime.errors import UsageError

FLOAT = ("Conv", "Gemm", "MatMul")
INT8 = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
UNCOUNTED = ("Attention", "ConvTranspose", "DeformConv", "Einsum", "GRU", "LSTM", "RNN", "FusedMatMul", "FusedConv")
LOOKED_UP = ("Gather", "GatherND", "GatherElements", "Slice")
SMALL = 1024  #: values of a constant up to which shapes may depend on it

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Operations in floating point and in INT8, and bytes."""

    float_ops: float = 0
    int8_ops: float = 0
    bytes: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.float_ops + other.float_ops, self.int8_ops + other.int8_ops, self.bytes + other.bytes)

    def __mul__(self, count: int) -> Cost:
        return Cost(self.float_ops * count, self.int8_ops * count, self.bytes * count)


@lru_cache
def graph_cost(path: Path, batch: int, tokens: int | None = None) -> Cost:
    """Count a graph of a bundle.

    Parameters
    ----------
    path
        The .onnx file.
    batch, tokens
        Values of its dimensions ``batch`` and ``length``.

    Raises
    ------
    UsageError
        It holds arithmetic that isn't counted here, or its shapes can't be told.
    """
    model = onnx.load(path)
    graph = model.graph
    unknown = sorted({node.op_type for node in graph.node if node.op_type in UNCOUNTED or node.domain})
    if unknown:
        raise UsageError(
            f"{path.name} holds {', '.join(unknown)}, whose arithmetic isn't counted; export it with dra-export onnx"
        )
    sizes = {weight.name: _bytes(weight.data_type, weight.dims) for weight in graph.initializer}
    shapes = _shapes(model, {"batch": batch, "length": tokens})
    quantised = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    float_ops = int8_ops = 0.0
    for node in graph.node:
        if node.op_type in FLOAT or node.op_type in INT8:
            count = _operations(node, shapes, path.name)
            if node.op_type in INT8 or set(node.input[:2]) <= quantised:
                int8_ops += count
            else:
                float_ops += count
    moved = _weight_bytes(graph, sizes, shapes) + sum(
        _bytes(value.type.tensor_type.elem_type, shapes[value.name]) for value in (*graph.input, *graph.output)
    )
    return Cost(float_ops, int8_ops, moved)


def _operations(node: Any, shapes: Mapping[str, Shape], file: str) -> float:
    """Return twice the multiply-adds of a product: of each value of the output, one a value that is summed over."""
    operands = (node.input[0], node.input[3 if node.op_type.startswith("QLinear") else 1], node.output[0])
    missing = [name for name in operands if name not in shapes]
    if missing:
        raise UsageError(f"{file}: the shape of {missing[0]} can't be told; export it again with dra-export onnx")
    left, right, out = (shapes[name] for name in operands)
    if "Conv" in node.op_type:
        summed = math.prod(right[1:])  # (out, in / groups, height, width)
    elif node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
        summed = left[0]
    else:
        summed = left[-1]
    return 2.0 * math.prod(out) * summed


def _weight_bytes(graph: Any, sizes: Mapping[str, int], shapes: Mapping[str, Shape]) -> float:
    """Return the bytes of the weights that are read: all of one, or the rows that are looked up in it."""
    whole: set[str] = set()
    looked_up: dict[str, float] = {}
    kinds = {weight.name: weight.data_type for weight in graph.initializer}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in sizes:
                continue
            out = node.output[0]
            if node.op_type in LOOKED_UP and position == 0 and out in shapes:
                looked_up[name] = looked_up.get(name, 0) + _bytes(kinds[name], shapes[out])
            else:
                whole.add(name)
    whole |= {output.name for output in graph.output} & set(sizes)
    rows = sum(min(count, sizes[name]) for name, count in looked_up.items() if name not in whole)
    return sum(sizes[name] for name in whole) + rows


def _shapes(model: Any, dimensions: Mapping[str, int | None]) -> dict[str, Shape]:
    """Return the shape of every value whose shape can be told."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            size = dimensions.get(dim.dim_param)
            if size is not None:
                dim.dim_value = size
    del graph.value_info[:]
    # Large weights become inputs: inference needs their shapes alone, and would copy them otherwise
    large = [weight for weight in graph.initializer if math.prod(weight.dims) > SMALL]
    declared = [onnx.helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in large]
    small = [weight for weight in graph.initializer if math.prod(weight.dims) <= SMALL]
    skeleton = onnx.helper.make_graph(
        list(graph.node), graph.name, [*graph.input, *declared], list(graph.output), initializer=small
    )
    bare = onnx.helper.make_model(skeleton, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _bytes(data_type: int, shape: Sequence[int]) -> int:
    return math.prod(shape) * int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
