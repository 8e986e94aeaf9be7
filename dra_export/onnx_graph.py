"""Questions that every pass over a graph asks."""

from __future__ import annotations

from collections import defaultdict

import onnx


def consumers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that take each value, each node once; a graph's output is taken by none here."""
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            consumers[name].append(node)
    return consumers
