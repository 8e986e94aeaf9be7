"""Open a graph in memory with ONNX Runtime, for the exporter's own measurements."""

from __future__ import annotations

from typing import Any

import onnx

from dra_runtime.threads import available_threads


def open_model(model: onnx.ModelProto) -> Any:
    """Return an ONNX Runtime session of a graph that is computed as it stands.

    Without the optimizations that change what is computed: casts that round must round.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = available_threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
