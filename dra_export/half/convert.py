"""Rewrite a float32 graph so that it computes in half precision, but for the islands that must not.

The graph's inputs and outputs stay float32. Every node is either half or float32; a Cast stands wherever a value
passes from one kind to the other. What stays float32 from the start (`first_islands`): norms, softmax, reductions with
the arithmetic around them (a variance squares its input), and the last normalisation up to the output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dra_export.onnx_from_model import ExportError
from dra_export.onnx_graph import consumers_of

HALF_MAX = 65_504.0  #: the largest finite half number

_NORMS = {"LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"}
_SOFTMAX = {"Softmax", "LogSoftmax"}
_LENGTHS = {"ReduceL2", "ReduceSumSquare", "LpNormalization"}
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceL1"}
_ARITHMETIC = {
    "Abs", "Add", "Clip", "Div", "Expand", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sigmoid", "Sqrt", "Sub",
}  # fmt: skip

_REDUCTION, _OUTPUT = "reduction, with the arithmetic around it", "last arithmetic before the output"

Islands = dict[str, str]  #: a node's name and why it stays float32


def half_from_float(model: onnx.ModelProto, islands: Mapping[str, str]) -> onnx.ModelProto:
    """Return ``model`` in half precision, with float32 inputs and outputs and the nodes of ``islands`` in float32.

    Raises
    ------
    ExportError
        The model has subgraphs, or came out with types that don't fit.
    """
    if model.functions or any(a.type == onnx.AttributeProto.GRAPH for n in model.graph.node for a in n.attribute):
        raise ExportError("a graph with functions or subgraphs can't be made half precision; export it inlined")
    converted = _Conversion(model, islands).run()
    try:
        types_of(converted)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the half precision graph's types don't fit: {' '.join(str(error).split())}") from error
    return converted


def first_islands(model: onnx.ModelProto) -> Islands:
    """Return the nodes that stay float32 before anything was measured, each with its reason."""
    graph = model.graph
    types = types_of(model)
    islands: Islands = {}
    for node in graph.node:
        if node.op_type in _NORMS:
            islands[node.name] = "norm"
        elif node.op_type in _SOFTMAX:
            islands[node.name] = "softmax"
        elif node.op_type in _REDUCTIONS and types[node.output[0]] == TensorProto.FLOAT:
            islands[node.name] = _REDUCTION
        elif node.op_type in _LENGTHS:
            islands[node.name] = "a vector's length"
        elif reason := _no_half(node, types):
            islands[node.name] = reason
    _add_arithmetic_around(graph, types, islands)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.name not in islands and (lost := _lost_constant(node, constants, types)):
            islands[node.name] = lost
    return islands


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value of a graph, by strict inference."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def half_share(model: onnx.ModelProto) -> float:
    """Return the share of half tensors among a graph's floating-point tensors: weights, and what its nodes give.

    What a Cast gives doesn't count: it stands between the two kinds.
    """
    types = types_of(model)
    given = [types[name] for node in model.graph.node if node.op_type != "Cast" for name in node.output if name]
    given += [tensor.data_type for tensor in model.graph.initializer]
    half, single = given.count(TensorProto.FLOAT16), given.count(TensorProto.FLOAT)
    return half / max(1, half + single)


class _Conversion:
    """One walk over the nodes in their order; ``dtype`` follows what each value has become."""

    def __init__(self, model: onnx.ModelProto, islands: Mapping[str, str]) -> None:
        self.source, self.islands = model, islands
        self.types = types_of(model)
        self.dtype = dict(self.types)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.cast: dict[str, str] = {}  # what an added Cast gives, and of what
        self.new_weights: dict[str, onnx.TensorProto] = {}

    def run(self) -> onnx.ModelProto:
        for node in self.source.graph.node:
            self._convert(node)
        return self._model()

    def _convert(self, source: onnx.NodeProto) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        dtype = TensorProto.FLOAT if node.name in self.islands else TensorProto.FLOAT16
        for i, name in enumerate(node.input):
            if name:
                generic = self.types[name] == TensorProto.FLOAT and _is_generic(node, i)
                node.input[i] = self._value(name, dtype if generic else self.types[name])
        if dtype == TensorProto.FLOAT16:
            _give_half(node)
            for i, name in enumerate(node.output):
                if name and self.types[name] == TensorProto.FLOAT:
                    self.dtype[name] = dtype
                    if name in self.outputs:
                        node.output[i] = self.cast[name] = _alias(name, dtype)
        self.nodes.append(node)
        for name in source.output:
            if name in self.cast:  # the graph's own outputs stay float32
                self.nodes.append(_cast(self.cast[name], name, TensorProto.FLOAT))

    def _value(self, name: str, dtype: int) -> str:
        """Return the name under which a value is to be had as ``dtype``, adding the Cast that it takes."""
        if name in self.weights:
            return self._weight(name, dtype)
        if name in self.cast:
            return self.cast[name] if dtype == TensorProto.FLOAT16 else name
        if self.dtype[name] == dtype:
            return name
        alias = _alias(name, dtype)
        if alias not in self.cast:
            self.cast[alias] = name
            self.nodes.append(_cast(name, alias, dtype))
        return alias

    def _weight(self, name: str, dtype: int) -> str:
        if self.types[name] == dtype:
            self.new_weights[name] = self.weights[name]
            return name
        alias = _alias(name, dtype)
        if alias not in self.new_weights:
            with np.errstate(over="ignore"):  # what is beyond half's range is an island, or a mask's minus infinity
                half = numpy_helper.to_array(self.weights[name]).astype(np.float16)
            self.new_weights[alias] = numpy_helper.from_array(half, alias)
        return alias

    def _model(self) -> onnx.ModelProto:
        converted = onnx.ModelProto(ir_version=self.source.ir_version, producer_name=self.source.producer_name)
        converted.opset_import.extend(self.source.opset_import)
        converted.graph.name = self.source.graph.name
        converted.graph.input.extend(self.source.graph.input)
        converted.graph.output.extend(self.source.graph.output)
        converted.graph.node.extend(self.nodes)
        converted.graph.initializer.extend(self.new_weights.values())
        return converted


def _no_half(node: onnx.NodeProto, types: Mapping[str, int]) -> str:
    """Say why a node can't be half, if it can't."""
    floats = [i for i, name in enumerate(node.input) if name and types[name] == TensorProto.FLOAT]
    generic = [i for i in floats if _is_generic(node, i)]
    gives_float = any(types.get(name) == TensorProto.FLOAT for name in node.output)
    if gives_float and not generic and node.op_type not in ("Cast", "Constant", "ConstantOfShape"):
        return f"{node.op_type} gives float32 only"
    schema = onnx.defs.get_schema(node.op_type, domain=node.domain)
    for i in generic:
        symbol = schema.inputs[min(i, len(schema.inputs) - 1)].type_str
        allowed = next(c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == symbol)
        if "tensor(float16)" not in allowed:
            return f"{node.op_type} knows no half"
    return ""


def _is_generic(node: onnx.NodeProto, index: int) -> bool:
    """Tell whether an input's type is the node's to choose; Resize's scales, for one, are always float32."""
    schema = onnx.defs.get_schema(node.op_type, domain=node.domain)
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]
    return any(c.type_param_str == formal.type_str for c in schema.type_constraints)


