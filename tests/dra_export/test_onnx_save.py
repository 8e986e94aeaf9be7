"""The file holds the model that protobuf itself reads back."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dra_export.onnx_save import save_onnx


def test_protobuf_reads_back_what_was_written_and_the_bytes_stay_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(size, 3)).astype("f4"), f"w{size}") for size in (1, 40, 4000)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    node = helper.make_node("Add", ["x", "w1"], ["y"], name="é")
    graph = helper.make_graph([node], "g", values[:1], values[1:], weights, doc_string="ü", value_info=values[:1])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tests", model_version=3)
    helper.set_model_props(model, {"a": "b"})
    for name in ("a.onnx", "b.onnx"):
        save_onnx(model, tmp_path / name)
    assert onnx.load(tmp_path / "a.onnx") == model
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
