"""What the backends of ONNX Runtime share: how a graph is opened, and that it is the one which the manifest names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dra_runtime.errors import BackendError, BundleFormatError
from dra_runtime.manifest import GraphSpec, TensorSpec
from dra_runtime.sessions import Array

DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}


def import_onnxruntime(extra: str) -> Any:
    """Import ONNX Runtime, or raise BackendError naming the ``extra`` that brings it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f'onnxruntime can\'t be imported ({error}); pip install "dra-toolkit[{extra}]"') from error
    return onnxruntime


def session_options(ort: Any, threads: int, half: bool) -> Any:
    """Return options of a session that computes on ``threads`` threads; ``half`` for graphs that are half inside."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if half:
        # Beyond this level ONNX Runtime 1.32 crashes the process on some half graphs (MatmulTransposeFusion)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4  # failures come as exceptions; the log would say them a second time on stderr
    return options


def open_graph(ort: Any, path: Path, spec: GraphSpec, options: Any, providers: Sequence[Any]) -> Any:
    """Open a graph with the given providers and compare it with its manifest entry.

    Raises
    ------
    BackendError
        ONNX Runtime can't open it.
    BundleFormatError
        It differs from the manifest.
    """
    try:
        # without enable_fallback=0 the Python layer would try again on the CPU when a provider fails
        session = ort.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)
        described = [
            [(v.name, DTYPES.get(v.type, v.type), list(v.shape)) for v in values]
            for values in (session.get_inputs(), session.get_outputs())
        ]
    # ONNX Runtime derives its errors from Exception itself; names that are no UTF-8 raise too
    except Exception as error:
        raise BackendError(f"{path}: ONNX Runtime can't open it ({line(error)}); export the bundle again") from error
    _compare(path, "inputs", described[0], spec.inputs)
    _compare(path, "outputs", described[1], spec.outputs)
    return session


def checked_outputs(
    name: str, spec: GraphSpec, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the outputs of a run, or raise BackendError where a shape isn't the manifest's for this batch.

    A graph that was opened can still give any shape: what its inference can't tell, nobody has compared yet.
    """
    batch = len(next(iter(inputs.values())))
    for tensor in spec.outputs:
        expected = tuple(batch if isinstance(size, str) else size for size in tensor.shape)
        if outputs[tensor.name].shape != expected:
            raise BackendError(
                f"{name} gave {tensor.name} of shape {outputs[tensor.name].shape} where the manifest says {expected}; "
                "export the bundle again"
            )
    return dict(outputs)


def line(error: BaseException) -> str:
    """Return an error's text as one line."""
    text = " ".join(str(error).split())[:300]  # it quotes names from the graph
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text) or type(error).__name__


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
