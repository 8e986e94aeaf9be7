"""Ranges of a tower's activations on real images, streamed: an image's extremes are all that is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dra_export.int8.graph import add_weights, without_weights
from dra_export.int8.session import open_session, pixel_batches
from dra_runtime.console import progress
from dra_runtime.preprocess import Preprocess


@dataclass(frozen=True)
class Extremes:
    """Each image's smallest and largest value of each tensor: (images, tensors), and the tensors' names."""

    names: tuple[str, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]


def extremes_of(
    model: onnx.ModelProto, names: Sequence[str], images: Sequence[Path], preprocess: Preprocess, threads: int
) -> Extremes:
    """Run a graph on images and keep every image's extremes of the tensors called ``names``."""
    session = open_session(_with_extremes(model, names).SerializeToString(), threads)
    outputs = [f"{name}/{end}" for name in names for end in ("low", "high")]
    rows = []
    with progress(len(images), "calibrating: images") as advance:
        # One at a time: ONNX Runtime may hold all activations until their extremes are taken, a gigabyte for RN50x4
        for pixels in pixel_batches(images, preprocess, threads, size=1):
            rows.append(np.stack(session.run(outputs, {"image": pixels}), axis=1))
            advance(len(pixels))
    both = np.concatenate(rows)  # (images, 2 tensors)
    return Extremes(tuple(names), both[:, 0::2], both[:, 1::2])


def _with_extremes(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of ``model`` whose outputs are the extremes of tensors (N, C, H, W), an image each: (N,)."""
    result = without_weights(model)
    graph = result.graph
    del graph.output[:]
    for name in names:
        for end, kind in (("low", "ReduceMin"), ("high", "ReduceMax")):
            graph.node.append(helper.make_node(kind, [name, "calibration/axes"], [f"{name}/{end}"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}/{end}", TensorProto.FLOAT, ["batch"]))
    add_weights(result, model, [numpy_helper.from_array(np.array([1, 2, 3], np.int64), "calibration/axes")])
    return result
