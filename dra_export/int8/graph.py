"""Find by structure what of an image tower can run in INT8: the chain of its convolutions, cut into blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from dra_export.onnx_graph import consumers_of

ACTIVATIONS = ("Relu", "Clip")
# What ONNX Runtime computes on 8 bits between convolutions; leaving one out would leave INT8 at each of them.
FOLLOWERS = (*ACTIVATIONS, "Add", "AveragePool", "GlobalAveragePool", "MaxPool", "Concat")


@dataclass(frozen=True)
class Block:
    """Neighbouring nodes that enter or leave INT8 together; one tensor alone leads on to the next block."""

    name: str  #: its place in the tower, such as ``"03: 1 Add, 3 Conv"``
    outputs: tuple[str, ...]  #: a node is known by its first output, which is unique in a graph


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model but for its weights, which are most of it: whoever builds a new one adds those that it needs."""
    result = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = model.graph.name
    for field in ("input", "output", "value_info", "node"):
        getattr(result.graph, field).extend(getattr(model.graph, field))
    return result


def add_weights(model: onnx.ModelProto, source: onnx.ModelProto, new: Sequence[onnx.TensorProto]) -> None:
    """Give a model made by `without_weights` the source's weights that it still uses, and ``new`` ones."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in used)
    graph.initializer.extend(new)
    made = {name for node in graph.node for name in node.output}
    infos = [info for info in graph.value_info if info.name in made]
    del graph.value_info[:]
    graph.value_info.extend(infos)


def quantizable_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the convolutions with constant weights, and what follows them on maps without leaving INT8."""
    constants = {tensor.name for tensor in graph.initializer}
    inside: set[str] = set()
    nodes = []
    for node in graph.node:
        if node.op_type == "Conv":
            takes = all(name in constants for name in node.input[1:])
        elif node.op_type in FOLLOWERS:
            values = node.input[:1] if node.op_type == "Clip" else node.input
            takes = len(node.output) == 1 and all(name in inside for name in values)
        else:
            takes = False
        if takes:
            nodes.append(node)
            inside.add(node.output[0])
    return nodes


def fused_activations(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """Return, by output, which of ``nodes`` are clamped by one activation alone, and that activation's output.

    Such a pair is quantised once, behind the activation, whose clamping the range of 8 bits does then.
    """
    readers = consumers_of(graph)
    outputs = {value.name for value in graph.output}
    chosen = {node.output[0] for node in nodes}
    fused = {}
    for node in nodes:
        name = node.output[0]
        following = readers[name]
        alone = len(following) == 1 and name not in outputs and node.op_type in ("Conv", "Add")
        if alone and following[0].op_type in ACTIVATIONS and following[0].output[0] in chosen:
            fused[name] = following[0].output[0]
    return fused


def blocks_of(graph: onnx.GraphProto) -> tuple[Block, ...]:
    """Cut the nodes that can run in INT8 into blocks, wherever one tensor alone leads on.

    A residual block is one block then, and so is a convolution with its activation outside of residual blocks. What
    leaves the chain, such as a stage's map on its way to a pooling, doesn't count.
    """
    nodes = quantizable_nodes(graph)
    fused = fused_activations(graph, nodes)
    constants = {tensor.name for tensor in graph.initializer}
    place = {node.output[0]: i for i, node in enumerate(nodes)}
    last_use = {
        name: max((place[reader.output[0]] for reader in readers if reader.output[0] in place), default=-1)
        for name, readers in consumers_of(graph).items()
        if name not in constants
    }
    groups: list[list[onnx.NodeProto]] = [[]]
    live: set[str] = set()
    for i, node in enumerate(nodes):
        groups[-1].append(node)
        live = {name for name in (*live, *node.input, node.output[0]) if last_use.get(name, -1) > i}
        whole = node.output[0] not in fused and any(n.op_type == "Conv" for n in groups[-1])
        if whole and len(live) <= 1:
            groups.append([])
    if len(groups) > 1 and not any(node.op_type == "Conv" for node in groups[-1]):
        tail = groups.pop()  # nothing, or a pooling at the end
        groups[-1] += tail
    return tuple(_block(number, group) for number, group in enumerate(groups) if group)


def _block(number: int, nodes: Sequence[onnx.NodeProto]) -> Block:
    counts = Counter(node.op_type for node in nodes if node.op_type not in ACTIVATIONS)
    parts = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return Block(f"{number:02}: {parts}", tuple(node.output[0] for node in nodes))
