"""What this machine can do: plain matrix products, and reading and copying memory, as fast as libraries here do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from dra_bench.timing import Cell

Kind = Literal["float32", "int8", "memory"]
SIDE = 2048  #: rows and columns of each matrix
FLOATS = 2**26  #: of the block that is read or copied


@dataclass(frozen=True)
class Peak:
    """One way to find the machine's limit; ``amount`` is the operations, or the bytes, of a call."""

    name: str
    kind: Kind
    amount: float
    run: Callable[[], object]

    @property
    def cell(self) -> Cell:
        """What is timed."""
        return Cell(self.name, f"peak {self.kind}", 1, None, self.run)


def peaks(threads: int, int8: bool) -> tuple[Peak, ...]:
    """Make the measurements of the machine, each with ``threads`` threads; those of INT8 where asked for.

    Of several of a kind the fastest counts. Reading moves the block once, copying twice: read and written. That a write
    may read what it replaces first isn't counted.
    """
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    a, b, out = torch.from_numpy(left), torch.from_numpy(right), torch.empty(SIDE, SIDE)
    product = 2.0 * SIDE**3
    block, copy = torch.ones(FLOATS), torch.empty(FLOATS)
    found = [
        Peak("matrix product, PyTorch", "float32", product, partial(torch.mm, a, b, out=out)),
        Peak("matrix product, ONNX Runtime", "float32", product, _product("MatMul", left, right, threads)),
        Peak("reading, PyTorch's sum", "memory", 4.0 * FLOATS, block.sum),
        Peak("copying, PyTorch", "memory", 8.0 * FLOATS, partial(copy.copy_, block)),
    ]
    if int8:
        unsigned = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        signed = rng.integers(-64, 64, (SIDE, SIDE), dtype=np.int8)  # half the range: no instruction saturates
        run = _product("MatMulInteger", unsigned, signed, threads)
        found.append(Peak("INT8 matrix product, ONNX Runtime", "int8", product, run))
    return tuple(found)


def _product(operator: str, left: NDArray[Any], right: NDArray[Any], threads: int) -> Callable[[], object]:
    """Return a call of ONNX Runtime that multiplies two matrices, the right one known beforehand as weights are."""
    kind = {"MatMul": onnx.TensorProto.FLOAT, "MatMulInteger": onnx.TensorProto.INT32}[operator]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["left", "right"], ["product"])],
        "product",
        [onnx.helper.make_tensor_value_info("left", onnx.helper.np_dtype_to_tensor_dtype(left.dtype), left.shape)],
        [onnx.helper.make_tensor_value_info("product", kind, (left.shape[0], right.shape[1]))],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # no spinning into the next row's time
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return partial(session.run, None, {"left": left})


def best_of(kind: Kind, found: Sequence[Peak], medians_ns: Sequence[float]) -> int | None:
    """Return which of the measurements of a kind was the fastest by its rate; None where there is none."""
    rates = {
        i: peak.amount / ns for i, (peak, ns) in enumerate(zip(found, medians_ns, strict=True)) if peak.kind == kind
    }
    return max(rates, key=lambda i: rates[i]) if rates else None