def _lost_constant(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], types: Mapping[str, int]
) -> str | None:
    """Say so when half would lose a node's constant: a weight beyond its range, or a small number that becomes zero."""
    for name in node.input:
        if name in constants and types[name] == TensorProto.FLOAT:
            values = np.abs(numpy_helper.to_array(constants[name]))
            finite = values[np.isfinite(values)]
            # The smallest float32 is how masks write minus infinity, which half has as well
            if np.any((finite > HALF_MAX) & (finite < 1e38)):
                return "a weight beyond half's range"
            if values.size == 1 and values.item() > 0 and np.float16(min(values.item(), HALF_MAX)) == 0:
                return "a constant that half rounds to zero"
    return None


def _add_arithmetic_around(graph: onnx.GraphProto, types: Mapping[str, int], islands: Islands) -> None:
    """Keep arithmetic float32 whose every result goes to a reduction, to the output, or to such arithmetic.

    That is where squares are summed and vectors divided by their length: half has neither the range nor the digits.
    """
    consumers = consumers_of(graph)
    outputs = {value.name for value in graph.output}
    around = (_REDUCTION, _OUTPUT)
    for node in reversed(graph.node):
        result = node.output[0]
        if node.op_type not in _ARITHMETIC or node.name in islands or types[result] != TensorProto.FLOAT:
            continue
        reasons = {islands.get(taker.name) for taker in consumers[result]}
        if reasons <= set(around):
            islands[node.name] = _OUTPUT if result in outputs or _OUTPUT in reasons else _REDUCTION


def _give_half(node: onnx.NodeProto) -> None:
    """Change the attributes that name float32 as a node's result."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))


def _cast(source: str, name: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], name=f"cast {name}", to=dtype)


def _alias(name: str, dtype: int) -> str:
    return f"{name}/{'half' if dtype == TensorProto.FLOAT16 else 'float'}"


def group_islands(islands: Mapping[str, str]) -> list[dict[str, Sequence[str] | str]]:
    """Return islands as plain values, one entry a reason: {"reason", "nodes"}."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for node, reason in islands.items():
        reasons[reason].append(node)
    return [{"reason": reason, "nodes": nodes} for reason, nodes in reasons.items()]
