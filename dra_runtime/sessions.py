"""The one seam where backends meet: a session runs a graph on numpy arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import BackendError, BundleFormatError, UsageError
from dra_runtime.manifest import GraphSpec, TensorSpec
from dra_runtime.onnx_file import require_weights_inside
from dra_runtime.threads import available_threads

Array = npt.NDArray[Any]
SessionFactory = Callable[[Path, GraphSpec, int], "Session"]

ONNXRUNTIME_CPU = "onnxruntime-cpu"
SPIN_MICROSECONDS = 20
_PLANNED = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")

_ORT_TYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}


class Session(Protocol):
    """An opened graph. Implementations may be run from many threads at once."""

    @property
    def backend(self) -> str:
        """Name the backend, such as ``onnxruntime-cpu``."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on its named inputs and return its named outputs.

        Raises
        ------
        BackendError
            The backend failed.
        """


def choose_backend(name: str = "auto") -> str:
    """Return the backend to use, having made sure that it is there.

    Parameters
    ----------
    name
        A backend's name, or ``"auto"`` for the fastest one that is installed.

    Raises
    ------
    BackendError
        It isn't there. Nothing else is used in its place.
    """
    if name in ("auto", ONNXRUNTIME_CPU):
        if importlib.util.find_spec("onnxruntime") is None:
            raise BackendError(
                "no backend is installed: onnxruntime can't be imported; "
                'install one with: pip install "dra-toolkit[cpu]"'
            )
        return ONNXRUNTIME_CPU
    if name in _PLANNED:
        raise BackendError(f"the backend {name!r} isn't available here; available: {ONNXRUNTIME_CPU}")
    raise BackendError(f"{name!r} is no backend; give 'auto' or {ONNXRUNTIME_CPU!r}")


def checked_threads(threads: int | None) -> int:
    """Return how many threads a session uses: as many as asked for, by default `available_threads`.

    Raises
    ------
    UsageError
        Not a whole number from 1 to 1024.
    """
    if threads is None:
        return available_threads()
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise UsageError(f"threads is {threads!r}; give a whole number from 1 to 1024, or None for all that are free")
    return threads


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
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f'onnxruntime can\'t be imported ({error}); pip install "dra-toolkit[cpu]"') from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if half:
        # Beyond this level ONNX Runtime 1.32 crashes the process on some half graphs (MatmulTransposeFusion)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4  # failures come as exceptions; the log would say them a second time on stderr
    _set_waiting(options, ort.__version__)
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime derives its errors from Exception itself
    except Exception as error:
        raise BackendError(f"{path}: ONNX Runtime can't open it ({_line(error)}); export the bundle again") from error
    for kind, found, stated in (
        ("inputs", session.get_inputs(), spec.inputs),
        ("outputs", session.get_outputs(), spec.outputs),
    ):
        _compare(path, kind, [(v.name, _ORT_TYPES.get(v.type, v.type), list(v.shape)) for v in found], stated)
    return _OnnxRuntimeSession(session, path.name)


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


class _OnnxRuntimeSession:
    def __init__(self, session: Any, name: str) -> None:
        self._session = session
        self._name = name
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
            raise BackendError(f"{self._name} failed on {shapes}: {_line(error)}") from error
        return {name: np.asarray(output) for name, output in zip(self._outputs, outputs, strict=True)}


def _compare(
    path: Path, kind: str, found: list[tuple[str, str, list[int | str | None]]], stated: tuple[TensorSpec, ...]
) -> None:
    """Require the manifest's names, types and fixed dimensions; what it calls free must be free."""
    by_name = {name: (dtype, shape) for name, dtype, shape in found}
    agrees = set(by_name) == {tensor.name for tensor in stated}
    for tensor in stated if agrees else ():
        dtype, shape = by_name[tensor.name]
        agrees = agrees and dtype == tensor.dtype and len(shape) == len(tensor.shape)
        for size, expected in zip(shape, tensor.shape, strict=False):
            # an output's fixed dimension may be unknown to ONNX Runtime's shape inference, but never another number
            known = isinstance(size, int)
            agrees = agrees and (size == expected if known else kind == "outputs" or isinstance(expected, str))
    if not agrees:
        wanted = [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in stated]
        raise BundleFormatError(f"{path}: its {kind} are {found} where the manifest says {wanted}; export it again")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
