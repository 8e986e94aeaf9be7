"""ONNX Runtime on the CPU: the embedded default, which always works."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dra_runtime.backends.onnxruntime_common import (
    checked_outputs,
    import_onnxruntime,
    line,
    open_graph,
    session_options,
)
from dra_runtime.errors import BackendError
from dra_runtime.manifest import GraphSpec
from dra_runtime.onnx_file import require_weights_inside
from dra_runtime.sessions import ONNXRUNTIME_CPU, Array, Session

SPIN_MICROSECONDS = 20


def open_onnxruntime_cpu(path: Path, spec: GraphSpec, threads: int, half: bool = False) -> Session:
    """Open a graph in ONNX Runtime on the CPU and compare it with its manifest entry.

    ``half`` says that the graph is half precision inside, as a bundle of precision fp16 has them. ONNX Runtime's CPU
    backend computes such graphs in float32: right, but no faster than a float32 graph.

    Raises
    ------
    BackendError
        ONNX Runtime isn't installed, or can't open the graph.
    BundleFormatError
        The file is no ONNX file, points to weights outside, or differs from the manifest.
    """
    require_weights_inside(path)
    ort = import_onnxruntime("cpu")
    options = session_options(ort, threads, half)
    _set_waiting(options, ort.__version__)
    # The arena grows by doubling, and would hold the weights in blocks that are half empty
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    session = open_graph(ort, path, spec, options, ["CPUExecutionProvider"])
    _give_memory_back()
    return _CpuSession(session, path.name, spec)


def _give_memory_back() -> None:
    """Return freed memory to the system: while a graph is loaded, its weights stand in memory twice or more often."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no glibc: other systems' libraries return memory by themselves
        return
    trim(0)


def _set_waiting(options: Any, version: str) -> None:
    """Say how the worker threads of a session wait for work.

    Between two operators they spin for as long as waking them would take, and they sleep as soon as the call ends: an
    idle service uses no CPU. Spinning without that limit is as fast for one caller, and takes the cores of all others.
    """
    knows_duration = tuple(int(part) for part in version.split(".")[:2]) >= (1, 32)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if knows_duration else "0")
    if knows_duration:  # an older version would ignore the key and spin without limit
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
        options.add_session_config_entry("session.force_spinning_stop", "1")


class _CpuSession:
    def __init__(self, session: Any, name: str, spec: GraphSpec) -> None:
        self._session = session
        self._name = name
        self._spec = spec
        self._outputs: list[str] = [output.name for output in session.get_outputs()]

    @property
    def backend(self) -> str:
        return ONNXRUNTIME_CPU

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            outputs = self._session.run(self._outputs, dict(inputs))
        # ONNX Runtime derives its errors from Exception itself
        except Exception as error:
            shapes = {name: array.shape for name, array in inputs.items()}
            raise BackendError(f"{self._name} failed on {shapes}: {line(error)}") from error
        arrays = {name: np.asarray(output) for name, output in zip(self._outputs, outputs, strict=True)}
        return checked_outputs(self._name, self._spec, inputs, arrays)
