"""What can run in INT8 is found by structure, on nets written by hand."""

import numpy as np
from int8_nets import conv, longer_net, net, node, residual_net
from onnx import helper

from dra_export.int8.graph import blocks_of, fused_activations, quantizable_nodes


def test_the_chain_is_all_that_convolutions_and_what_follows_them_make() -> None:
    graph = residual_net().graph
    names = [n.output[0] for n in quantizable_nodes(graph)]
    assert names == ["c0", "r0", "c1", "r1", "c2", "sum", "r2", "c3", "r3"]


def test_an_activation_is_fused_with_what_it_alone_reads() -> None:
    graph = residual_net().graph
    assert fused_activations(graph, quantizable_nodes(graph)) == {"c0": "r0", "c1": "r1", "sum": "r2", "c3": "r3"}


def test_a_residual_block_is_one_block() -> None:
    blocks = blocks_of(residual_net().graph)
    assert [block.name for block in blocks] == ["00: 1 Conv", "01: 1 Add, 2 Conv", "02: 1 Conv"]
    assert [block.outputs for block in blocks] == [("c0", "r0"), ("c1", "r1", "c2", "sum", "r2"), ("c3", "r3")]


def test_maps_that_leave_the_chain_do_not_join_blocks() -> None:
    graph = residual_net().graph
    graph.node.append(helper.make_node("ReduceMean", ["r0", "axes"], ["stage"], "stage", keepdims=0))
    assert len(blocks_of(graph)) == 3


def test_an_activation_that_others_read_past_is_not_fused() -> None:
    weights = {"w": np.ones((3, 3, 3, 3), np.float32)}
    model = net([conv("image", "c", "w"), node("Relu", ["c"], "r"), node("Add", ["c", "r"], "image_features")], weights)
    assert fused_activations(model.graph, quantizable_nodes(model.graph)) == {}


def test_what_reads_other_maps_or_computed_weights_stays_out() -> None:
    weights = {"w": np.ones((3, 3, 3, 3), np.float32)}
    nodes = [
        node("Sigmoid", ["image"], "gate"),
        node("Identity", ["w"], "computed"),
        conv("image", "c", "computed"),
        conv("image", "d", "w"),
        node("Mul", ["d", "gate"], "gated"),
        node("Relu", ["gated"], "r"),
        node("Add", ["d", "gated"], "sum"),
        node("Add", ["sum", "c"], "image_features"),
    ]
    assert [n.output[0] for n in quantizable_nodes(net(nodes, weights, (3, 8, 8)).graph)] == ["d"]


def test_a_pooling_at_the_end_goes_with_the_last_block() -> None:
    model = residual_net()
    model.graph.node.insert(9, helper.make_node("AveragePool", ["r3"], ["p"], "p", kernel_shape=[2, 2]))
    model.graph.node[10].input[0] = "p"
    assert blocks_of(model.graph)[-1].outputs == ("c3", "r3", "p")


def test_shared_constants_do_not_join_blocks() -> None:
    blocks = blocks_of(longer_net().graph)
    assert [block.outputs for block in blocks][2:] == [("c3", "r3"), ("c4", "r4")]
