"""A CPU must see what half arithmetic does; the reference is numpy's float16."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dra_export.half.emulation import emulation_from_half


def half_chain(*steps: tuple[str, float]) -> onnx.ModelProto:
    """Float in, half arithmetic with constants, float out."""
    nodes = [helper.make_node("Cast", ["x"], ["v0"], to=TensorProto.FLOAT16)]
    constants = []
    for i, (operator, value) in enumerate(steps):
        constants.append(numpy_helper.from_array(np.array([value], np.float16), f"c{i}"))
        nodes.append(helper.make_node(operator, [f"v{i}", f"c{i}"], [f"v{i + 1}"]))
    nodes.append(helper.make_node("Cast", [f"v{len(steps)}"], ["y"], to=TensorProto.FLOAT))
    return model_of(nodes, constants)


def model_of(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, x: list[float]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array(x, np.float32)})[0]


OPERATORS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-70_000, 70_000, width=32), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(sorted(OPERATORS)), st.floats(-300, 300, width=16)), min_size=1, max_size=4),
)
def test_every_step_is_rounded_as_numpys_half_is(x: list[float], steps: list[tuple[str, float]]) -> None:
    with np.errstate(all="ignore"):
        expected = np.array(x, np.float32).astype(np.float16)
        for operator, value in steps:
            expected = OPERATORS[operator](expected, np.float16(value))
    np.testing.assert_array_equal(run(emulation_from_half(half_chain(*steps)), x), expected.astype(np.float32))


def test_overflow_shows_as_infinity_and_without_it_the_cpu_hides_it() -> None:
    model = half_chain(("Mul", 60_000.0), ("Mul", 0.001))
    assert np.isinf(run(emulation_from_half(model), [2.0])).all()
    # The reason for this file. Should ONNX Runtime ever round, the file can go.
    assert run(model, [2.0])[0] == pytest.approx(120, rel=1e-3)


def test_a_float32_island_isnt_rounded() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "big"], ["g"]),
        helper.make_node("Div", ["g", "big"], ["y"]),
    ]
    model = model_of(nodes, [numpy_helper.from_array(np.array([60_000], np.float32), "big")])
    assert run(emulation_from_half(model), [3.0])[0] == 3.0


def test_weights_keep_their_half_values() -> None:
    model = half_chain(("Add", 0.1))
    assert numpy_helper.to_array(emulation_from_half(model).graph.initializer[0])[0] == np.float32(np.float16(0.1))
