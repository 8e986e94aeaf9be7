"""How close a graph's values come to the largest number that half can hold, on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dra_export.half.convert import types_of
from dra_export.onnx_session import open_model

Inputs = dict[str, npt.NDArray[Any]]

_MASK = -1e30  #: below it lie the "minus infinities" of masks, which half has as well


def largest_activations(model: onnx.ModelProto, batches: Sequence[Inputs]) -> dict[str, float]:
    """Return the largest absolute value of every float value of a float32 graph over all batches.

    The graph's inputs are among them; weights are not. A value that isn't finite counts as infinity.
    """
    types = types_of(model)
    produced = [name for node in model.graph.node for name in node.output]
    names = [n for n in (*(v.name for v in model.graph.input), *produced) if types.get(n) == TensorProto.FLOAT]
    session = open_model(_with_maxima(model, names))
    largest = np.zeros(len(names))
    for inputs in batches:
        values = session.run([f"{name}/largest" for name in names], inputs)
        maxima = np.array([float(value) for value in values])
        largest = np.maximum(largest, np.where(np.isfinite(maxima), maxima, np.inf))
    return dict(zip(names, largest.tolist(), strict=True))


def _with_maxima(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    graph = measured.graph
    del graph.output[:]
    graph.initializer.append(numpy_helper.from_array(np.array(_MASK, np.float32), "headroom/mask"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "headroom/zero"))
    for name in names:
        graph.node.extend(
            [
                helper.make_node("Less", [name, "headroom/mask"], [f"{name}/masked"]),
                helper.make_node("Where", [f"{name}/masked", "headroom/zero", name], [f"{name}/unmasked"]),
                helper.make_node("Abs", [f"{name}/unmasked"], [f"{name}/absolute"]),
                helper.make_node("ReduceMax", [f"{name}/absolute"], [f"{name}/largest"], keepdims=0),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(f"{name}/largest", TensorProto.FLOAT, []))
    return measured
