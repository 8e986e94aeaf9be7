"""ONNX Runtime on the GPU: its CUDA provider, with the inputs and outputs of frequent shapes bound, and CUDA graphs.

Written from ONNX Runtime's documentation. Every line runs in the tests with a stand-in; `pytest -m gpu` runs the real
one.

Never quietly on the CPU: ONNX Runtime takes the CPU in place of a provider whose libraries don't load, and says so in
its log alone. So a session is looked at once it is open: which provider it has, and that every convolution and matrix
product was given to it. Single nodes that compute shapes belong on the CPU, and stay there.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dra_runtime.backends.captures import Captures
from dra_runtime.backends.onnxruntime_common import (
    checked_outputs,
    import_onnxruntime,
    line,
    open_graph,
    session_options,
)
from dra_runtime.backends.profiles import Shape, shape_of, symbols_of
from dra_runtime.errors import BackendError
from dra_runtime.manifest import GraphSpec
from dra_runtime.onnx_file import require_weights_inside
from dra_runtime.sessions import ONNXRUNTIME_CUDA, Array, GpuOptions, Session

PROVIDER = "CUDAExecutionProvider"
PRODUCTS = {"Attention", "Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MultiHeadAttention"}
_OPTIONS = {
    "device_id": "0",  # of those that CUDA shows
    "use_tf32": "0",  # 10 bits of mantissa: float32 bundles, and float32 islands, mean float32
    "cudnn_conv_algo_search": "HEURISTIC",  # a search at every new batch size would make some queries take seconds
}
# ONNX Runtime captures in the mode in which no thread may allocate, so no other session may run meanwhile
_CAPTURING = threading.Lock()


def require_provider() -> None:
    """Raise BackendError unless the installed ONNX Runtime was built with CUDA."""
    ort = import_onnxruntime("gpu")
    if PROVIDER not in ort.get_available_providers():
        raise BackendError(
            "the installed onnxruntime has no CUDA; pip uninstall onnxruntime, then pip install 'dra-toolkit[gpu]' "
            "(the two are one module)"
        )


def open_onnxruntime_cuda(path: Path, spec: GraphSpec, half: bool = False, gpu: GpuOptions | None = None) -> Session:
    """Open a graph in ONNX Runtime on the GPU and compare it with its manifest entry.

    ``half`` says that the graph is half precision inside. A graph that ONNX Runtime can't capture, because a node
    between others runs on the CPU, runs without CUDA graphs.

    Raises
    ------
    BackendError
        ONNX Runtime isn't there with CUDA, can't open the graph, or would run it on the CPU.
    BundleFormatError
        The file is no ONNX file, points to weights outside, or differs from the manifest.
    """
    gpu = gpu or GpuOptions()
    require_weights_inside(path)
    require_provider()
    ort = import_onnxruntime("gpu")
    said = _load_cuda_libraries(ort)
    if gpu.graphs:
        try:
            session = _open(ort, path, spec, half, graphs=True, said=said)
            return _CudaSession(ort, session, path.name, spec, gpu.graphs)
        except BackendError:  # whatever it is, it comes again if it isn't about graphs
            pass
    return _CudaSession(ort, _open(ort, path, spec, half, graphs=False, said=said), path.name, spec, 0)


def _open(ort: Any, path: Path, spec: GraphSpec, half: bool, graphs: bool, said: str) -> Any:
    options = session_options(ort, 1, half)  # threads of the CPU have nothing to do
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider = (PROVIDER, {**_OPTIONS, "enable_cuda_graph": "1" if graphs else "0"})
    session = open_graph(ort, path, spec, options, [provider])
    session.disable_fallback()
    if PROVIDER not in session.get_providers():
        raise BackendError(
            f"{path}: ONNX Runtime would run it on the CPU, as its CUDA libraries don't load; pip install "
            f"'dra-toolkit[gpu]', and check NVIDIA's driver{said and f' ({said})'}"
        )
    if elsewhere := _products_elsewhere(session):
        raise BackendError(
            f"{path}: ONNX Runtime gives {len(elsewhere)} of its products to the CPU, such as {elsewhere[0]}; use an "
            "fp16 or fp32 bundle, or another version of onnxruntime-gpu"
        )
    return session


def _products_elsewhere(session: Any) -> list[str]:
    """Return the convolutions and matrix products that don't run on the GPU, where ONNX Runtime tells (1.24)."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    return [
        node.name
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != PROVIDER and node.op_type in PRODUCTS
    ]


def _load_cuda_libraries(ort: Any) -> str:
    """Load the CUDA libraries that pip installed, where ONNX Runtime can (1.21); return what it says on failures."""
    if not hasattr(ort, "preload_dlls"):
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints
        ort.preload_dlls()
    return line(RuntimeError(said.getvalue())) if said.getvalue() else ""


class _CudaSession:
    def __init__(self, ort: Any, session: Any, name: str, spec: GraphSpec, graphs: int) -> None:
        self._ort, self._session, self._name, self._spec = ort, session, name, spec
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._graphs = graphs
        self._captures = Captures(graphs)
        self._bound: dict[tuple[Shape, ...], _Bound] = {}

    @property
    def backend(self) -> str:
        return ONNXRUNTIME_CUDA

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            if not self._graphs:  # many threads at once
                return self._plain(inputs, None)
            with _CAPTURING:
                return self._run(inputs)
        except BackendError:
            raise
        # ONNX Runtime derives its errors from Exception itself
        except Exception as error:
            shapes = {name: array.shape for name, array in inputs.items()}
            raise BackendError(f"{self._name} failed on {shapes}: {line(error)}") from error

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        stated = {tensor.name: tensor.dtype for tensor in self._spec.inputs}
        right = {name: str(array.dtype) for name, array in inputs.items()} == stated
        shapes = tuple(inputs[name].shape for name in stated) if right else ()
        if not right or not self._captures.choose(shapes):
            options = self._ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", "-1")  # neither captured nor replayed
            return self._plain(inputs, options)
        if shapes not in self._bound:
            self._bound[shapes] = _Bound(self._ort, self._session, self._spec, inputs, number=len(self._bound) + 1)
        return self._bound[shapes].run(inputs)

    def _plain(self, inputs: Mapping[str, Array], options: Any) -> dict[str, Array]:
        outputs = self._session.run(self._outputs, dict(inputs), options)
        arrays = {name: np.asarray(output) for name, output in zip(self._outputs, outputs, strict=True)}
        return checked_outputs(self._name, self._spec, inputs, arrays)


class _Bound:
    """Buffers on the GPU for one shape, bound to the inputs and outputs; the first run captures a CUDA graph."""

    def __init__(self, ort: Any, session: Any, spec: GraphSpec, inputs: Mapping[str, Array], number: int) -> None:
        symbols = symbols_of(spec.inputs, {name: array.shape for name, array in inputs.items()})
        buffer = ort.OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._inputs = {t.name: buffer(shape_of(t, symbols), np.dtype(t.dtype), "cuda", 0) for t in spec.inputs}
        self._outputs = {t.name: buffer(shape_of(t, symbols), np.dtype(t.dtype), "cuda", 0) for t in spec.outputs}
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name, array in inputs.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        return {name: np.array(value.numpy()) for name, value in self._outputs.items()}
