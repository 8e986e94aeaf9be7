"""Half precision graphs: valid at any choice of islands, faithful, and repaired where half would break them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dra_export.graphs import graphs_of
from dra_export.half.convert import first_islands, half_from_float, half_share, types_of
from dra_export.half.emulation import emulation_from_half
from dra_export.half.headroom import largest_activations
from dra_export.half.repair import LEAST_COSINE, half_from_real_inputs
from dra_export.onnx_from_model import ExportError, write_onnx
from dra_export.onnx_session import open_model
from dra_train.checkpoint import load_checkpoint
from dra_train.model import DRA

PARTS = ("image_encoder", "text_encoder", "compositor", "reranker")
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(str(tiny_bundle / f"{name}.onnx")) for name in PARTS}


def inputs_of(name: str, model: onnx.ModelProto, batch: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    values = {}
    for value in model.graph.input:
        shape = [axis.dim_value or (batch if i == 0 else 9) for i, axis in enumerate(value.type.tensor_type.shape.dim)]
        if value.name == "tokens":
            values["tokens"] = generator.integers(1, 49406, shape).astype(np.int32)
            values["tokens"][:, -1] = 49407
        else:
            values[value.name] = generator.standard_normal(shape).astype(np.float32)
    return values


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    return float(((x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))).min())


def emulate(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return open_model(emulation_from_half(model)).run(None, inputs)


@pytest.mark.parametrize("name", PARTS)
def test_every_graph_becomes_half_inside_and_stays_float32_outside(
    graphs: dict[str, onnx.ModelProto], name: str
) -> None:
    source = graphs[name]
    half = half_from_float(source, first_islands(source))
    onnx.checker.check_model(half, full_check=True)
    assert [v.type for v in half.graph.input] == [v.type for v in source.graph.input]
    assert [v.type for v in half.graph.output] == [v.type for v in source.graph.output]
    assert half_share(half) >= 0.8
    weights = [t for t in source.graph.initializer if t.data_type == FLOAT and np.prod(t.dims) > 1000]
    assert half.ByteSize() - source.ByteSize() < -1.9 * sum(np.prod(t.dims) for t in weights)
    inputs = inputs_of(name, source)
    for ours, theirs in zip(emulate(half, inputs), open_model(source).run(None, inputs), strict=True):
        assert cosine(ours, theirs) > 0.9999


def test_norms_softmax_and_the_last_division_compute_in_float32(graphs: dict[str, onnx.ModelProto]) -> None:
    seen = set()
    for source in graphs.values():
        half = half_from_float(source, first_islands(source))
        types = types_of(half)
        for node in half.graph.node:
            if node.op_type in ("LayerNormalization", "Softmax", "ReduceL2", "Div"):
                seen.add(node.op_type)
                assert {types[name] for name in (*node.input, *node.output) if name} & {HALF, FLOAT} == {FLOAT}, (
                    node.name
                )
            if node.op_type in ("Conv", "Gemm"):
                assert {types[name] for name in (*node.input, *node.output) if name} & {HALF, FLOAT} == {HALF}, (
                    node.name
                )
    assert seen == {"LayerNormalization", "Softmax", "ReduceL2", "Div"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_choice_of_islands_gives_a_valid_graph_with_the_same_vectors(
    graphs: dict[str, onnx.ModelProto], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["text_encoder", "compositor", "reranker"]))
    source = graphs[name]
    chosen = data.draw(st.sets(st.sampled_from([node.name for node in source.graph.node])))
    half = half_from_float(source, {**dict.fromkeys(chosen, "chosen"), **first_islands(source)})
    onnx.checker.check_model(half, full_check=True)
    inputs = inputs_of(name, source, batch=2)
    for ours, theirs in zip(emulate(half, inputs), open_model(source).run(None, inputs), strict=True):
        assert cosine(ours, theirs) > 0.999


def test_with_every_node_an_island_the_graph_is_exactly_the_float32_one(graphs: dict[str, onnx.ModelProto]) -> None:
    source = graphs["text_encoder"]
    same = half_from_float(source, {node.name: "all" for node in source.graph.node})
    assert half_share(same) == 0
    inputs = inputs_of("text_encoder", source)
    np.testing.assert_array_equal(open_model(same).run(None, inputs)[0], open_model(source).run(None, inputs)[0])


def chain(weights: list[float], tiny: float = 0.0) -> onnx.ModelProto:
    """x (n, 1) times each weight in turn, then clipped from below at ``tiny``."""
    nodes, constants, last = [], [], "x"
    for i, weight in enumerate(weights):
        constants.append(numpy_helper.from_array(np.array([[weight]], np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"], name=f"times {i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"relu {i}"))
        last = f"r{i}"
    constants.append(numpy_helper.from_array(np.array(tiny, np.float32), "tiny"))
    nodes.append(helper.make_node("Max", [last, "tiny"], ["c"], name="clip"))
    nodes.append(helper.make_node("Relu", ["c"], ["y"], name="last"))
    values = [helper.make_tensor_value_info(n, FLOAT, ["n", 1]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_constants_that_half_cannot_hold_keep_their_node_float32() -> None:
    islands = first_islands(chain([1e6, 1.0], tiny=1e-12))
    assert islands["times 0"] == "a weight beyond half's range"
    assert islands["clip"] == "a constant that half rounds to zero"
    assert "times 1" not in islands


def test_largest_activations_are_those_of_a_plain_loop_and_masks_do_not_count() -> None:
    x = np.array([[3.0], [-50.0], [7.0]], np.float32)
    found = largest_activations(chain([10.0, 0.5]), [{"x": x[:2]}, {"x": x[2:]}])
    assert {k: found[k] for k in ("x", "m0", "r0", "m1", "y")} == {"x": 50, "m0": 500, "r0": 70, "m1": 35, "y": 35}
    masked = largest_activations(chain([1.0]), [{"x": np.array([[-np.inf], [2.0]], np.float32)}])
    assert masked["m0"] == 2
    assert largest_activations(chain([1.0]), [{"x": np.array([[np.inf]], np.float32)}])["m0"] == np.inf


def scaled(model: DRA, factor: float) -> DRA:
    """Scale what the stem's first convolution gives, and scale it back in the second: the same function."""
    with torch.no_grad():
        model.visual.bn1.weight *= factor
        model.visual.bn1.bias *= factor
        model.visual.conv2.weight /= factor
    return model


