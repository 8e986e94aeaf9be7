"""Dynamic INT8 must be what ONNX Runtime's own tool makes, for MatMul and Gemm in all their forms."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from int8_nets import optimized_ops
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dra_export.int8.dynamic import dynamic_int8

Arrays = dict[str, NDArray[np.float32]]


def products() -> onnx.ModelProto:
    """MatMul on (N, L, 6), Gemm with and without bias and transposition, and a MatMul of two inputs."""
    generator = np.random.default_rng(0)
    weights = {
        "a": generator.standard_normal((6, 10)),
        "b": generator.standard_normal((10, 4)),
        "c": generator.standard_normal(4),
        "d": generator.standard_normal((5, 4)) * np.array([[1e-3], [1], [5], [0], [100]]),
        "flat": np.array([-1, 10], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"], "xa"),
        helper.make_node("Reshape", ["xa", "flat"], ["rows"], "rows"),
        helper.make_node("Gemm", ["rows", "b", "c"], ["with_bias"], "with_bias"),
        helper.make_node("Gemm", ["with_bias", "d"], ["transposed"], "transposed", transB=1),
        helper.make_node("Gemm", ["with_bias", "d"], ["doubled"], "doubled", transB=1, alpha=2.0),
        helper.make_node("MatMul", ["x", "y"], ["both"], "both"),
    ]
    values = {"x": ["n", "l", 6], "y": ["n", 6, 2]}
    rows = {"with_bias": ["m", 4], "transposed": ["m", 5], "doubled": ["m", 5]}
    outputs = {"xa": ["n", "l", 10], **rows, "both": ["n", "l", 2]}
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(np.float32), k) for k, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def inputs() -> Arrays:
    generator = np.random.default_rng(1)
    return {
        "x": generator.standard_normal((2, 3, 6)).astype(np.float32),
        "y": generator.standard_normal((2, 6, 2)).astype(np.float32),
    }


def outputs_of(model: onnx.ModelProto, inputs: Arrays) -> Arrays:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


def test_it_is_what_onnxruntimes_tool_makes(inputs: Arrays, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    onnx.save(products(), tmp_path / "float32.onnx")
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            tmp_path / "float32.onnx", tmp_path / "int8.onnx", ["MatMul", "Gemm"], True, weight_type=QuantType.QInt8
        )
    finally:
        logging.disable(logging.NOTSET)
    expected = outputs_of(onnx.load(tmp_path / "int8.onnx"), inputs)
    found = outputs_of(dynamic_int8(products()), inputs)
    for name in ("xa", "with_bias", "transposed", "both"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    exact = outputs_of(products(), inputs)
    assert np.abs(found["xa"] - exact["xa"]).max() > 1e-4  # it isn't float32


def test_it_is_valid_fused_and_leaves_the_rest(inputs: Arrays, tmp_path: Path) -> None:
    int8 = dynamic_int8(products())
    onnx.checker.check_model(int8, full_check=True)
    assert {tensor.data_type for tensor in int8.graph.initializer if tensor.name.endswith("/weight")} == {
        TensorProto.INT8
    }
    assert "a" not in {tensor.name for tensor in int8.graph.initializer}
    kinds = optimized_ops(int8, str(tmp_path))
    assert kinds.count("DynamicQuantizeMatMul") + kinds.count("MatMulIntegerToFloat") == 3
    assert kinds.count("MatMul") + kinds.count("Gemm") == 2  # of two inputs, and with a factor


def test_products_of_one_input_quantise_it_once() -> None:
    model = products()
    model.graph.node.append(helper.make_node("MatMul", ["x", "a"], ["again"], "again"))
    kinds = [node.op_type for node in dynamic_int8(model).graph.node]
    assert (kinds.count("DynamicQuantizeLinear"), kinds.count("MatMulInteger")) == (3, 4)
