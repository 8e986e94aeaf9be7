"""Say what an ONNX file computes, in which precision, and how large its weights are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from dra_runtime.errors import UsageError

_LARGE = 1024  #: bytes of a weight that type inference needn't see
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_PRODUCTS = ("Conv", "MatMul", "Gemm", "Einsum", "Attention")
_INT8_PRODUCTS = (
    "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "QLinearConv",
    "QLinearMatMul",
)  # fmt: skip


def describe_onnx(path: Path) -> dict[str, Any]:
    """Return inputs, outputs, opsets, operators, and the types of weights and of computed values.

    ``half_share`` is that of half values among the floating-point ones that nodes compute, without casts and constants;
    ``int8_products`` how many of all ``products`` (convolutions, matrix products) take 8-bit numbers.

    Raises
    ------
    UsageError
        No ONNX file.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise UsageError(f"{path}: no ONNX file, or a damaged one; export it again") from error
    graph = model.graph
    if not graph.node or not graph.output:
        raise UsageError(f"{path}: no ONNX file, or an empty one; export it again")
    weights = _weights(graph)
    types = _types(model)
    computed = [
        name
        for node in graph.node
        for name in node.output
        if name and node.op_type not in ("Cast", "Constant", "ConstantOfShape", "DequantizeLinear")
    ]
    values = Counter(types[name] for name in computed if name in types)
    floats = sum(values[name] for name in _FLOATS)
    operators = Counter(node.op_type for node in graph.node)
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    through_pairs = sum(n.op_type in _PRODUCTS and set(n.input[:2]) <= dequantized for n in graph.node)
    return {
        "inputs": [_tensor(value) for value in graph.input if value.name not in {t.name for t in graph.initializer}],
        "outputs": [_tensor(value) for value in graph.output],
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": " ".join(part for part in (model.producer_name, model.producer_version) if part),
        "nodes": len(graph.node),
        "operators": dict(operators.most_common()),
        "weights": weights,
        "weights_outside": any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.initializer),
        "values": dict(values.most_common()),
        "half_share": round(values["float16"] / floats, 4) if floats else None,
        "products": sum(operators[name] for name in (*_PRODUCTS, *_INT8_PRODUCTS)),
        "int8_products": through_pairs + sum(operators[name] for name in _INT8_PRODUCTS),
    }


def _weights(graph: onnx.GraphProto) -> dict[str, dict[str, int]]:
    """Return count, elements and bytes of the weights by type; the largest first."""
    found: dict[str, dict[str, int]] = {}
    for tensor in graph.initializer:
        dtype = _dtype(tensor.data_type)
        elements = 1
        for size in tensor.dims:
            elements *= size
        entry = found.setdefault(dtype, {"tensors": 0, "elements": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["elements"] += elements
        entry["bytes"] += elements * _itemsize(tensor.data_type)
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """Infer the types of all values, without the weights themselves: they would be copied several times."""
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _LARGE:
            tensor.ClearField("raw_data")
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):  # of operators that onnx doesn't know
        graph = model.graph
    return {
        value.name: _dtype(value.type.tensor_type.elem_type)
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type
    }


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": _dtype(tensor.elem_type),
        "shape": [axis.dim_param or axis.dim_value for axis in tensor.shape.dim],
    }


def _dtype(number: int) -> str:
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    name = onnx.TensorProto.DataType.Name(number) if number in onnx.TensorProto.DataType.values() else "unknown"
    return names.get(name, name.lower())


def _itemsize(number: int) -> int:
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(number).itemsize)
    except KeyError:
        return 0