@pytest.mark.parametrize(("factor", "how"), [(1e6, "beyond half's safe range"), (1e-7, "found by bisection")])
def test_a_model_that_half_breaks_by_construction_comes_out_right(
    tiny_checkpoint: Path, tmp_path: Path, factor: float, how: str
) -> None:
    model = scaled(load_checkpoint(tiny_checkpoint).model, factor)
    graph = next(g for g in graphs_of(model) if g.name == "image_encoder")
    write_onnx(graph, tmp_path / "image_encoder.onnx")
    source = onnx.load(str(tmp_path / "image_encoder.onnx"))
    inputs = {"image": graph.example(4, 5)[0].numpy()}
    with torch.inference_mode():
        reference = load_checkpoint(tiny_checkpoint).model.encode_image(torch.from_numpy(inputs["image"]))[0].numpy()
    unrepaired = emulate(half_from_float(source, first_islands(source)), inputs)[0]
    assert not cosine(unrepaired, reference) > LEAST_COSINE  # NaN, or far off: the fault is really there
    half = half_from_real_inputs("image_encoder", source, [inputs])
    assert cosine(emulate(half.model, inputs)[0], reference) > LEAST_COSINE
    assert any(how in repair for repair in half.repairs), half.repairs
    values = half.to_dict()
    assert values["half_share"] >= 0.8
    assert values["headroom"]["times"] >= 4
    repaired = [
        island["nodes"] for island in values["islands"] if "activations" in island["reason"] or how in island["reason"]
    ]
    assert repaired


def test_a_graph_that_needs_float32_nearly_everywhere_is_refused() -> None:
    with pytest.raises(ExportError, match=r"of its tensors in half, expected at least 80%.*--precision fp32"):
        half_from_real_inputs("chain", chain([1000.0, 2.0, 1.0]), [{"x": np.array([[50.0], [2.0]], np.float32)}])
